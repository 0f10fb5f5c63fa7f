"""What a delta's `dsctl.json` says of both sides, checked: their digests, new headers, other files. No torch."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from dsctl.checkpoint.delta_form import SIDES
from dsctl.checkpoint.reading import check_name, read_json
from dsctl.checkpoint.signed_files import SignedFile, entries_of
from dsctl.core.errors import FormatError
from dsctl.core.file_names import problem_of, unusable
from dsctl.core.files import NEW, PART
from dsctl.core.frames import Frame, compressed
from dsctl.core.header import MAX_HEADER_BYTES, header_length, parse
from dsctl.stores import CONFIG, SIGNED, STATEMENT, Store

RECORD = "delta"
_AGAIN = "the delta is not complete: fetch it again"
# The most bytes of all new headers together: those of a release with a million tensors take about as much.
_MOST_HEADERS = 2 * MAX_HEADER_BYTES


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """The `delta` of a delta's `dsctl.json`.

    `base` and `result` are the weight files of both sides with their digests, by tensor; `headers` are those of the
    result's files that the base does not have byte for byte (base64 of a zstd frame). `whole` are the tensors that are
    stored whole, as pairs of file and name; `equal` are those that are equal on both sides. `sides` are the other files
    that differ, stored in the folder `side`; `removed` are those that the result does not have.
    """

    version: str
    base_version: str
    encoding: str
    base: dict[str, SignedFile]
    result: dict[str, SignedFile]
    headers: dict[str, str] = {}
    whole: list[tuple[str, str]] = []
    equal: list[str] = []
    sides: dict[str, SignedFile] = {}
    removed: list[str] = []


def read_record(store: Store, sizes: Mapping[str, int]) -> Record | None:
    """The record of a delta that dsctl made, or None if it has none: dsctl did not make it, or folded others.

    Raises:
        FormatError: it is not valid, or a file of the delta is missing or has another size.
    """
    raw = read_json(store, SIGNED, sizes)
    if raw is None or RECORD not in raw:
        return None
    where = f"{store.place}/{SIGNED}"
    try:
        found = msgspec.convert(raw[RECORD], Record)
        files = entries_of(raw.get("files"))
        for entries in (found.base, found.result, found.sides):
            entries_of(msgspec.to_builtins(entries))
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise FormatError(f"{where}: {error}") from None
    _check_record(found, where)
    for name, entry in files.items():
        if sizes.get(name) != entry.size:
            what = f"has {sizes[name]:,} bytes, expected {entry.size:,}" if name in sizes else "is missing"
            raise FormatError(f"{store.place}/{name}: {what}", hint=_AGAIN)
    for name, entry in found.sides.items():
        if files.get(f"{SIDES}/{name}") != entry:
            raise FormatError(f"{where}: {SIDES}/{name} is not among its files, or is another there")
    return found


def _check_record(found: Record, where: str) -> None:
    """Refuse names that do not fit, digests that are missing, and headers that are too long all together."""
    if why := names_fault(found.base, found.result, found.sides, found.removed):
        raise FormatError(f"{where}: {why}")
    if stray := sorted(found.headers.keys() - found.result.keys()):
        raise FormatError(f"{where}: has a header for {stray[0]}, which is not a file of the result")
    for name, entry in (*found.base.items(), *found.result.items()):
        if not entry.tree:
            raise FormatError(f"{where}: {name}: has no digest of its tensors")
    if bare := next((name for name, entry in found.sides.items() if not entry.blake3), ""):
        raise FormatError(f"{where}: {SIDES}/{bare}: has no BLAKE3")
    total = 0
    for name, packed in found.headers.items():
        total += _frame_of(packed, f"{where}: header of {name}").nbytes
        if total > _MOST_HEADERS:
            raise FormatError(f"{where}: its headers take more than {_MOST_HEADERS:,} bytes")


def names_fault(base: Iterable[str], result: Iterable[str], sides: Iterable[str], removed: Iterable[str] = ()) -> str:
    """Why a delta cannot have files of these names: weights of both sides, other files of the result, removed ones."""
    base, result, sides, removed = ([*names] for names in (base, result, sides, removed))
    for file in (*base, *result):
        try:
            check_name(file, "")
        except FormatError as error:
            return error.message.removeprefix(": ")
        if file.casefold().startswith(f"{SIDES}/"):
            return f"file name {file!r}: the folder {SIDES} is for other files"
    for file in (*base, *result, *sides, *removed):
        if why := unusable(file):
            return f"file name {file!r} {why}"
        if file.casefold() in (SIGNED, STATEMENT):
            return f"file name {file!r} is one that dsctl needs itself"
        if file.endswith((PART, NEW)):
            return f"file name {file!r} is that of an unfinished file"
    for file in (*sides, *removed):
        if file.casefold().endswith(".safetensors"):
            return f"file name {file!r} is one of weights, not of another file"
    if CONFIG in removed:
        return f"removes {CONFIG}"
    if both := sorted({*sides} & {*removed}):
        return f"both has and removes {both[0]}"
    return problem_of([*result, *sides])


def packed_header(header: bytes) -> str:
    """A header with its length bytes as text for the record."""
    return b64encode(compressed(header, 3)).decode()


def unpacked_header(packed: str, where: str) -> bytes:
    """The bytes of a header from the record.

    Raises:
        FormatError: they are not a header.
    """
    frame = _frame_of(packed, where)
    header = b"".join(frame.pieces(1 << 20))
    if header_length(header[:8], where, 1 << 62) != len(header) - 8:
        raise FormatError(f"{where}: its length does not fit")
    parse(header[8:], where, None)
    return header


def _frame_of(packed: str, where: str) -> Frame:
    try:
        raw = b64decode(packed, validate=True)
    except ValueError:
        raise FormatError(f"{where}: is not base64") from None
    return Frame(lambda begin, end: raw[begin:end], len(raw), where, None, MAX_HEADER_BYTES + 8)


def as_json(record: Record) -> Any:
    """The record as `dsctl.json` keeps it."""
    return msgspec.to_builtins(record)
