"""The safetensors header: specs, references, build, parse, and the checks on hostile input. Bytes only, no torch.

Format: 8 bytes little-endian header length, that many bytes of JSON, then the tensors' bytes without holes
(huggingface/safetensors, README and safetensors/src/tensor.rs).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from typing import NamedTuple

import msgspec

from dsctl.errors import FormatError

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
    """What a stored tensor is: dtype by its safetensors name, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8


class TensorRef(NamedTuple):
    """A stored tensor: its name, what it is, and where its bytes lie (`begin` to `end`, counted from the file's start)."""

    name: str
    spec: TensorSpec
    file: str
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


class Header(NamedTuple):
    """A parsed header: its tensors in file order, its metadata, its size with the 8 length bytes, and its raw JSON."""

    tensors: dict[str, TensorRef]
    metadata: dict[str, str]
    size: int
    raw: bytes


class _Entry(msgspec.Struct):
    dtype: str = ""
    shape: tuple[int, ...] = ()
    data_offsets: tuple[int, int] = (0, 0)


class _Meta(msgspec.Struct, rename={"metadata": "__metadata__"}):
    metadata: dict[str, str] = {}


_ENTRIES = msgspec.json.Decoder(dict[str, _Entry])
_META = msgspec.json.Decoder(_Meta)


def build(specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] = PT) -> tuple[bytes, dict[str, int]]:
    """The header's bytes (length prefix included) and each tensor's offset from the file's start.

    Byte for byte what `safetensors.torch.save_file` writes for the same tensors and metadata.
    """
    entries: dict[str, object] = {}
    if metadata:
        entries["__metadata__"] = dict(metadata)
    at, offsets = 0, {}
    for name, spec in sorted(specs.items(), key=lambda item: (-_RANK[item[1].dtype], item[0])):
        offsets[name] = at
        end = at + spec.nbytes
        entries[name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
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
    """A file's length prefix and header JSON, in one read of at most `first_read` bytes where it is that short.

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
    try:
        entries = _ENTRIES.decode(raw)
        metadata = _META.decode(raw).metadata
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{file}: header is not valid: {error}") from None
    entries.pop("__metadata__", None)
    _refuse_duplicates(raw, len(entries), file)
    start = 8 + len(raw)
    specs: dict[tuple[str, tuple[int, ...]], tuple[TensorSpec, int]] = {}
    tensors: dict[str, TensorRef] = {}
    at = 0
    ordered = sorted(entries.items(), key=lambda item: item[1].data_offsets)
    for name, entry in ordered:
        key = (entry.dtype, entry.shape)
        known = specs.get(key)
        if known is None:
            spec = _spec(entry, name, file)
            known = specs[key] = spec, spec.nbytes
        spec, nbytes = known
        begin, end = entry.data_offsets
        if begin != at or end - begin != nbytes:
            raise FormatError(f"{file}: tensor {name}: {_offset_fault(begin, end, at, spec)}")
        tensors[name] = TensorRef(name, spec, file, start + begin, start + end)
        at = end
    if file_size is not None and start + at != file_size:
        what = "truncated" if start + at > file_size else "longer than its tensors"
        raise FormatError(
            f"{file}: file is {what}: {file_size:,} bytes, its header accounts for {start + at:,}",
            hint=_TRUNCATED if start + at > file_size else None,
        )
    return Header(tensors, metadata, start, raw)


def _spec(entry: _Entry, name: str, file: str) -> TensorSpec:
    if entry.dtype not in DTYPE_BITS:
        raise FormatError(f"{file}: tensor {name}: unknown dtype {entry.dtype!r}")
    if len(entry.shape) > 8 or any(n < 0 or n >= 1 << 48 for n in entry.shape) or prod(entry.shape) >= 1 << 60:
        raise FormatError(f"{file}: tensor {name}: impossible shape {list(entry.shape)}")
    if prod(entry.shape) * DTYPE_BITS[entry.dtype] % 8:
        raise FormatError(f"{file}: tensor {name}: {entry.dtype} of shape {list(entry.shape)} is no whole number of bytes")
    return TensorSpec(entry.dtype, entry.shape)


def _offset_fault(begin: int, end: int, at: int, spec: TensorSpec) -> str:
    if begin < 0 or end < begin:
        return f"offsets {begin} to {end} are out of range"
    if end - begin != spec.nbytes:
        return f"{end - begin:,} bytes at its offsets, but {spec.dtype} {list(spec.shape)} takes {spec.nbytes:,}"
    return f"begins at {begin:,} where {at:,} was due: tensors overlap or leave a hole"


def _refuse_duplicates(raw: bytes, count: int, file: str) -> None:
    # A cheap necessary condition first; only a header that fails it is read again, pair by pair.
    if all(raw.count(b'"%s"' % field) == count for field in (b"dtype", b"shape", b"data_offsets")):
        return
    json.loads(raw, object_pairs_hook=lambda pairs: _unique(pairs, file))


def _unique(pairs: list[tuple[str, object]], file: str) -> dict[str, object]:
    seen: dict[str, object] = {}
    for key, value in pairs:
        if key in seen:
            raise FormatError(f"{file}: header names {key!r} twice")
        seen[key] = value
    return seen
