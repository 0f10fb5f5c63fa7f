"""Safetensors files as bytes: where each tensor lies, and folders written from bytes. No library of the format.

Tests of deltas look at bytes of any dtype, FP4 and FP8 included, so nothing here knows what the bytes mean.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

INDEX = "model.safetensors.index.json"
METADATA = "__metadata__"
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip

Raw = npt.NDArray[np.uint8]


class RawTensor(NamedTuple):
    """A tensor's dtype (by its safetensors name), shape and bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: Raw


class RawPlace(NamedTuple):
    """Where a tensor's bytes lie: `nbytes` bytes of `file` from `offset`, counted from the file's start."""

    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]

    def read(self) -> Raw:
        return np.fromfile(self.file, np.uint8, self.nbytes, offset=self.offset)

    def write(self, data: Raw) -> None:
        """Put other bytes there; they are as many as before."""
        assert data.size == self.nbytes, self
        with self.file.open("r+b") as file:
            file.seek(self.offset)
            file.write(data.tobytes())


def header_of(file: Path) -> tuple[dict[str, Any], int]:
    """The header's JSON, and where the tensors' bytes begin."""
    with file.open("rb") as opened:
        (size,) = struct.unpack("<Q", opened.read(8))
        return json.loads(opened.read(size)), 8 + size


def places_in(files: Iterable[Path]) -> dict[str, RawPlace]:
    """The place of every tensor of these files, by name; a name is in one of them only."""
    found: dict[str, RawPlace] = {}
    for file in files:
        header, start = header_of(file)
        for name, entry in header.items():
            if name != METADATA:
                assert name not in found, f"{name} is in {found[name].file.name} and in {file.name}"
                begin, end = entry["data_offsets"]
                found[name] = RawPlace(file, start + begin, end - begin, entry["dtype"], tuple(entry["shape"]))
    return found


def places_of(folder: Path) -> dict[str, RawPlace]:
    """The place of every tensor of a folder's own safetensors files, by name."""
    return places_in(sorted(folder.glob("*.safetensors")))


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The bytes of every tensor of a folder, by name."""
    return {name: place.read().tobytes() for name, place in places_of(folder).items()}


def save(file: Path, tensors: Mapping[str, RawTensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; its tensors lie in the order given."""
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    at = 0
    for name, tensor in tensors.items():
        assert tensor.data.size * 8 == prod(tensor.shape) * BITS[tensor.dtype], (name, tensor.dtype, tensor.shape)
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, at := at + tensor.data.size]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", len(raw)) + raw)
        for tensor in tensors.values():
            opened.write(tensor.data.tobytes())


def save_folder(folder: Path, files: Mapping[str, Mapping[str, RawTensor]], total: int | None = None) -> Path:
    """Write a checkpoint of these files, each a mapping of tensors, and its index; `total` is a `total_size` that is
    not the true one."""
    folder.mkdir(parents=True)
    for name, tensors in files.items():
        save(folder / name, tensors, {"format": "pt"})
    every = [(tensor, name, held.data.size) for name, tensors in files.items() for tensor, held in tensors.items()]
    size = sum(nbytes for _, _, nbytes in every) if total is None else total
    write_index(folder, {"total_size": size}, {tensor: name for tensor, name, _ in every})
    return folder


def write_index(folder: Path, metadata: Mapping[str, Any], weights: Mapping[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": weights}))
