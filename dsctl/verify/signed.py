"""Compare the folder's files with `dsctl.json`: sizes always, digests if every byte is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from dsctl.checkpoint.drafters import is_nested, nested
from dsctl.checkpoint.signed_files import SignedFile, entries_of
from dsctl.core.errors import FormatError
from dsctl.stores import ATTRIBUTES, SIGNED, Store
from dsctl.verify.findings import Finding


class _Audit(msgspec.Struct):
    files: Any


def read_signed(store: Store, files: Mapping[str, int]) -> dict[str, SignedFile] | None:
    """Every file that `dsctl.json` names, or None if there is no `dsctl.json`.

    Raises:
        FormatError: it does not parse.
    """
    if SIGNED not in files:
        return None
    try:
        return entries_of(msgspec.json.decode(store.read(SIGNED, 0, files[SIGNED]), type=_Audit).files)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise FormatError(f"{SIGNED}: {error}") from None


def sizes(signed: Mapping[str, SignedFile], files: Mapping[str, int]) -> Iterator[Finding]:
    """Findings about files that are missing, have a different size, or are not in `dsctl.json`."""
    for name, entry in signed.items():
        if name not in files:
            yield Finding("signed-missing", name, f"missing, but {SIGNED} names it")
        elif files[name] != entry.size:
            yield Finding("signed-size", name, f"has {files[name]:,} bytes, but {entry.size:,} in {SIGNED}")
    apart = nested(files)
    for name in files:
        if name not in signed and name not in (SIGNED, ATTRIBUTES) and not is_nested(name, apart):
            yield Finding("unsigned-file", name, f"is not in {SIGNED}: it was added later")
