"""How far apart two checkpoints are, in numbers: sums per parameter, per role and in all. Data, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from dsctl.checkpoint.scales import ScaleCounts
from dsctl.core.params import Param, in_order
from dsctl.plan.steps import Step

# Floats are binned by their exponent's eight bits; the first bin is zero.
EXPONENT_ONE = 127


@dataclass(slots=True)
class Sums:
    """What is summed over pairs of values a, b with d = b - a. `bins` counts |d| / max(|a|, |b|) by its exponent.

    Pairs of which one is NaN or infinite count in `not_finite`, and as `identical` where both are the same; they enter
    no other sum.
    """

    values: int = 0
    identical: int = 0
    not_finite: int = 0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    dd: float = 0.0
    max_abs: float = 0.0
    max_rel: float = 0.0
    bins: dict[int, int] = field(default_factory=dict)

    def add(self, other: Sums) -> None:
        """Take in another's."""
        for name in ("values", "identical", "not_finite", "aa", "bb", "ab", "dd"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_abs, self.max_rel = max(self.max_abs, other.max_abs), max(self.max_rel, other.max_rel)
        for place, count in other.bins.items():
            self.bins[place] = self.bins.get(place, 0) + count

    @property
    def same(self) -> bool:
        return self.identical == self.values

    @property
    def snr(self) -> float | None:
        """10 log10 of sum a^2 over sum (b - a)^2, in dB; None where it is infinite or is no number."""
        if not (self.aa > 0 and self.dd > 0) or self.not_finite > self.identical:
            return None
        return 10 * math.log10(self.aa / self.dd)

    @property
    def cosine(self) -> float | None:
        """Of the angle between a and b; None where either is zero."""
        if self.same and self.aa > 0:
            return 1.0
        return self.ab / math.sqrt(self.aa * self.bb) if self.aa > 0 and self.bb > 0 else None

    @property
    def share(self) -> float:
        """Of values that are identical, 0 to 1."""
        return self.identical / self.values if self.values else 1.0


class Compared(NamedTuple):
    """One parameter, how either side stores it, and what was summed over it."""

    name: str
    role: str
    shape: tuple[int, ...]
    formats: tuple[str, str]
    sums: Sums
    layer: int | None = None
    scales: tuple[ScaleCounts, ScaleCounts] = (ScaleCounts(), ScaleCounts())

    def below(self, snr: float) -> bool:
        """Whether it is not identical and its signal-to-noise ratio is less than this, or none."""
        return not self.sums.same and (self.sums.snr is None or self.sums.snr < snr)


class Reshaped(NamedTuple):
    """A parameter whose shapes differ."""

    name: str
    ours: tuple[int, ...]
    theirs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Parameters in the order of the architecture; names that only one side has, or that hold no comparable numbers."""

    places: tuple[str, str]
    compared: tuple[Compared, ...]
    only_ours: tuple[str, ...]
    only_theirs: tuple[str, ...]
    reshaped: tuple[Reshaped, ...]
    not_numbers: tuple[str, ...]

    @property
    def total(self) -> Sums:
        return _total(self.compared)

    @property
    def scales(self) -> tuple[ScaleCounts, ScaleCounts]:
        """The block scales of either side."""
        counts = ScaleCounts(), ScaleCounts()
        for one in self.compared:
            for total, side in zip(counts, one.scales, strict=True):
                total.add(side)
        return counts

    @property
    def roles(self) -> dict[str, tuple[int, Sums]]:
        """Count and sums of the parameters of each role."""
        found: dict[str, list[Compared]] = {}
        for one in self.compared:
            found.setdefault(one.role, []).append(one)
        return {role: (len(found[role]), _total(found[role])) for role in in_order(found)}

    @property
    def whole(self) -> bool:
        """Whether everything on either side was compared."""
        return not (self.only_ours or self.only_theirs or self.reshaped or self.not_numbers)

    def worst(self, count: int) -> list[Compared]:
        """The parameters with the least signal-to-noise ratio, without those that are identical."""
        apart = [one for one in self.compared if not one.sums.same]
        return sorted(apart, key=lambda one: -math.inf if one.sums.snr is None else one.sums.snr)[:count]


def _total(compared: Iterable[Compared]) -> Sums:
    total = Sums()
    for one in compared:
        total.add(one.sums)
    return total


def histogram(sums: Sums) -> Iterator[tuple[int, int]]:
    """Counts of values by the power of two at or below their relative error, ascending, without empty ones."""
    return ((place - EXPONENT_ONE, count) for place, count in sorted(sums.bins.items()) if place)


class Pair(NamedTuple):
    """A parameter of both sides: two reading steps and the dtype in which a quantized side is decoded."""

    param: Param
    ours: Step
    theirs: Step
    dtype: str
    formats: tuple[str, str]

    @property
    def nbytes(self) -> int:
        return self.ours.read_bytes + self.theirs.read_bytes
