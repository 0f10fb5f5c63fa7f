"""One stage of a block diagram while it is drawn. Parameters are taken from it as they are drawn, so that none is
forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dsctl.show.drawing.architecture import Element, Stage
from dsctl.show.drawing.sheet import SIGNS, WIDTH, Line, Sheet, needed, wrapped

LEFT, RIGHT = 48, WIDTH - 14
MIDDLE = (LEFT + RIGHT) / 2
# The width of a box alone in the middle.
WIDE = 240
GAP = 26
MOST_OTHERS = 12


class Drawn:
    """A stage of one side on its sheet. `like` has, by part, the stage in which an equal part is already drawn; `other`
    are the pieces of the other side's stage, None if that side lacks the stage; `after` is true for side B."""

    def __init__(self, sheet: Sheet, stage: Stage, other: Stage | None, like: Mapping[str, str], after: bool) -> None:
        self.sheet, self.title, self.config, self.like = sheet, stage.title, stage.config, like
        self.left = {piece.key: piece for piece in whole(stage.pieces)[1]}
        self.other = {piece.key: piece for piece in other.pieces} if other else None
        self.after = after
        self.places: dict[str, tuple[float, float]] = {}

    @property
    def hidden(self) -> str:
        return self.number("hidden_size")

    @property
    def streams(self) -> str:
        """The size of the state between layers: the hidden size, times the number of residual streams if there are
        several."""
        return streams(self.config)

    def number(self, field: str) -> str:
        """A number from config.json; empty if it is absent."""
        value = self.config.get(field)
        return f"{value:,}" if type(value) is int else ""

    def has(self, templates: Iterable[str]) -> bool:
        wanted = set(templates)
        return any(piece.template in wanted for piece in self.left.values())

    def take(self, *templates: str) -> list[Element]:
        """Take the pieces with these names, in every variant, that exist and are not yet drawn."""
        keys = [key for name in templates for key, piece in self.left.items() if piece.template == name]
        return [self.left.pop(key) for key in keys]

    def row(self, key: str, needed: float) -> float:
        return self.sheet.row(f"{self.title}/{key}", needed)

    def box(self, pieces: Sequence[Element], x: float, y: float, width: float, height: float, note: str = "") -> None:
        """Draw pieces together as one box."""
        kinds = dict.fromkeys(piece.kind for piece in pieces)
        kind = next(iter(kinds)) if len(kinds) == 1 else "changed"
        self.sheet.box(x, y, width, height, lines(pieces, width, note), kind=kind, hint=_hint(pieces))
        # The middle of its right side.
        self.places |= {piece.key: (x + width, y + height / 2) for piece in pieces}

    def chain(self, templates: Iterable[str], y: float) -> float:
        """Boxes below each other in the middle, with the size of the state between them."""
        width, pieces = float(WIDE), self.take(*templates)
        for number, piece in enumerate(pieces):
            if number:
                self.sheet.down(MIDDLE, y, y + GAP, self.hidden)
                y += GAP
            height = self.row(piece.key, needed(lines([piece], width, through(piece))))
            self.box([piece], MIDDLE - width / 2, y, width, height, through(piece))
            y += height
        return y

    def compact(self, part: tuple[str, ...], what: str, y: float) -> float:
        """Draw one box for a part that is drawn in a different stage."""
        pieces, like = self.take(*part), self.like[what]
        said = [Line(what, "title"), Line(f"as in the {like[0].lower()}{like[1:]}")]
        kinds = list(dict.fromkeys(piece.kind for piece in pieces if piece.kind))
        for kind in kinds:
            roles = ", ".join(dict.fromkeys(piece.role for piece in pieces if piece.kind == kind))
            said += wrapped(f"{SIGNS[kind]}{kind}: {roles}", RIGHT - LEFT - 40, "mark")
        alike = len(kinds) == 1 and all(piece.kind for piece in pieces)
        height = self.row(what, needed(said))
        shown = kinds[0] if alike else "changed" if kinds else ""
        self.sheet.box(LEFT, y, RIGHT - LEFT, height, said, kind=shown, hint=_hint(pieces))
        return y + height

    def rest(self, y: float) -> float:
        """Draw the remaining pieces, three per row."""
        pieces, width = list(self.left.values()), (RIGHT - LEFT - 20) / 3
        self.left.clear()
        for start in range(0, min(len(pieces), MOST_OTHERS), 3):
            some = pieces[start : start + 3]
            height = max(needed(lines([piece], width, through(piece))) for piece in some)
            y += 10
            for number, piece in enumerate(some):
                self.box([piece], LEFT + number * (width + 10), y, width, height, through(piece))
            y += height
        if len(pieces) > MOST_OTHERS:
            self.sheet.label(MIDDLE, y + 16, f"and {len(pieces) - MOST_OTHERS:,} more, in the tables below", "middle")
            y += 20
        return y


def streams(config: Mapping[str, Any]) -> str:
    """The width of the state between layers: 4,096; 4 x 4,096 with four residual streams; empty if unknown."""
    size, many = config.get("hidden_size"), config.get("hc_mult")
    if type(size) is not int:
        return ""
    return f"{many:,} x {size:,}" if type(many) is int else f"{size:,}"


def lines(pieces: Sequence[Element], width: float, note: str = "") -> list[Line]:
    """Lines with names, stored formats, and differences in words."""
    found = wrapped(", ".join(piece.name for piece in pieces), width - 10, "name")
    stored = ", ".join(dict.fromkeys(piece.stored for piece in pieces if piece.storage))
    both = ", ".join(filter(None, (note, stored)))
    for text in filter(None, [both] if Line(both).width <= width - 10 else (note, stored)):
        found += wrapped(text, width - 10)
    for some in dict.fromkeys(piece.some for piece in pieces if piece.some):
        found += wrapped(some, width - 10)
    for kind, words in dict.fromkeys((piece.kind, piece.words) for piece in pieces if piece.kind):
        whose = [piece.name for piece in pieces if (piece.kind, piece.words) == (kind, words)]
        lead = "" if len(whose) == len(pieces) else f"{', '.join(whose)}: "
        for number, word in enumerate(words):
            found += marked(f"{SIGNS[kind] if not number else ''}{lead if not number else ''}{word}", width - 8)
    return found


def marked(text: str, width: float) -> list[Line]:
    """A mark in as few lines as possible. One that is too long for a line breaks at its arrow first."""
    before, arrow, after = text.partition(" → ")
    parts = [text] if not arrow or Line(text, "mark").width <= width else [before, f"→ {after}"]
    return [line for part in parts for line in wrapped(part, width, "mark")]


def whole(pieces: Sequence[Element]) -> tuple[str, tuple[Element, ...]]:
    """added or removed if this is true of all pieces, and the pieces: the frame then has the mark, and not each box in
    it."""
    kinds = {piece.kind for piece in pieces}
    kind = kinds.pop() if len(kinds) == 1 else ""
    if kind not in ("added", "removed"):
        return "", tuple(pieces)
    return kind, tuple(piece._replace(kind="", words=()) for piece in pieces)


def through(piece: Element) -> str:
    """The input and output sizes: a matrix [out, in] takes its input from the last dimension, an embedding or a
    different table from its first."""
    looked_up = piece.role in ("embedding", "engram tables") or piece.stored == "I64"
    shape = piece.shape if looked_up else piece.shape[::-1]
    return " → ".join(f"{size:,}" for size in shape)


def _hint(pieces: Iterable[Element]) -> str:
    found = (f"{one.key} {list(one.shape)} {one.stored} {one.some} {', '.join(one.words)}" for one in pieces)
    return "\n".join(text.strip() for text in found)
