"""The safetensors header: specs, references, build, parse, and the checks on hostile input. Bytes only, no torch.

Format: 8 bytes little-endian header length, that many bytes of JSON, then the tensors' bytes without holes
(huggingface/safetensors, README and safetensors/src/tensor.rs).
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import NamedTuple

import msgspec

from dsctl.core.errors import FormatError

# Name in the header -> bits per element, as safetensors 0.8 knows them.
DTYPE_BITS: dict[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
# safetensors orders tensors by descending place in this list, then by name (its Dtype enum).
_ORDER = (
    "BOOL", "F4", "F6_E2M3", "F6_E3M2", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "I16", "U16", "F16", "BF16",
    "I32", "U32", "F32", "C64", "F64", "I64", "U64",
)  # fmt: skip
_RANK = {name: place for place, name in enumerate(_ORDER)}
MAX_HEADER_BYTES = 100_000_000
PT = {"format": "pt"}


class TensorSpec(NamedTuple):
    """Dtype (by its safetensors name) and shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    @property
    def in_bytes(self) -> TensorSpec:
        """The same bytes as a U8 spec if elements are smaller than a byte: the last dimension then counts bytes."""
        bits = DTYPE_BITS[self.dtype]
        if bits >= 8 or not self.shape:
            return self
        return TensorSpec("U8", (*self.shape[:-1], self.shape[-1] * bits // 8))


class TensorRef(msgspec.Struct, frozen=True, gc=False):
    """A stored tensor: its name, its spec, and the range of its bytes (`begin` to `end`, from the file's start)."""

    name: str
    spec: TensorSpec
    file: str
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """A parsed header of a file: its tensors in file order, its metadata, its size with the 8 length bytes, its JSON.

    `names` and `specs` have the same order; `nbytes` is the size of all tensors together.
    """

    file: str
    names: tuple[str, ...]
    specs: tuple[TensorSpec, ...]
    metadata: dict[str, str]
    size: int
    nbytes: int
    raw: bytes

    @cached_property
    def tensors(self) -> dict[str, TensorRef]:
        """Every tensor by name. Built on first use: a command that only looks needs no object per tensor."""
        tensors, at = {}, self.size
        sizes = {spec: spec.nbytes for spec in self.kinds}
        for name, spec in zip(self.names, self.specs, strict=True):
            begin, at = at, at + sizes[spec]
            tensors[name] = TensorRef(name, spec, self.file, begin, at)
        return tensors

    @cached_property
    def kinds(self) -> Counter[TensorSpec]:
        """The number of tensors of each dtype and shape."""
        return Counter(self.specs)


# Defaults that no tensor can have mark absent fields.
class _Entry(msgspec.Struct, gc=False):
    dtype: str = ""
    shape: tuple[int, ...] = (-1,)
    data_offsets: tuple[int, int] = (-1, -1)


class _Meta(msgspec.Struct, rename={"metadata": "__metadata__"}):
    metadata: dict[str, str] = {}


_ENTRIES = msgspec.json.Decoder(dict[str, _Entry])
_META = msgspec.json.Decoder(_Meta)
_META_FIRST = b'{"__metadata__":'


def build(
    specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] = PT, in_order: bool = False
) -> tuple[bytes, dict[str, int]]:
    """The header's bytes (length prefix included) and each tensor's offset from the file's start.

    Byte for byte what `safetensors.torch.save_file` writes for the same tensors and metadata. With `in_order` the
    tensors keep the order that they are given in.
    """
    entries: dict[str, object] = {}
    if metadata:
        entries["__metadata__"] = dict(metadata)
    at, offsets = 0, {}
    ordered = specs.items()
    for name, spec in ordered if in_order else sorted(ordered, key=lambda item: (-_RANK[item[1].dtype], item[0])):
        offsets[name] = at
        end = at + spec.nbytes
        entries[name] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": (at, end)}
        at = end
    text = msgspec.json.encode(entries)
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: start + offset for name, offset in offsets.items()}


