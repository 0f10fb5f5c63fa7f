"""Tables whose rows are looked up, such as n-gram tables: values that are no numbers, and holes. numpy.

A table of 98 GB has 384 million rows, so nothing is kept for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsctl.core.header import TensorRef
from dsctl.verify.findings import Finding
from dsctl.verify.seen import KINDS, PIECE_BYTES, rows_of

# Training leaves single rows untouched. This many consecutive rows of zeros are a hole that nobody wrote.
HOLE_ROWS = 4096


@dataclass(slots=True)
class RowsRead:
    """The result of reading a table in bands: NaN and infinity, and the longest run of rows of zeros.

    `bad` counts rows with such values, `first` is the first of them. `run` is the length of the run of zeros that ends
    with the last row so far; `hole` and `begin` are the length and the first row of the longest one.
    """

    ref: TensorRef
    bad: int = 0
    first: int = 0
    run: int = 0
    hole: int = 0
    begin: int = 0

    def take(self, band: npt.NDArray[np.uint8], first: int) -> None:
        """Take the bytes of the next rows; `first` is the number of the first."""
        kind, (_, columns) = KINDS[self.ref.spec.dtype], rows_of(self.ref)
        rows = band.view(kind.integer).reshape(-1, columns)
        step = max(1, PIECE_BYTES // (columns * rows.itemsize))
        for at in range(0, len(rows), step):
            piece = rows[at : at + step]
            peaks = (piece & piece.dtype.type(kind.magnitude)).max(axis=1, initial=0)
            self._zeros(peaks == 0, first + at)
            wrong = peaks >= kind.not_finite
            if wrong.any():
                self.first = self.first if self.bad else first + at + int(np.argmax(wrong))
                self.bad += int(np.count_nonzero(wrong))

    def _zeros(self, zero: npt.NDArray[np.bool_], first: int) -> None:
        if not zero.any():
            self.run = 0
            return
        edges = np.flatnonzero(np.diff(np.concatenate(([False], zero, [False]))))
        for begin, end in edges.reshape(-1, 2).tolist():
            self.run = end - begin + (self.run if begin == 0 else 0)
            if self.run > self.hole:
                self.hole, self.begin = self.run, first + end - self.run
        if not zero[-1]:
            self.run = 0

    def findings(self) -> Iterator[Finding]:
        """The problems of the table."""
        rows, name = rows_of(self.ref)[0], self.ref.name
        if self.bad:
            yield Finding("not-finite", name, f"NaN or infinity in {self.bad:,} rows; the first is row {self.first:,}")
        if rows and self.hole == rows:
            yield Finding("all-zero", name, "every value is zero")
        elif self.hole >= HOLE_ROWS:
            last = self.begin + self.hole - 1
            what = f"{self.hole:,} of {rows:,} rows one after the other are zero: rows {self.begin:,} to {last:,}"
            yield Finding("zero-part", name, what)
