"""The differences between the values of two checkpoints: sums per parameter, per role and in total. Data, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from dsctl.checkpoint.scales import ScaleCounts
from dsctl.core.amounts import plural
from dsctl.core.boxes import Box
from dsctl.core.params import Param, in_order
from dsctl.core.tables import html, table, text_table
from dsctl.core.visible import shortened, visible
from dsctl.plan.steps import Step

# Floats are binned by their exponent's eight bits; the first bin is zero.
EXPONENT_ONE = 127
# Larger parameters are cut for several threads; as float32.
SHARE_BYTES = 1 << 30


@dataclass(slots=True)
class Sums:
    """Sums over pairs of values a, b with d = b - a. `bins` counts |d| / max(|a|, |b|) by its exponent.

    Pairs where either value is NaN or infinite count in `not_finite`, and in `identical` if both are the same; they
    are in no other sum.
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
        """Add the sums of another."""
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
        """10 log10 of sum a^2 over sum (b - a)^2, in dB; None if it is infinite or not a number."""
        if not (self.aa > 0 and self.dd > 0) or self.not_finite > self.identical:
            return None
        return 10 * math.log10(self.aa / self.dd)

    @property
    def cosine(self) -> float | None:
        """The cosine of the angle between a and b; None if either is zero."""
        if self.same and self.aa > 0:
            return 1.0
        return self.ab / math.sqrt(self.aa * self.bb) if self.aa > 0 and self.bb > 0 else None

    @property
    def share(self) -> float:
        """The share of identical values, 0 to 1."""
        return self.identical / self.values if self.values else 1.0


class Compared(NamedTuple):
    """One parameter, its formats on both sides, and its sums."""

    name: str
    role: str
    shape: tuple[int, ...]
    formats: tuple[str, str]
    sums: Sums
    layer: int | None = None
    scales: tuple[ScaleCounts, ScaleCounts] = (ScaleCounts(), ScaleCounts())

    def below(self, snr: float) -> bool:
        """Whether it is not identical, and its signal-to-noise ratio is below `snr` or undefined."""
        return not self.sums.same and (self.sums.snr is None or self.sums.snr < snr)


class Reshaped(NamedTuple):
    """A parameter with different shapes."""

    name: str
    ours: tuple[int, ...]
    theirs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The compared parameters, in the order of the architecture, and the names that could not be compared."""

    places: tuple[str, str]
    compared: tuple[Compared, ...]
    only_ours: tuple[str, ...]
    only_theirs: tuple[str, ...]
    reshaped: tuple[Reshaped, ...]
    not_numbers: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Comparison {' and '.join(shortened(place, 50) for place in self.places)}: {self.summary}>"

    def __str__(self) -> str:
        """Return the text that `print` shows: both places, and the error by role."""
        sides = [f"{side}  {visible(place)}" for side, place in zip("AB", self.places, strict=True)]
        return "\n".join([*sides, self.summary, "", *text_table("By role", _COLUMNS, self._rows)])

    def _repr_html_(self) -> str:
        """Return the same as HTML for a notebook."""
        sides = "".join(f"<p>{side}: {html(place)}</p>" for side, place in zip("AB", self.places, strict=True))
        return f"<h3>{html(self.summary)}</h3>{sides}{table('By role', _COLUMNS, self._rows)}"

    @property
    def summary(self) -> str:
        """The number of compared parameters, and the share of identical values, in words."""
        share = "all values identical" if self.total.same else f"{self.total.share:.2%} of values identical"
        left = len(self.only_ours) + len(self.only_theirs) + len(self.reshaped) + len(self.not_numbers)
        rest = f", {left:,} not compared" if left else ""
        return f"{plural(len(self.compared), 'parameter')} compared, {share}{rest}"

    @property
    def _rows(self) -> Iterator[tuple[object, ...]]:
        for role, (number, sums) in (*self.roles.items(), ("all", (len(self.compared), self.total))):
            snr = "inf" if sums.same else "-" if sums.snr is None else f"{sums.snr:.2f}"
            yield role, number, sums.values, snr, f"{sums.max_abs:.3g}", f"{sums.share:.2%}"

    @property
    def total(self) -> Sums:
        return _total(self.compared)

    @property
    def scales(self) -> tuple[ScaleCounts, ScaleCounts]:
        """The block scales of both sides."""
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
        """Whether all parameters of both sides were compared."""
        return not (self.only_ours or self.only_theirs or self.reshaped or self.not_numbers)

    def worst(self, count: int) -> list[Compared]:
        """The parameters with the lowest signal-to-noise ratio, without identical ones."""
        apart = [one for one in self.compared if not one.sums.same]
        return sorted(apart, key=lambda one: -math.inf if one.sums.snr is None else one.sums.snr)[:count]


_COLUMNS = "role", "parameters", "values", "SNR dB", "max abs", "identical"


def _total(compared: Iterable[Compared]) -> Sums:
    total = Sums()
    for one in compared:
        total.add(one.sums)
    return total


def histogram(sums: Sums) -> Iterator[tuple[int, int]]:
    """Counts of values by the power of two at or below their relative error, ascending, without empty bins."""
    return ((place - EXPONENT_ONE, count) for place, count in sorted(sums.bins.items()) if place)


class Pair(NamedTuple):
    """Rows of a parameter of both sides: two steps that read it, and the dtype to which a quantized side is decoded."""

    param: Param
    ours: Step
    theirs: Step
    dtype: str
    formats: tuple[str, str]
    rows: Box

    @property
    def nbytes(self) -> int:
        """Bytes to read: of the whole parameter, its rows' share."""
        both = self.ours.read_bytes + self.theirs.read_bytes
        if self.rows.shape == self.param.shape:
            return both
        first, last = self.rows.start[0], self.rows.stop[0]
        return both * last // self.param.shape[0] - both * first // self.param.shape[0]

    @property
    def is_first(self) -> bool:
        return not any(self.rows.start)

    def bands(self, band_bytes: int) -> Iterable[Box]:
        """Its rows in bands that cut no block of either side, of at most about `band_bytes` of float32."""
        both = Step(self.param.name, self.param.shape, "recode", self.ours.reads, self.theirs.reads)
        return self.rows.bands(both.band_rows(band_bytes))

    def shares(self) -> Iterator[Pair]:
        """Itself, or its rows in shares for several threads if it is large: one table of V4.1 has 98 GB."""
        if 4 * self.rows.size <= SHARE_BYTES:
            yield self
            return
        for rows in self.bands(SHARE_BYTES):
            yield self._replace(rows=rows)