def header_length(prefix: bytes, file: str, file_size: int) -> int:
    """The JSON's length from a file's first 8 bytes, checked against the file's size and the limit.

    Raises:
        FormatError: the file is shorter than its header says, or the header is absurdly long.
    """
    if file_size < 8 or len(prefix) < 8:
        raise FormatError(f"{file}: {file_size} bytes is too short for a safetensors file", hint=_TRUNCATED)
    length = int.from_bytes(prefix[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise FormatError(f"{file}: header of {length:,} bytes is over the limit of {MAX_HEADER_BYTES:,}")
    if 8 + length > file_size:
        raise FormatError(
            f"{file}: header of {length:,} bytes does not fit in a file of {file_size:,} bytes", hint=_TRUNCATED
        )
    return length


def read_head(read: Callable[[int, int], bytes], file: str, size: int, first_read: int) -> bytes:
    """A file's length prefix and header JSON, in one read if they fit in `first_read` bytes.

    Raises:
        FormatError: as `header_length`.
    """
    head = read(0, min(size, first_read))
    end = 8 + header_length(head[:8], file, size)
    return head[:end] if len(head) >= end else head + read(len(head), end)


_TRUNCATED = "the file is probably truncated: download it again"


def parse(raw: bytes, file: str, file_size: int | None) -> Header:
    """Read a header's JSON (without the length prefix) of `file`, trusting nothing in it (`file_size` None: not known).

    Raises:
        FormatError: invalid JSON, duplicate names, unknown dtype, negative or absurd shape, offsets that overlap,
            leave holes, disagree with dtype and shape, or do not end where the file ends.
    """
    entries, metadata = _decoded(raw, file)
    start = 8 + len(raw)
    specs, end = _laid_out(entries, file)
    if end is None:
        entries = dict(sorted(entries.items(), key=lambda item: item[1].data_offsets))
        specs, end = _laid_out(entries, file)
    if end is None:
        raise FormatError(f"{file}: {_offset_fault(entries, None if file_size is None else file_size - start)}")
    if file_size is not None and start + end != file_size:
        what = "truncated" if start + end > file_size else "longer than its tensors"
        raise FormatError(
            f"{file}: file is {what}: {file_size:,} bytes, its header accounts for {start + end:,}",
            hint=_TRUNCATED if start + end > file_size else None,
        )
    return Header(file, tuple(entries), tuple(specs), metadata, start, end, raw)


def _decoded(raw: bytes, file: str) -> tuple[dict[str, _Entry], dict[str, str]]:
    """The entries in the order of the JSON, and the metadata."""
    try:
        entries = _entries(raw)
        metadata = _metadata(raw) if entries.pop("__metadata__", None) else {}
        # An entry has ten quotation marks: more of them mean a repeated or foreign key, or a quotation mark in a name.
        plain = 10 * len(entries) + 4 * len(metadata) + 2 * (_META_FIRST[1:-1] in raw)
        if raw.count(b'"') != plain:
            json.loads(raw, object_pairs_hook=lambda pairs: _unique(pairs, file))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: header is not valid: {error}") from None
    return entries, metadata


def _entries(raw: bytes) -> dict[str, _Entry]:
    try:
        return _ENTRIES.decode(raw)
    except msgspec.ValidationError:
        # Keys of the metadata may be those of an entry's fields.
        parts = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        if "__metadata__" in parts:
            parts["__metadata__"] = msgspec.Raw(b"{}")
        return {name: _entry(name, part) for name, part in parts.items()}


def _entry(name: str, part: msgspec.Raw) -> _Entry:
    try:
        return msgspec.json.decode(part, type=_Entry)
    except msgspec.ValidationError as error:
        raise ValueError(f"tensor {name}: {error}") from None


def _metadata(raw: bytes) -> dict[str, str]:
    if raw.startswith(_META_FIRST):
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(raw[len(_META_FIRST) : raw.index(b"}") + 1], type=dict[str, str])
    return _META.decode(raw).metadata


def _laid_out(entries: Mapping[str, _Entry], file: str) -> tuple[list[TensorSpec], int | None]:
    """Every entry's spec, and where the last tensor ends: None if they overlap, leave holes or are out of order."""
    known: dict[tuple[str, tuple[int, ...]], tuple[TensorSpec, int]] = {}
    specs: list[TensorSpec] = []
    at, contiguous = 0, True
    for entry in entries.values():
        try:
            spec, nbytes = known[entry.dtype, entry.shape]
        except KeyError:
            spec = _named_spec(entry, entries, file)
            nbytes = spec.nbytes
            known[entry.dtype, entry.shape] = spec, nbytes
        begin, end = entry.data_offsets
        if begin != at or end - begin != nbytes:
            contiguous = False
        specs.append(spec)
        at = end
    return specs, at if contiguous else None


def _named_spec(entry: _Entry, entries: Mapping[str, _Entry], file: str) -> TensorSpec:
    try:
        return _spec(entry.dtype, entry.shape)
    except ValueError as error:
        name = next(name for name, other in entries.items() if other is entry)
        raise FormatError(f"{file}: tensor {name}: {error}") from None


@lru_cache(4096)
def _spec(dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    """The spec of a possible dtype and shape; equal ones are one object, so that comparing them is quick."""
    if dtype not in DTYPE_BITS:
        raise ValueError(f"unknown dtype {dtype!r}" if dtype else "has no dtype")
    if shape == (-1,):
        raise ValueError("impossible shape: absent, or [-1]")
    if len(shape) > 8 or any(n < 0 or n >= 1 << 48 for n in shape) or prod(shape) >= 1 << 60:
        raise ValueError(f"impossible shape {list(shape)}")
    if prod(shape) * DTYPE_BITS[dtype] % 8:
        raise ValueError(f"{dtype} of shape {list(shape)} is not a whole number of bytes")
    return TensorSpec(dtype, shape)


def _offset_fault(entries: Mapping[str, _Entry], room: int | None) -> str:
    """The problems of these entries' offsets; the entries are sorted by offset, and `room` bytes are available.

    A tensor that is wrong in itself comes before one that only lies beside it.
    """
    for name, entry in entries.items():
        begin, end = entry.data_offsets
        spec = TensorSpec(entry.dtype, entry.shape)
        if begin < 0 or end < begin:
            return f"tensor {name}: offsets {begin} to {end} are out of range"
        if end - begin != spec.nbytes:
            takes = f"{spec.dtype} {list(spec.shape)} takes {spec.nbytes:,}"
            return f"tensor {name}: {end - begin:,} bytes at its offsets, but {takes}"
    for name, entry in entries.items():
        begin, end = entry.data_offsets
        if room is not None and begin > room:
            return f"tensor {name}: offsets {begin} to {end} are out of range, tensors take {room:,} bytes of the file"
    at = 0
    for name, entry in entries.items():
        begin, end = entry.data_offsets
        if begin != at:
            return f"tensor {name}: begins at {begin:,}, expected {at:,}: tensors overlap or leave a hole"
        at = end
    raise AssertionError("the offsets are right")


def _unique(pairs: list[tuple[str, object]], file: str) -> dict[str, object]:
    seen: dict[str, object] = {}
    for key, value in pairs:
        if key in seen:
            raise FormatError(f"{file}: header names {key!r} twice")
        seen[key] = value
    return seen
