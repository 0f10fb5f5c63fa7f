"""Latent attention in a block diagram: the cached latent with its rope key, the queries, the indexer, and the core.

DeepSeek-V2 paper (arXiv 2405.04434), section 2.1; DeepSeek-V3.2 report, section 2.1. Each part is drawn from `y` down.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dsctl.show.drawing.architecture import Element
from dsctl.show.drawing.parts import (
    CLOSE,
    INDEX_KEY,
    INDEX_QUERY,
    INDEXER,
    KEYS,
    MEETING,
    OUTPUT,
    QUERIES,
    meet,
    spread,
)
from dsctl.show.drawing.pieces import GAP, LEFT, MIDDLE, RIGHT, WIDE, Drawn, lines, through, whole
from dsctl.show.drawing.sheet import SIGNS, Line, needed, wrapped

# The row of each parameter in attention's lanes; the cache is between rows 1 and 2.
PATH = {KEYS[0]: 0, KEYS[1]: 1, KEYS[2]: 2, QUERIES[0]: 0, QUERIES[1]: 0, QUERIES[2]: 1, QUERIES[3]: 2}


class Lanes(NamedTuple):
    """The lanes of attention's paths: latent, rope key and queries, each `width` wide, and the wider indexer."""

    width: float
    between: float

    def at(self, number: int) -> float:
        return LEFT + number * (self.width + self.between)

    def middle(self, number: int) -> float:
        return self.at(number) + self.wide(number) / 2

    def wide(self, number: int) -> float:
        return RIGHT - self.at(INDEX) if number == INDEX else self.width

    @property
    def joined(self) -> float:
        """The width of two lanes."""
        return 2 * self.width + self.between


LATENT, ROPE, QUERY, INDEX = range(4)


def attention(drawn: Drawn, y: float) -> float:
    """Latent attention: the cached vectors, the queries, the indexer that chooses among earlier tokens, and the
    output."""
    sheet, top, low = drawn.sheet, y, y + 22
    keys, queries, indexer = drawn.take(*KEYS), drawn.take(*QUERIES), drawn.take(*INDEXER)
    there = drawn.other is not None and any(template in drawn.other for template in INDEXER)
    lanes = Lanes(75, CLOSE) if indexer or there else Lanes(102, CLOSE)
    ends = [*_kept(drawn, keys, lanes, low), _path(drawn, queries, lanes, QUERY, low)]
    middles = [LEFT + lanes.joined / 2, lanes.middle(QUERY)]
    if indexer:
        ends.append((INDEX, _indexer(drawn, indexer, lanes, low), f"top {drawn.number('index_topk')}"))
        middles.append(lanes.middle(INDEX))
    spread(drawn, top, low, middles)
    bottom = top + drawn.row("paths", max(at for _, at, _ in ends) - top)
    if there and not indexer:
        said = wrapped("no indexer: attends to every earlier token", lanes.wide(INDEX) - 8)
        sheet.box(lanes.at(INDEX), low, lanes.wide(INDEX), bottom - low, said, shape="ghost")
    for lane, at, label in ends:
        meet(drawn, lanes.middle(lane), at, bottom, label, 36 if lane == INDEX else lanes.width - 4)
    y = bottom + MEETING
    y += _core(drawn, bool(indexer), y)
    for piece in drawn.take(OUTPUT):
        sheet.down(MIDDLE, y, y + GAP, _heads(drawn, piece.shape[-1], ("v_head_dim",)))
        height = drawn.row(OUTPUT, needed(lines([piece], WIDE)))
        drawn.box([piece], MIDDLE - WIDE / 2, y + GAP, WIDE, height)
        y += GAP + height
    return y


def _row(drawn: Drawn, y: float, row: int) -> float:
    """The height at which a row of attention's paths begins, the same on both sides and in all lanes."""
    above = ["path 0", "path 1", "path cache"] if row == 2 else ["path 0"][:row]
    return y + sum(height + GAP for key in above if (height := drawn.row(key, 0)))


def _kept(drawn: Drawn, pieces: Sequence[Element], lanes: Lanes, y: float) -> list[tuple[int, float, str]]:
    """The latent and the rope key, which are cached, and each head's keys and values. Return the ends of paths with
    their labels.

    kv_a_proj_with_mqa gives both: kv_lora_rank values and qk_rope_head_dim (DeepSeek-V2 paper, section 2.1.3).
    """
    sheet, latent, rope = drawn.sheet, drawn.number("kv_lora_rank"), drawn.number("qk_rope_head_dim")
    found, middle = {piece.template: [piece] for piece in pieces}, lanes.middle(LATENT)
    if not found:
        return []
    at = norm = _row(drawn, y, 1)
    if KEYS[0] in found:
        _boxed(drawn, found[KEYS[0]], lanes.at(LATENT), y, lanes.joined, "path 0")
        at = y + drawn.row("path 0", 0)
    said = wrapped(f"RoPE: rope key k_pe, {rope} values, one for all heads", lanes.width - 12)
    height = drawn.row("path 1", needed(said))
    sheet.down(lanes.middle(ROPE), at, norm, rope)
    sheet.box(lanes.at(ROPE), norm, lanes.width, height, said, shape="pill")
    if KEYS[1] in found:
        sheet.down(middle, at, norm, latent)
        at = _boxed(drawn, found[KEYS[1]], lanes.at(LATENT), norm, lanes.width, "path 1")
    cache = norm + height + GAP
    said = wrapped(f"cached per token: latent {latent}, rope key {rope}", lanes.joined - 8)
    sheet.down(middle, at, cache, latent)
    sheet.down(lanes.middle(ROPE), norm + height, cache, rope)
    height = drawn.row("path cache", needed(said))
    sheet.box(lanes.at(LATENT), cache, lanes.joined, height, said, shape="cache")
    ends = [(LATENT, cache + height, latent), (ROPE, cache + height, f"rope key, {rope}")]
    if KEYS[2] in found:
        row, (piece,) = _row(drawn, y, 2), found[KEYS[2]]
        sheet.down(middle, cache + height, row, latent)
        bottom = _boxed(drawn, [piece], lanes.at(LATENT), row, lanes.width, "path 2")
        ends[0] = LATENT, bottom, _heads(drawn, piece.shape[0], ("qk_nope_head_dim", "v_head_dim"))
    return ends


