"""The elements of a block diagram: boxes, frames, arrows and text on a sheet, in pixels. Pure; a template draws it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

WIDTH = 400
LINE, PAD = 14, 7
SIGNS = {"added": "+ ", "removed": "\N{MINUS SIGN} ", "changed": "~ "}
# The width of a letter as a share of its size: in the page's font, in bold, and in the font of names.
PLAIN, BOLD, MONO = 0.53, 0.62, 0.61


Point = tuple[float, float]


class Line(NamedTuple):
    """A line of text: `kind` is name, note, mark, title or lane, the title of a narrow frame."""

    text: str
    kind: str = "note"

    @property
    def width(self) -> float:
        size, each = {"name": (12, MONO), "title": (13, BOLD), "lane": (12, BOLD), "mark": (12, BOLD)}.get(
            self.kind, (12, PLAIN)
        )
        return len(self.text) * size * each


class Rectangle(NamedTuple):
    """A rectangle with centred lines; `shape` is box, pill (something computed), cache (something kept for later
    tokens), node (a sum), ghost (something missing) or frame (its lines at the upper left, `indent` pixels from its
    left, with boxes inside)."""

    x: float
    y: float
    width: float
    height: float
    lines: tuple[Line, ...]
    kind: str = ""
    shape: str = "box"
    hint: str = ""
    indent: float = 10

    @property
    def baselines(self) -> list[tuple[float, float, Line]]:
        """The anchor of each line (its beginning or its middle), and its baseline."""
        if self.shape == "frame":
            return [(self.x + self.indent, self.y + 17 + n * LINE, line) for n, line in enumerate(self.lines)]
        first = self.y + (self.height - LINE * len(self.lines)) / 2 + 10.5
        return [(self.x + self.width / 2, first + n * LINE, line) for n, line in enumerate(self.lines)]


class Arrow(NamedTuple):
    """A line through points, horizontal or vertical, with or without a head at its end."""

    points: tuple[Point, ...]
    head: bool = True
    kind: str = ""

    @property
    def tip(self) -> tuple[Point, Point, Point]:
        """The corners of its head."""
        (x0, y0), (x, y) = self.points[-2:]
        if x == x0:
            back = y - 8 if y > y0 else y + 8
            return (x, y), (x - 4.5, back), (x + 4.5, back)
        back = x - 8 if x > x0 else x + 8
        return (x, y), (back, y - 4.5), (back, y + 4.5)


class Label(NamedTuple):
    """Text beside an arrow."""

    x: float
    y: float
    text: str
    anchor: str = "start"


class Slice(NamedTuple):
    """A part of a sheet, from `top` down."""

    title: str
    top: float
    height: float
    boxes: list[Rectangle]
    arrows: list[Arrow]
    labels: list[Label]


@dataclass
class Sheet:
    """One side's drawing. `heights` is shared by both sides, so that parts that both have stand side by side: a first
    pass over both finds the heights, a second one draws."""

    heights: dict[str, float]
    boxes: list[Rectangle] = field(default_factory=list)
    arrows: list[Arrow] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    height: float = 0
    cuts: list[tuple[float, str]] = field(default_factory=list)
    # The height from which the residual stream is not yet drawn; None without a residual stream.
    trunk: float | None = None

    @property
    def slices(self) -> Iterator[Slice]:
        """The sheet divided at its cuts, so that a printed page can end between them, with the parts that begin in each
        slice."""
        ends = [y for y, _ in self.cuts[1:]] + [self.height]
        for (top, title), bottom in zip(self.cuts, ends, strict=True):
            yield Slice(
                title,
                top,
                bottom - top,
                [box for box in self.boxes if top <= box.y < bottom],
                [arrow for arrow in self.arrows if top <= arrow.points[0][1] < bottom],
                [label for label in self.labels if top <= label.y < bottom],
            )

    def row(self, key: str, needed: float) -> float:
        """The height of the part with this name on both sides."""
        self.heights[key] = max(self.heights.get(key, 0), needed)
        return self.heights[key]

    def box(
        self, x: float, y: float, width: float, height: float, lines: Iterable[Line],
        kind: str = "", shape: str = "box", hint: str = "",
    ) -> None:  # fmt: skip
        self.boxes.append(Rectangle(x, y, width, height, tuple(lines), kind, shape, hint))

    def frame(self, x: float, y: float, width: float, lines: Iterable[Line], kind: str = "", indent: float = 10) -> int:
        """Begin a frame around the parts drawn next; `close` ends it."""
        self.boxes.append(Rectangle(x, y, width, 0, tuple(lines), kind, "frame", indent=indent))
        return len(self.boxes) - 1

    def close(self, frame: int, bottom: float) -> None:
        self.boxes[frame] = self.boxes[frame]._replace(height=bottom - self.boxes[frame].y)

    def down(self, x: float, top: float, bottom: float, label: str = "", head: bool = True) -> None:
        """An arrow straight down, its label to the right."""
        self.arrows.append(Arrow(((x, top), (x, bottom)), head))
        if label:
            self.labels.append(Label(x + 5, (top + bottom) / 2 + 3, label))

    def line(self, *points: Point, head: bool = True, kind: str = "") -> None:
        self.arrows.append(Arrow(points, head, kind))

    def label(self, x: float, y: float, text: str, anchor: str = "start") -> None:
        self.labels.append(Label(x, y, text, anchor))


def wrapped(text: str, width: float, kind: str = "note") -> list[Line]:
    """A text wrapped to this width, if its words allow it."""
    lines: list[str] = []
    for word in _words(text, width, kind):
        longer = f"{lines[-1]}{'' if kind == 'name' and lines[-1][-1] in '_.' else ' '}{word}" if lines else word
        if lines and Line(longer, kind).width <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return [Line(line, kind) for line in lines]


def _words(text: str, width: float, kind: str) -> Iterator[str]:
    """The words of a text; a name that is too long may break after each of its dots and underscores."""
    for word in text.split(" "):
        if kind == "name" and Line(word, kind).width > width:
            yield from re.findall(r"[^._]*[._]+|[^._]+", word)
        else:
            yield word


def needed(lines: Iterable[Line]) -> float:
    """The height of a box with these lines."""
    return LINE * len(tuple(lines)) + 2 * PAD
