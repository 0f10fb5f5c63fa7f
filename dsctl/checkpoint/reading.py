"""Read JSON and safetensors headers of a store, and refuse malformed ones. No torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import partial
from math import isfinite
from typing import Any

from dsctl.core.errors import DsctlError, FormatError, SourceError
from dsctl.core.header import Header, header_length, parse
from dsctl.stores import Store
from dsctl.stores.threads import threads

MAX_JSON_BYTES = 200_000_000


def read_json(store: Store, file: str, files: Mapping[str, int]) -> dict[str, Any] | None:
    """A JSON object from a store, or None if the file is absent.

    Raises:
        FormatError: not JSON, not an object, a key twice, or absurdly long.
    """
    if file not in files:
        return None
    if files[file] > MAX_JSON_BYTES:
        raise FormatError(f"{file}: {files[file]:,} bytes is too long for a JSON file")
    try:
        value = strict_json(store.read(file, 0, files[file]), file)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{file}: expected a JSON object, found {type(value).__name__}")
    return value


def strict_json(raw: bytes, file: str) -> Any:
    """Parse JSON that can be written again and means the same to every reader.

    Raises:
        FormatError: a key appears twice. ValueError: not JSON, or a number or text that UTF-8 JSON cannot express.
        RecursionError: it is nested too deep.
    """
    text = raw.decode()
    value = json.loads(
        text, object_pairs_hook=lambda pairs: _unique(pairs, file), parse_constant=_refuse_constant, parse_float=_finite
    )
    if "\\ud" in text.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"holds {error.object[error.start]!a}, half of a surrogate pair") from None
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not isfinite(number):
        raise ValueError(f"{digits[:40]} is beyond the range of numbers")
    return number


def _unique(pairs: list[tuple[str, Any]], file: str) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise FormatError(f"{file}: key {twice!r} appears twice")
    return value


def check_name(file: str, where: str) -> None:
    """Refuse a shard name that is not a safetensors file inside the folder.

    Raises:
        FormatError: it is not.
    """
    parts = file.split("/")
    if not file.endswith(".safetensors") or file.startswith("/") or ".." in parts or "" in parts or "\\" in file:
        raise FormatError(f"{where}: file name {file!r} is not a safetensors file inside the folder")


def read_header(store: Store, file: str, size: int) -> Header:
    """One file's header, in one read if it is short and two if not.

    Raises:
        FormatError: see `dsctl.core.header.parse`.
        SourceError: the file cannot be read.
    """
    return _parsed(store.head(file, size), file, size)


def _parsed(head: bytes, file: str, size: int) -> Header:
    # A store may have kept the header from an earlier state of the file.
    header_length(head[:8], file, size)
    return parse(head[8:], file, size)


def read_headers(store: Store, files: Mapping[str, int]) -> dict[str, Header]:
    """The headers of several files, read in parallel; the error lists every broken one.

    Raises:
        FormatError, SourceError: as `read_header`; several are issues of one error.
    """
    from concurrent.futures import wait

    headers: dict[str, Header] = {}
    errors: list[DsctlError] = []
    with threads(min(16, max(1, len(files)))) as pool:
        heads = {file: pool.submit(partial(store.head, file, size)) for file, size in files.items()}
        # Parsing beside the reading threads would only make both wait for the interpreter's lock.
        wait(heads.values())
    for file, size in files.items():
        try:
            headers[file] = _parsed(heads[file].result(), file, size)
        except DsctlError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        what = "cannot be read" if isinstance(errors[0], SourceError) else "are broken"
        hints = {error.hint for error in errors}
        hint = hints.pop() if len(hints) == 1 else None
        issues = [error.message for error in errors]
        raise type(errors[0])(f"{store.place}: {len(errors)} files {what}", hint=hint, issues=issues)
    return headers
