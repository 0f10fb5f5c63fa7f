"""Regions of a tensor: half-open boxes of indices. Pure integers, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from operator import sub

import msgspec


class Box(msgspec.Struct, frozen=True, gc=False):
    """The indices i with start[d] <= i[d] < stop[d] for every dimension d."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Box:
        """The box of a whole tensor of this shape."""
        return _whole(tuple(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(map(sub, self.stop, self.start)) if any(self.start) else self.stop

    @property
    def size(self) -> int:
        """The number of elements (one for a scalar)."""
        return prod(self.shape)

    def intersect(self, other: Box) -> Box | None:
        """The intersection, or None if it is empty."""
        start = tuple(map(max, self.start, other.start))
        stop = tuple(map(min, self.stop, other.stop))
        if any(a >= b for a, b in zip(start, stop, strict=True)):
            return None
        return Box(start, stop)

    def contains(self, other: Box) -> bool:
        return all(a <= b for a, b in zip(self.start, other.start, strict=True)) and all(
            a >= b for a, b in zip(self.stop, other.stop, strict=True)
        )

    def moved(self, by: Sequence[int]) -> Box:
        """The same box with `by` added to every index."""
        return Box(
            tuple(a + d for a, d in zip(self.start, by, strict=True)),
            tuple(b + d for b, d in zip(self.stop, by, strict=True)),
        )

    def relative_to(self, origin: Sequence[int]) -> Box:
        """The same box counted from `origin`."""
        return self.moved([-o for o in origin])

    def part(self, dimension: int, index: int, count: int) -> Box:
        """Part `index` of `count` equal parts along one dimension; the length must divide."""
        length = self.stop[dimension] - self.start[dimension]
        if length % count:
            raise ValueError(f"{length} does not divide into {count} parts")
        step = length // count
        start, stop = list(self.start), list(self.stop)
        start[dimension] = self.start[dimension] + index * step
        stop[dimension] = start[dimension] + step
        return Box(tuple(start), tuple(stop))

    def padded_part(self, dimension: int, index: int, count: int) -> Box:
        """Part `index` of `count` parts of the same length along one dimension; the last ones are cut at the box's end.

        Every part but the first may be empty, if there are too many.
        """
        first, last = self.start[dimension], self.stop[dimension]
        step = -(-(last - first) // count)
        start, stop = list(self.start), list(self.stop)
        start[dimension] = min(first + index * step, last)
        stop[dimension] = min(start[dimension] + step, last)
        return Box(tuple(start), tuple(stop))

    def bands(self, rows: int) -> Iterable[Box]:
        """The box cut along its first dimension into bands of at most `rows` rows."""
        if not self.start:
            yield self
            return
        for first in range(self.start[0], self.stop[0], rows):
            yield Box((first, *self.start[1:]), (min(first + rows, self.stop[0]), *self.stop[1:]))


@lru_cache(4096)
def _whole(shape: tuple[int, ...]) -> Box:
    return Box((0,) * len(shape), shape)


def tiles(boxes: Iterable[Box], whole: Box) -> bool:
    """Whether the boxes cover `whole` exactly once: each inside it, none overlapping, sizes adding up."""
    seen: list[Box] = []
    for box in boxes:
        if not whole.contains(box) or any(box.intersect(other) for other in seen):
            return False
        seen.append(box)
    return sum(box.size for box in seen) == whole.size
