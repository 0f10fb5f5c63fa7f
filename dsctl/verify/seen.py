"""Facts from reading a tensor: the largest magnitude of its rows or blocks, rows of zeros, a fingerprint. numpy.

A float's magnitude is its bits without the sign, and grows with them: NaN and infinity lie at the top, zero is 0. So
largest magnitudes are integer maxima, computed at the speed of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from dsctl.codecs.codec import Codec
from dsctl.codecs.grids import grid
from dsctl.core.header import TensorRef

# Bands are processed in pieces that stay in the cache.
PIECE_BYTES = 256 << 10
SAMPLE_BYTES = 1 << 10
# A row whose first codes, this many, are zero is checked whole.
FIRST = 8


class Kind(NamedTuple):
    """A dtype's bits: as an integer, without the sign, not finite from here on, and huge (2^20) from here on.

    For integers, codes or packed codes, all bits count and no value is too large.
    """

    integer: str
    magnitude: int
    not_finite: int
    huge: int


INTEGERS = ("I8", "U8", "I32", "I64")
KINDS = {
    "BF16": Kind("<u2", 0x7FFF, 0x7F80, 0x4980),
    "F16": Kind("<u2", 0x7FFF, 0x7C00, 0x7C00),
    "F32": Kind("<u4", 0x7FFFFFFF, 0x7F800000, 0x49800000),
    "F64": Kind("<u8", (1 << 63) - 1, 0x7FF << 52, 0x413 << 52),
    "F8_E4M3": Kind("u1", 0x7F, 0x7F, 0x7F),
    "F8_E5M2": Kind("u1", 0x7F, 0x7C, 0x7C),
    "I8": Kind("u1", 0xFF, 1 << 8, 1 << 8),
    "U8": Kind("u1", 0xFF, 1 << 8, 1 << 8),
    "I32": Kind("<u4", 0xFFFFFFFF, 1 << 32, 1 << 32),
    "I64": Kind("<u8", (1 << 64) - 1, 1 << 64, 1 << 64),
}


@dataclass(slots=True)
class Seen:
    """Facts from reading a tensor: peaks per row (per block if quantized), as magnitudes, and a fingerprint.

    `zeros` lists the rows of zeros if peaks are per block. The fingerprint covers a sample, or everything if `whole`.
    """

    ref: TensorRef
    codec: Codec | None
    peaks: npt.NDArray[np.uint64]
    whole: bool = False
    print: int = 0
    zeros: list[int] = field(default_factory=list)

    @classmethod
    def new(cls, ref: TensorRef, codec: Codec | None, whole: bool = False) -> Seen:
        """Facts about a tensor that is not read yet."""
        places = grid(ref.spec.shape, codec.block) if codec else (rows_of(ref)[0], 1)
        return cls(ref, codec, np.zeros(places, np.dtype(KINDS[ref.spec.dtype].integer)), whole)

    def take(self, band: npt.NDArray[np.uint8], first: int) -> None:
        """Take the bytes of the next rows; `first` is the number of the first."""
        _, columns = rows_of(self.ref)
        rows = band.view(KINDS[self.ref.spec.dtype].integer).reshape(-1, columns)
        height = self.codec.block[0] if self.codec else 1
        step = max(1, PIECE_BYTES // (columns * rows.itemsize) // height) * height
        for begin in range(0, len(rows), step):
            piece = rows[begin : begin + step]
            self._look(piece, first + begin)
            sample = piece if self.whole else piece.reshape(-1)[: SAMPLE_BYTES // rows.itemsize]
            self.print = crc32(sample.data, self.print)

    def _look(self, rows: npt.NDArray[np.uint64], first: int) -> None:
        magnitudes = rows & rows.dtype.type(KINDS[self.ref.spec.dtype].magnitude)
        if self.codec is None:
            self.peaks[first : first + len(rows), 0] = magnitudes.max(axis=1, initial=0)
            return
        height, width = self.codec.block
        edges = range(0, rows.shape[1], width)
        for begin, end in _cuts(first, len(rows), height):
            found = np.maximum.reduceat(magnitudes[begin - first : end - first].max(axis=0), edges)
            index = begin // height
            np.maximum(self.peaks[index], found, out=self.peaks[index])
        started = np.flatnonzero(np.bitwise_or.reduce(magnitudes[:, :FIRST].T) == 0)
        self.zeros += (first + started[~magnitudes[started].any(axis=1)]).tolist()


def _cuts(first: int, count: int, height: int) -> Iterator[tuple[int, int]]:
    """The rows [first, first + count), cut at the beginning of each row of blocks."""
    begin = first
    while begin < first + count:
        end = min((begin // height + 1) * height, first + count)
        yield begin, end
        begin = end


def rows_of(ref: TensorRef) -> tuple[int, int]:
    """A tensor's rows and columns: a vector is one row; more dimensions are flattened to the last one."""
    columns = ref.spec.shape[-1] if ref.spec.shape else 1
    return (ref.spec.values // columns if columns else 0), columns
