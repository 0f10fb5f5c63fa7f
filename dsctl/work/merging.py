"""Add a change of low rank to a band of values, and count how much of it arrives in the stored values. Loads torch.

D = (left @ right) * scaling in float32, W' = float32(W) + D, rounded once when it is stored; with DoRA, each row of W'
is scaled to its magnitude first (huggingface/peft 0.21.2, tuners/lora/variants.py, `DoraLinearVariant.merge_unsafe`).
A product is always of `ROWS` whole rows that begin at a multiple of `ROWS`, so that its bits do not depend on how the
work is divided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import torch

from dsctl.checkpoint.low_rank import ROWS, Factor
from dsctl.codecs.codec import Codec
from dsctl.core.boxes import Box
from dsctl.core.errors import WorkError
from dsctl.core.header import TensorSpec
from dsctl.plan.steps import FACTOR_BYTES, SUMMED_ROWS, Region, Step, held_as, part_of
from dsctl.work.buffers import DTYPES, JobFiles
from dsctl.work.tasks import ASKED, CHANGED, ERROR, LOST, UNCHANGED, add, energy, merge_count


class Merged(NamedTuple):
    """A band before and after a change, and the change itself: float32, one shape."""

    before: torch.Tensor
    after: torch.Tensor
    asked: torch.Tensor

    def cut(self, box: Box) -> Merged:
        """The part of a box whose corner is relative to the band."""
        rows, columns = (slice(a, b) for a, b in zip(box.start, box.stop, strict=True))
        return Merged(*(one[rows, columns] for one in self))


def merge(step: Step, band: Box, values: torch.Tensor, files: JobFiles) -> Merged:
    """Values of a band (float32 [rows, columns], from a multiple of `ROWS` on) with a step's change.

    Raises:
        SourceError: a factor cannot be read. WorkError: a merged value is not finite.
    """
    change = step.low_rank
    assert change is not None and values.dtype == torch.float32 and band.start[0] % ROWS == 0
    first, last, rank = band.start[0], band.stop[0], change.left.rank
    right = _right(step, files)
    left = files.buffer("lora:left", TensorSpec("F32", (last - first, rank)))
    _fill(change.left, first, left, files)
    asked = files.buffer("lora:asked", TensorSpec("F32", band.shape))
    after = files.buffer("lora:merged", TensorSpec("F32", band.shape))
    for begin in range(0, last - first, ROWS):
        rows = slice(begin, begin + ROWS)
        torch.mm(left[rows], right, out=asked[rows])
    asked.mul_(change.scaling)
    for begin in range(0, last - first, SUMMED_ROWS):
        rows = slice(begin, begin + SUMMED_ROWS)
        # -0 + 0 would be 0: where nothing is asked to change, nothing does.
        torch.where(asked[rows] == 0, values[rows], values[rows] + asked[rows], out=after[rows])
    if change.magnitude is not None:
        begin = change.row + first
        wanted = Box((begin,), (begin + last - first,))
        magnitude = files.read("lora:magnitude", part_of(change.magnitude), wanted).float()
        for begin in range(0, last - first, SUMMED_ROWS):
            rows = slice(begin, begin + SUMMED_ROWS)
            after[rows].mul_((magnitude[rows] / torch.linalg.vector_norm(after[rows], dim=1)).unsqueeze(1))
        torch.sub(after, values, out=asked)
    _refuse_not_finite(step, values, after)
    return Merged(values, after, asked)


def _refuse_not_finite(step: Step, values: torch.Tensor, after: torch.Tensor) -> None:
    if isfinite(float(after.sum())):
        # A sum shows every NaN and infinity, and takes a quarter of the time.
        return
    for begin in range(0, len(after), SUMMED_ROWS):
        rows = slice(begin, begin + SUMMED_ROWS)
        if not bool(after[rows].isfinite().all()) and bool(values[rows].isfinite().all()):
            hint = "the adapter's factors are too large for this matrix"
            raise WorkError(f"{step.name}: a merged value is not finite", hint=hint)


def _right(step: Step, files: JobFiles) -> torch.Tensor:
    """The right factor of a step, float32 [rank, columns]; it stays in its buffer for the step's other bands."""
    assert step.low_rank is not None
    right = step.low_rank.right
    found = files.buffer("lora:right", TensorSpec("F32", (right.rank, step.shape[1])))
    if files.factor != step.name:
        files.factor = ""
        _fill(right, 0, found.T, files)
        files.factor = step.name
    return found


