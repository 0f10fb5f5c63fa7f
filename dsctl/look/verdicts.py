"""What a parameter is to that of its source: kinds of verdicts, and verdicts in the light of each other. Data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dsctl.core.amounts import plural

# From best to worst: the same bytes; the same values in another form; the bytes that dsctl's encoder gives; those it
# gives with the scales that are stored; as near as codes can be with the scales that are stored; anything else.
MOVED, EXACT, ENCODED, KEPT, ROUNDED, OTHER = "moved", "exact", "encoded", "kept", "rounded", "other"
KINDS = (MOVED, EXACT, ENCODED, KEPT, ROUNDED, OTHER)
# Kinds of parameters that are the source's.
SAME = KINDS[:-1]
# Kinds that a changed bit would not leave.
_BYTES = (MOVED, EXACT, ENCODED)
# From this share of a kind of parameters on, the rest of them is odd.
USUAL = 0.9


@dataclass(slots=True)
class Tally:
    """The verdict on some values: the worst kind, and the place and size of what is other.

    `rows` and `columns` are the first and last ones with other values (columns count through all dimensions but the
    first). `parts` counts the bytes that differ by stored part if both sides have the same form. Over the other values,
    `signal` and `noise` are the sums of squares of the source's values and of the differences, `largest` is the largest
    difference.
    """

    kind: str = MOVED
    values: int = 0
    others: int = 0
    rows: tuple[int, int] | None = None
    columns: tuple[int, int] | None = None
    parts: dict[str, int] = field(default_factory=dict)
    signal: float = 0.0
    noise: float = 0.0
    largest: float = 0.0
    broken: str = ""

    def add(self, more: Tally) -> None:
        """Add the verdict on further values of the same parameter."""
        self.kind = max(self.kind, more.kind, key=KINDS.index)
        self.values, self.others = self.values + more.values, self.others + more.others
        self.rows, self.columns = _around(self.rows, more.rows), _around(self.columns, more.columns)
        for part, count in more.parts.items():
            self.parts[part] = self.parts.get(part, 0) + count
        self.signal, self.noise = self.signal + more.signal, self.noise + more.noise
        self.largest = max(self.largest, more.largest)
        self.broken = self.broken or more.broken

    @property
    def relative(self) -> float | None:
        """The differences' size by that of the source's values (root mean squares); None if it is no number."""
        finite = self.signal > 0 and math.isfinite(self.signal) and math.isfinite(self.noise)
        return math.sqrt(self.noise / self.signal) if finite else None


def _around(one: tuple[int, int] | None, other: tuple[int, int] | None) -> tuple[int, int] | None:
    if one is None or other is None:
        return one or other
    return min(one[0], other[0]), max(one[1], other[1])


class Judged(NamedTuple):
    """A parameter, the forms of both sides, and its verdict. `same_form`: the same bits mean the same on both sides.

    `block` has the rows and columns that share a scale in this checkpoint. `looks_like` is the parameter of the source
    whose first row it has instead.
    """

    name: str
    template: str
    role: str
    shape: tuple[int, ...]
    formats: tuple[str, str]
    same_form: bool
    block: tuple[int, int]
    tally: Tally
    looks_like: str = ""

    @property
    def kind(self) -> str:
        return self.tally.kind

    @property
    def where(self) -> str:
        """The other values in words: how many, in which rows and columns or block, and how far off."""
        tally = self.tally
        if tally.broken:
            return tally.broken
        if not tally.others and self.same_form:
            return f"has the source's form but not its bytes ({self._stored})"
        if not tally.others:
            return "as near as its form allows, although nearly all others of its form are exact: perhaps a changed bit"
        far = f", off by {100 * tally.relative:.3g} % of their size" if tally.relative is not None else ""
        bytes_ = f" ({self._stored})" if tally.parts else ""
        return f"{tally.others:,} of {plural(tally.values, 'value')} differ{self._place}{bytes_}{far}"

    @property
    def _place(self) -> str:
        rows, columns, (high, wide) = self.tally.rows, self.tally.columns, self.block
        if rows is None or columns is None or not self.shape:
            return ""
        if self.tally.others > 1 and high > 1 and wide and {one // high for one in rows} == {rows[0] // high}:
            if {one // wide for one in columns} == {columns[0] // wide}:
                return f" in block [{rows[0] // high}, {columns[0] // wide}]"
        across = f", {_range('column', columns)}" if len(self.shape) > 1 else ""
        return f" in {_range('row' if len(self.shape) > 1 else 'place', rows)}{across}"

    @property
    def _stored(self) -> str:
        """The stored parts that differ, in words; empty if both sides have different forms."""
        return ", ".join(f"{plural(count, 'byte')} of its {part}" for part, count in self.tally.parts.items())


def _range(noun: str, ends: tuple[int, int]) -> str:
    first, last = ends
    return f"{noun} {first}" if first == last else f"{noun}s {first} to {last}"


def settled(judged: Iterable[Judged], whole: bool) -> tuple[tuple[Judged, ...], tuple[Judged, ...]]:
    """The verdicts in the light of the others, and the odd ones among them.

    A form does not round its own values: a parameter in the source's form that has other bytes is other, unless most
    parameters of its kind were quantized again. A parameter of another form that does not have the encoder's bytes,
    although nearly all others of its form do, and most of its template, is other if those are exact, and odd if they
    were rounded. A sample, which is not `whole`, does not show that.
    """
    judged = tuple(judged)
    kinds: dict[tuple[object, ...], dict[str, int]] = {}
    for one in judged:
        counts = kinds.setdefault(_kind(one), dict.fromkeys(KINDS, 0))
        counts[one.kind] += 1
    found = tuple(_in_light(one, kinds[_kind(one)]) for one in judged)
    better: dict[str, list[bool]] = {}
    for one in found:
        better.setdefault(one.template, []).append(one.kind in _BYTES)
    suspects = (one for one in found if one.kind in (KEPT, ROUNDED) and whole)
    alone = [one for one in suspects if 2 * sum(better[one.template]) > len(better[one.template])]
    for one in alone:
        if _are_usual(kinds[_kind(one)], (MOVED, EXACT)):
            one.tally.kind = OTHER
    return found, tuple(one for one in alone if one.kind != OTHER and _are_usual(kinds[_kind(one)], _BYTES))


def _kind(one: Judged) -> tuple[object, ...]:
    return ("same form",) if one.same_form else one.formats


def _in_light(one: Judged, counts: Mapping[str, int]) -> Judged:
    again = counts[ENCODED] + counts[KEPT] + counts[ROUNDED]
    if not one.same_form or one.kind not in (ENCODED, KEPT, ROUNDED) or 2 * again > sum(counts.values()):
        return one
    one.tally.kind = OTHER
    return one


def _are_usual(counts: Mapping[str, int], kinds: Iterable[str]) -> bool:
    """Whether nearly all parameters are of these kinds."""
    return sum(counts[kind] for kind in kinds) >= USUAL * sum(counts.values())
