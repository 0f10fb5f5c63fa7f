"""What `dsctl.json` says of the folder's files: sizes always, digests where every byte is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from dsctl.core.errors import FormatError
from dsctl.stores import SIGNED, Store
from dsctl.verify.findings import Finding


class Signed(msgspec.Struct, frozen=True):
    """A file as `dsctl.json` has it."""

    size: int
    sha256: str


class _Audit(msgspec.Struct):
    files: dict[str, Signed]


def read_signed(store: Store, files: Mapping[str, int]) -> dict[str, Signed] | None:
    """Every file that `dsctl.json` speaks of, or None where there is no `dsctl.json`.

    Raises:
        FormatError: it is not one.
    """
    if SIGNED not in files:
        return None
    try:
        return msgspec.json.decode(store.read(SIGNED, 0, files[SIGNED]), type=_Audit).files
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{SIGNED}: {error}") from None


def sizes(signed: Mapping[str, Signed], files: Mapping[str, int]) -> Iterator[Finding]:
    """Files that are gone, changed in length, or not spoken of."""
    for name, entry in signed.items():
        if name not in files:
            yield Finding("signed-missing", name, f"{SIGNED} names it, but it is not there")
        elif files[name] != entry.size:
            yield Finding("signed-size", name, f"has {files[name]:,} bytes, {SIGNED} says {entry.size:,}")
    for name in files:
        if name not in signed and name != SIGNED:
            yield Finding("unsigned-file", name, f"{SIGNED} does not name it: it was added later")