def _fill(factor: Factor, begin: int, out: torch.Tensor, files: JobFiles) -> None:
    """Fill `out` ([elements, vectors], float32) with a factor's vectors, from element `begin` on; read in pieces."""
    part, count = part_of(factor.ref), len(out)
    rows, columns = factor.ref.spec.shape
    piece = max(1, FACTOR_BYTES * rows // factor.ref.nbytes)
    first, last = factor.begin + begin, factor.begin + begin + count
    if factor.along == 0:
        for at in range(first, last, piece):
            end = min(at + piece, last)
            read = files.read("lora:raw", part, Box((at, 0), (end, columns)))
            vectors = read[:, factor.first :: factor.step][:, : factor.rank]
            out[at - first : end - first].copy_(vectors)
        return
    for at in range(0, factor.rank, piece):
        end = min(at + piece, factor.rank)
        read = files.read("lora:raw", part, Box((factor.first + at, 0), (factor.first + end, columns)))
        out[:, at:end].copy_(read[:, first:last].T)


@dataclass
class Arrival:
    """Counts of a band: each element once, however many places it is written to."""

    step: Step
    files: JobFiles
    counted: list[Box]

    def count(
        self, region: Region, box: Box, part: Merged, stored: dict[str, torch.Tensor], kept: Mapping[str, torch.Tensor]
    ) -> dict[str, int]:
        """How much of the change is in the stored tensors of a written region's box; none if it was counted before.

        The change that arrives is the value stored with the adapter minus the value that would be stored without it.
        """
        if any(box.intersect(one) for one in self.counted):
            return {}
        self.counted.append(box)
        # The sum is stored already; a second place for it is needed only if parts of it are still to be stored.
        alone = len(self.step.writes) == 1 and part.after.is_contiguous()
        now = part.after if alone else self.files.buffer("again", TensorSpec("F32", box.shape))
        region.codec.decode(stored, now)
        without = part.before if self.step.exact else self._without(region.codec, part.before, kept)
        counts: dict[str, int] = {}
        for rows in _runs(box):
            add(counts, _arrived(self.step.role, part.asked[rows], now[rows] - without[rows]))
        return counts

    def _without(self, codec: Codec, before: torch.Tensor, kept: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The values that the target would hold without the change."""
        shape = tuple(before.shape)
        without = self.files.buffer("lora:without", TensorSpec("F32", shape))
        if codec.plain:
            for rows in (slice(at, at + SUMMED_ROWS) for at in range(0, len(before), SUMMED_ROWS)):
                without[rows].copy_(before[rows].to(DTYPES[codec.plain]))
            return without
        specs = codec.specs(shape)
        stored = {part: self.files.buffer(f"lora:out:{held_as(part)}", spec) for part, spec in specs.items()}
        codec.encode(before, stored | dict(kept))
        codec.decode(stored, without)
        return without


def _runs(box: Box) -> Iterator[slice]:
    """The rows of a box in runs that begin at multiples of `SUMMED_ROWS` of the whole matrix, relative to the box."""
    first, last = box.start[0], box.stop[0]
    at = first
    while at < last:
        end = min(last, (at // SUMMED_ROWS + 1) * SUMMED_ROWS)
        yield slice(at - first, end - first)
        at = end


def _arrived(role: str, asked: torch.Tensor, change: torch.Tensor) -> dict[str, int]:
    """Counts for some rows: elements asked to change and those of them that did not, and sums of squares."""
    unchanged = change == 0
    counts = {
        merge_count(role, CHANGED): int(torch.count_nonzero(asked)),
        merge_count(role, UNCHANGED): int(torch.count_nonzero(unchanged & (asked != 0))),
    }
    squares = asked * asked
    error = change.sub_(asked)
    error.mul_(error)
    lost = squares * unchanged
    for name, values in ((ASKED, squares), (LOST, lost), (ERROR, error)):
        add(counts, energy(role, name, _sum(values)))
    return counts


def _sum(values: torch.Tensor) -> float:
    """A sum by rows, each in float64 and by one thread: it does not depend on the number of threads."""
    return float(values.sum(1, dtype=torch.float64).sum())
