"""V4.1's n-gram tables (Engram) in a block diagram: rows that a token looks up, added to the residual streams.

deepseek-ai/DeepSeek-V4.1-Flash, inference/model.py (Engram) and inference/engram.py.
"""

from __future__ import annotations

from dsctl.show.drawing import trunk
from dsctl.show.drawing.compressed import BETWEEN, pill
from dsctl.show.drawing.names import named
from dsctl.show.drawing.pieces import GAP, LEFT, MIDDLE, RIGHT, WIDE, Drawn, lines, through
from dsctl.show.drawing.sheet import SIGNS, Line, needed

_PREFIX = "layers.{layer}.engram."
TABLES, JOINED, GATE = (
    named(_PREFIX, "embed.weight"), named(_PREFIX, "wkv.weight"), named(_PREFIX, "q_weight k_weight"),
)  # fmt: skip
ALL = (*TABLES, *JOINED, *GATE)
# The width of the frame around the lookup.
INNER = RIGHT - LEFT - 16


def lookup(drawn: Drawn, y: float) -> float:
    """Rows of the tables, their projection to keys and a value, and the gates with which streams take the value."""
    sheet, config = drawn.sheet, drawn.config
    tables, joined, gate = (drawn.take(*names) for names in (TABLES, JOINED, GATE))
    every = [*tables, *joined, *gate]
    kinds = {piece.kind for piece in every}
    kind = kinds.pop() if len(kinds) == 1 else ""
    common = {piece.some for piece in (*joined, *gate)}
    where = f", {common.pop()}" if len(common) == 1 else ""
    said = [Line(f"Engram{where}", "title"), *([Line(SIGNS[kind] + kind, "mark")] if kind else [])]
    plain = kind in ("added", "removed")
    tables, joined, gate = (
        [piece._replace(kind="" if plain else piece.kind, words=() if plain else piece.words) for piece in some]
        for some in (tables, joined, gate)
    )
    joined, gate = ([piece._replace(some="") for piece in some] if where else some for some in (joined, gate))
    frame = sheet.frame(LEFT, y, RIGHT - LEFT, said, kind, 8)
    at = y + drawn.row("engram title", 12 + 15 * len(said))
    longest, heads, width = (config.get(f"engram_{name}") for name in ("max_ngram_size", "n_heads", "head_dim"))
    rows = (longest - 1) * heads if type(longest) is int and type(heads) is int else 0
    at = pill(drawn, f"n-grams of 2 to {longest} tokens, hashed to {rows} rows", at, "engram hashes", INNER)
    each = (INNER - BETWEEN * (len(tables) - 1)) / max(1, len(tables))
    if tables:
        height = drawn.row("engram tables", max(needed(lines([piece], each, through(piece))) for piece in tables))
        for number, piece in enumerate(tables):
            x = LEFT + 8 + number * (each + BETWEEN)
            sheet.down(x + each / 2, at, at + GAP, f"{rows} rows" if not number else "")
            drawn.box([piece], x, at + GAP, each, height, through(piece))
            sheet.line((x + each / 2, at + GAP + height), (x + each / 2, at + GAP + height + 10), head=False)
        at += GAP + height + 10
        ends = LEFT + 8 + each / 2, RIGHT - 8 - each / 2
        if len(tables) > 1:
            sheet.line((ends[0], at), (ends[1], at), head=False)
    size = f"{rows * width:,}" if rows and type(width) is int else ""
    for some, note, before in (
        (joined, through(joined[0]) if joined else "", size),
        (gate, "gate: each stream against its key", f"{_keys(drawn)} keys, 1 value"),
    ):
        if some:
            sheet.down(MIDDLE, at, at + GAP, before)
            height = drawn.row(f"engram {some[0].name}", needed(lines(some, WIDE, note)))
            drawn.box(some, MIDDLE - WIDE / 2, at + GAP, WIDE, height, note)
            if some is gate:
                trunk.into(drawn, at + GAP + height / 2, MIDDLE - WIDE / 2)
            at += GAP + height
    sheet.down(MIDDLE, at, at + GAP)
    end = pill(drawn, "adds gate x value to every stream", at + GAP, "engram added", INNER)
    sheet.close(frame, end + 8)
    trunk.back(drawn, end - 10)
    return end + 8


def _keys(drawn: Drawn) -> str:
    return drawn.number("hc_mult") or "1"
