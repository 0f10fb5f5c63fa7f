"""E4M3 codes whose blocks are parts of single rows: several rows are encoded as one long row, which is much quicker.

The results are those of `dsctl.codecs.e4m3`, bit for bit; other blocks go there directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dsctl.codecs import e4m3
from dsctl.codecs.e4m3 import CHUNK, Block, NotFinite
from dsctl.codecs.grids import pieces

if TYPE_CHECKING:
    import torch


def decode(codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor, block: Block) -> bool:
    """See `e4m3.decode`."""
    if not _fit(codes, out, block):
        return e4m3.decode(codes, scales, out, block)
    found = False
    for rows in pieces(slice(0, len(codes)), codes.shape[1], CHUNK):
        found |= e4m3.decode(_joined(codes[rows]), _joined(scales[rows]), _joined(out[rows]), block)
    return found


def encode(values: torch.Tensor, out: torch.Tensor, block: Block, power_of_two: bool) -> torch.Tensor:
    """See `e4m3.encode`.

    Raises:
        NotFinite: a value is NaN or infinite.
    """
    if not _fit(values, out, block):
        return e4m3.encode(values, out, block, power_of_two)
    scales = values.new_empty((len(values), values.shape[1] // block[1]), dtype=_float32())
    for rows in pieces(slice(0, len(values)), values.shape[1], CHUNK):
        with _placed(rows.start, scales.shape[1]):
            found = e4m3.encode(_joined(values[rows]), _joined(out[rows]), block, power_of_two)
        scales[rows] = found.view(-1, scales.shape[1])
    return scales


def encode_restoring(
    values: torch.Tensor, kept: torch.Tensor, out: torch.Tensor, block: Block, power_of_two: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `e4m3.encode_restoring`.

    Raises:
        NotFinite: a value is NaN or infinite.
    """
    if not _fit(values, out, block):
        return e4m3.encode_restoring(values, kept, out, block, power_of_two)
    scales, same = kept.clone(), kept.bool()
    for rows in pieces(slice(0, len(values)), values.shape[1], CHUNK):
        with _placed(rows.start, kept.shape[1]):
            long = _joined(values[rows]), _joined(kept[rows]), _joined(out[rows])
            found = e4m3.encode_restoring(*long, block, power_of_two)
        scales[rows], same[rows] = (one.view(-1, kept.shape[1]) for one in found)
    return scales, same


def room(shape: tuple[int, int], block: Block, width: int, encoding: bool) -> int:
    """See `e4m3.room`."""
    if block[0] > 1 or shape[1] % block[1]:
        return e4m3.room(shape, block, width, encoding)
    rows = min(max(1, shape[0]), max(1, CHUNK // max(1, shape[1])))
    return e4m3.room((1, rows * shape[1]), block, width, encoding)


def _fit(values: torch.Tensor, out: torch.Tensor, block: Block) -> bool:
    return block[0] == 1 and len(values) > 1 and values.shape[1] % block[1] == 0 and out.is_contiguous()


def _joined(rows: torch.Tensor) -> torch.Tensor:
    return rows.reshape(1, -1)


def _float32() -> torch.dtype:
    import torch

    return torch.float32


@contextmanager
def _placed(first: int, blocks: int) -> Iterator[None]:
    """Report a block of a long row by its place in rows of so many blocks."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(first + error.column // blocks, error.column % blocks) from None