def _boxed(drawn: Drawn, pieces: Sequence[Element], x: float, y: float, width: float, row: str) -> float:
    """A box as high as its row. Return where it ends."""
    height = drawn.row(row, needed(lines(pieces, width)))
    drawn.box(pieces, x, y, width, height)
    return y + height


def _path(drawn: Drawn, pieces: Sequence[Element], lanes: Lanes, lane: int, y: float) -> tuple[int, float, str]:
    """Boxes at the heights that they have on both sides and in every lane. Return where they end, and their output."""
    last, before = y, ""
    for piece in pieces:
        row = PATH[piece.template]
        at = _row(drawn, y, row)
        if before or row:
            drawn.sheet.down(lanes.middle(lane), last, at, before)
        last = _boxed(drawn, [piece], lanes.at(lane), at, lanes.width, f"path {row}")
        before = f"{piece.shape[0]:,}"
    label = _heads(drawn, pieces[-1].shape[0], ("qk_nope_head_dim", "qk_rope_head_dim")) if pieces else ""
    return lane, last, label


def _heads(drawn: Drawn, size: int, fields: tuple[str, ...]) -> str:
    """A size as heads times the size per head, if config.json gives it. If a head has several parts, they are on a
    separate line."""
    heads, parts = drawn.config.get("num_attention_heads"), [drawn.config.get(name) for name in fields]
    if type(heads) is not int or not all(type(part) is int for part in parts):
        return f"{size:,}"
    known = [part for part in parts if type(part) is int]
    if heads * sum(known) != size:
        return f"{size:,}"
    each = " + ".join(f"{part:,}" for part in known)
    return f"{heads:,} x\n({each})" if len(known) > 1 else f"{heads:,} x {each}"


def _indexer(drawn: Drawn, pieces: Sequence[Element], lanes: Lanes, y: float) -> float:
    """The indexer in its frame: queries from the latent beside it, keys, weights of heads, and the chosen tokens."""
    sheet, x, width, middle = drawn.sheet, lanes.at(INDEX), lanes.wide(INDEX), lanes.middle(INDEX)
    inner, (kind, pieces) = width - 12, whole(pieces)
    title = wrapped("Lightning indexer", width - 12, "lane")
    title += [Line(SIGNS[kind] + kind, "mark")] if kind else []
    frame = sheet.frame(x, y, width, title, kind, 6)
    at = y + 10 + 15 * len(title)
    norms = [piece for piece in pieces if len(piece.shape) == 1]
    groups = [[piece] for piece in pieces if piece not in norms] + [norms] * bool(norms)
    for some in groups:
        note = through(some[0]) if some is not norms else ""
        if some is norms and groups[-2:-1] == [[piece for piece in pieces if piece.template == INDEX_KEY]]:
            at += GAP - 6
            sheet.down(middle, at - GAP, at, f"{norms[0].shape[0]:,}")
        height = needed(lines(some, inner, note))
        if some[0].template == INDEX_QUERY:
            _from_latent(drawn, x + 6, at + height / 2)
        drawn.box(some, x + 6, at, inner, height, note)
        at += height + 6
    chosen = wrapped(f"scores every earlier token, keeps the top {drawn.number('index_topk')}", inner - 8)
    sheet.down(middle, at - 6, at + 8)
    sheet.box(x + 6, at + 8, inner, needed(chosen), chosen, shape="pill")
    sheet.close(frame, at + 16 + needed(chosen))
    return at + 16 + needed(chosen)


def _from_latent(drawn: Drawn, x: float, y: float) -> None:
    """The arrow from the normed latent of the queries, if it exists, to the indexer's queries."""
    start = drawn.places.get(QUERIES[2])
    if start is not None:
        turn = start[0] + CLOSE / 2
        drawn.sheet.line(start, (turn, start[1]), (turn, y), (x, y))


def _core(drawn: Drawn, indexed: bool, y: float) -> float:
    """The core, in which keys, values, queries and the choice meet."""
    heads, top = drawn.number("num_attention_heads"), drawn.number("index_topk")
    plain, rope = drawn.number("qk_nope_head_dim"), drawn.number("qk_rope_head_dim")
    width = RIGHT - LEFT - 16
    said = [Line(f"Attention, {heads} heads" if heads else "Attention", "title")]
    if plain and rope:
        matched = f"a head matches {plain} values of its query with its own key, and {rope} with the rope key"
        said += wrapped(matched, width)
    attended = f"the {top} tokens chosen" if indexed else "every earlier token"
    said += wrapped(f"a query attends to {attended}", width)
    kind = ""
    other = drawn.other or {}
    latent = any(template in other for template in (*KEYS, *QUERIES))
    if latent and indexed != any(template in other for template in INDEXER):
        kind = "changed"
        words = ("every earlier token", "chosen ones")
        said += wrapped(SIGNS[kind] + " → ".join(words if indexed == drawn.after else words[::-1]), width, "mark")
    height = drawn.row("core", needed(said))
    drawn.sheet.box(LEFT, y, RIGHT - LEFT, height, said, kind=kind, shape="pill")
    return height
