"""Tables of integers, such as the experts of each token: numbers out of range, and repeated ones. numpy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dsctl.core.header import TensorRef
from dsctl.verify.findings import Finding

# Integer dtypes and their names in numpy.
WHOLE = {"I64": "<i8", "I32": "<i4", "I16": "<i2"}


@dataclass(slots=True)
class TableRead:
    """The result of reading a table of numbers from 0 to below `below`.

    `outside` counts numbers out of range, and `first` is the first of them with its place; `repeats` counts rows that
    hold a number twice, and `repeated` is the first of them.
    """

    ref: TensorRef
    below: int
    outside: int = 0
    first: str = ""
    repeats: int = 0
    repeated: int = 0

    def take(self, band: npt.NDArray[np.uint8], row: int) -> None:
        """Take the bytes of the next rows; `row` is the number of the first."""
        columns = self.ref.spec.shape[-1]
        numbers = band.view(WHOLE[self.ref.spec.dtype]).reshape(-1, columns)
        wrong = (numbers < 0) | (numbers >= self.below)
        if wrong.any():
            at = np.argwhere(wrong)[0]
            self.first = self.first or f"{numbers[*at]} at [{row + int(at[0])}, {int(at[1])}]"
            self.outside += int(np.count_nonzero(wrong))
        ordered = np.sort(numbers, axis=1)
        twice = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
        if twice.any():
            self.repeated = self.repeated if self.repeats else row + int(np.argmax(twice))
            self.repeats += int(np.count_nonzero(twice))

    def findings(self) -> Iterator[Finding]:
        """The problems of the table."""
        if self.outside:
            what = f"{self.outside:,} of {self.ref.spec.values:,} numbers are outside 0 to {self.below - 1}"
            yield Finding("out-of-range", self.ref.name, f"{what}; the first is {self.first}")
        if self.repeats:
            rows = self.ref.spec.shape[0]
            what = f"{self.repeats:,} of {rows:,} rows name an expert twice; the first is row {self.repeated}"
            yield Finding("repeated-expert", self.ref.name, what)
