"""The residual stream in a block diagram: a trunk at the left, from the embedding to the head. Every block reads it and
adds to it.

With hyper-connections it is several streams. Each function draws from `y` down and returns where it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dsctl.show.drawing.pieces import GAP, LEFT, MIDDLE, Drawn
from dsctl.show.drawing.sheet import Line, Sheet

AT, APART, MOST = 30.0, 3.0, 4
RADIUS = 8.0
# The distance of a sum below its block.
BELOW = 16.0


def many(config: Mapping[str, Any]) -> int:
    """The number of lines of the trunk: the streams of config.json, at most `MOST`."""
    streams = config.get("hc_mult")
    return max(1, min(streams, MOST)) if type(streams) is int else 1


def begin(drawn: Drawn, y: float) -> float:
    """Draw from the middle, where a part ends at `y`, to a trunk that begins here."""
    turn = y + BELOW
    for x, off, kind in _lines(drawn.config):
        drawn.sheet.line(
            (MIDDLE + off, y), (MIDDLE + off, turn + off), (x, turn + off), (x, y + GAP), head=False, kind=kind
        )
    drawn.sheet.trunk = y + GAP
    return y + GAP


def grow(sheet: Sheet, config: Mapping[str, Any], y: float) -> None:
    """Draw the trunk down to `y`, if there is one."""
    if sheet.trunk is not None and y > sheet.trunk:
        for x, _, kind in _lines(config):
            sheet.line((x, sheet.trunk), (x, y), head=False, kind=kind)
        sheet.trunk = y


def _lines(config: Mapping[str, Any]) -> Iterator[tuple[float, float, str]]:
    """The position of each line of the trunk, its distance from the middle, and its style."""
    number = many(config)
    for stream in range(number):
        off = APART * (stream - (number - 1) / 2)
        yield AT + off, off, "trunk" if number == 1 else "stream"


def read(drawn: Drawn, y: float) -> float:
    """Draw from the trunk to the part that begins in the middle."""
    drawn.sheet.line((AT + _half(drawn), y + 6), (MIDDLE, y + 6), (MIDDLE, y + GAP))
    drawn.sheet.label(MIDDLE + 5, y + 20, drawn.hidden)
    return y + GAP


def end(drawn: Drawn, y: float) -> float:
    """Draw the end of the trunk, in the middle."""
    grow(drawn.sheet, drawn.config, y)
    turn, bottom = y + 6, y + GAP + 6
    for x, off, kind in _lines(drawn.config):
        drawn.sheet.line(
            (x, y), (x, turn - off), (MIDDLE + off, turn - off), (MIDDLE + off, bottom - 4), head=False, kind=kind
        )
    drawn.sheet.line((MIDDLE, bottom - 5), (MIDDLE, bottom))
    drawn.sheet.label(MIDDLE + 9, y + 22, drawn.streams)
    drawn.sheet.trunk = None
    return bottom


def write(drawn: Drawn, y: float) -> float:
    """Draw from the middle, where a block ends at `y`, to its sum with the trunk."""
    turn = y + BELOW
    drawn.sheet.line((MIDDLE, y), (MIDDLE, turn), (AT + RADIUS, turn))
    drawn.sheet.label(MIDDLE + 5, y + 12, drawn.hidden)
    _sum(drawn, turn)
    return turn + RADIUS + 4


def into(drawn: Drawn, y: float, x: float = LEFT) -> None:
    """Draw from the trunk straight into a box that begins at `x`, at `y`."""
    drawn.sheet.line((AT + _half(drawn), y), (x, y))


def back(drawn: Drawn, y: float) -> None:
    """Draw from a box at the left straight to a sum with the trunk, at `y`."""
    drawn.sheet.line((LEFT, y), (AT + RADIUS, y))
    _sum(drawn, y)


def _half(drawn: Drawn) -> float:
    return APART * (many(drawn.config) - 1) / 2


def _sum(drawn: Drawn, y: float) -> None:
    drawn.sheet.box(AT - RADIUS, y - RADIUS, 2 * RADIUS, 2 * RADIUS, [Line("+", "title")], shape="node")
