"""Bars for a page as HTML elements, not as a picture: their text is as large on a phone as on a desktop.

A chart's bars are horizontal, one per line, or upright, side by side. All begin at 0 on a linear axis. In a horizontal
bar every part is at least a few pixels long. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

# The factor by which an axis exceeds the largest line if a bar is cut, and the largest empty share of an axis.
MARGIN, EMPTY = 1.08, 0.4

Words = Callable[[float], str]


class Part(NamedTuple):
    """A part of a bar: its description in words, its colour, and its length in percent of the axis."""

    words: str
    colour: str
    percent: float


class Bar(NamedTuple):
    """A bar: its name, its size in words, its parts from 0 on, and whether it is longer than the axis."""

    name: str
    words: str
    parts: tuple[Part, ...]
    cut: bool = False


class Rule(NamedTuple):
    """A line at a value, with its name."""

    words: str
    percent: float


def shares(sizes: Mapping[str, float], words: Words, colours: Mapping[str, str]) -> tuple[Bar, ...]:
    """A bar for each part of a whole, the largest first; the axis is the whole."""
    whole = sum(sizes.values()) or 1
    ordered = sorted(sizes.items(), key=lambda one: -one[1])
    return tuple(
        Bar(name, f"{words(value)}, {share(value, whole)}", (_part(name, value, whole, colours[name], words),))
        for name, value in ordered
        if value > 0
    )


def share(part: float, whole: float) -> str:
    """94.9 %; 0.03 % if it is small."""
    percent = 100 * part / whole
    return f"{percent:.1f} %" if percent >= 1 else f"{percent:.2f} %" if percent >= 0.01 else "< 0.01 %"


def stacked(
    series: Mapping[str, Mapping[str, float]], words: Words, colours: Mapping[str, str], axis: float
) -> tuple[Bar, ...]:
    """A bar for each name, with its parts in order. A bar that is longer than the axis is cut there."""
    return tuple(_stack(name, parts, words, colours, axis) for name, parts in series.items())


def _stack(name: str, parts: Mapping[str, float], words: Words, colours: Mapping[str, str], axis: float) -> Bar:
    whole, room, found = sum(parts.values()), axis, []
    for what, value in parts.items():
        if value > 0 and room > 0:
            drawn = _part(what, min(value, room), axis, colours[what], words)
            found.append(drawn._replace(words=f"{what}: {words(value)}"))
        room -= value
    return Bar(name, words(whole), tuple(found), whole > axis)


def _part(what: str, value: float, axis: float, colour: str, words: Words) -> Part:
    return Part(f"{what}: {words(value)}", colour, round(100 * value / axis, 3))


def fitted(sizes: Sequence[float], lines: Sequence[float]) -> float:
    """The end of an axis for bars of these sizes and lines at these values.

    It is the longest bar, or the next line above it if that leaves less than `EMPTY` of the axis without a bar. If only
    some bars are longer than every line, these are cut beyond the last line.
    """
    longest, highest = max(sizes, default=1), max(lines, default=0)
    within = [size for size in sizes if size <= highest * MARGIN]
    if within and len(within) < len(sizes) and longest > highest * MARGIN:
        return highest * MARGIN
    above = min((line for line in lines if line >= longest), default=longest)
    return max(above * 1.02 if above * 1.02 * (1 - EMPTY) <= longest else longest * 1.02, 1)


def rules(lines: Mapping[str, float], axis: float) -> tuple[Rule, ...]:
    """The lines within the axis, in ascending order. Lines with the same value are joined."""
    names: dict[float, list[str]] = {}
    for name, value in sorted(lines.items(), key=lambda one: one[1]):
        if value <= axis:
            names.setdefault(value, []).append(name)
    return tuple(Rule(", ".join(found), round(100 * value / axis, 3)) for value, found in names.items())
