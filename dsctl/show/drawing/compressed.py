"""A layer of V4 in a block diagram: residual streams around attention and experts, compressors, grouped output.

deepseek-ai/DeepSeek-V4-Flash inference/model.py. Each function draws a part from `y` down, and returns the `y` at which
the part ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from dsctl.show.drawing import parts, shared, trunk
from dsctl.show.drawing.architecture import Element
from dsctl.show.drawing.names import EMBEDDING, MAIN, Layer
from dsctl.show.drawing.pieces import GAP, LEFT, MIDDLE, RIGHT, WIDE, Drawn, lines, through, whole
from dsctl.show.drawing.sheet import SIGNS, Line, Point, needed, wrapped

BETWEEN = 8
# The lanes of attention: the window's keys, compressors, queries and the indexer.
SLIM, PRESSED, ASKED = 78, 92, 66
# The sink is this far to the right of the path of the window's keys.
SINK_AT = 26
KEYS_AT, COMPRESSORS_AT = LEFT, LEFT + SLIM + BETWEEN
QUERIES_AT, INDEXER_AT = COMPRESSORS_AT + PRESSED + BETWEEN, RIGHT - SLIM


def many_streams(drawn: Drawn) -> str:
    """The number of residual streams; empty if config.json does not give it."""
    return drawn.number("hc_mult")


def pill(drawn: Drawn, text: str, y: float, key: str, width: float = WIDE) -> float:
    """Draw a computed value in the middle; return where it ends."""
    said = wrapped(text, width - 20)
    height = drawn.row(key, needed(said))
    drawn.sheet.box(MIDDLE - width / 2, y, width, height, said, shape="pill")
    return y + height


def embedding(drawn: Drawn, y: float) -> float:
    """The embedding, and the streams that begin with it."""
    y = drawn.chain((EMBEDDING,), y)
    if not many_streams(drawn):
        return y
    drawn.sheet.down(MIDDLE, y, y + GAP, drawn.hidden)
    return pill(drawn, f"copied to {many_streams(drawn)} residual streams", y + GAP, "streams")


def layer(drawn: Drawn, layer: Layer, y: float) -> float:
    """Attention and experts, each between a hyper-connection that reads the streams and one that writes them."""
    y = _site(drawn, layer, "attn", y, partial(_attention, drawn, layer))
    return _site(drawn, layer, "ffn", y + 8, lambda at: parts.experts(drawn, at, layer.bank))


def _site(drawn: Drawn, layer: Layer, what: str, y: float, inside: Callable[[float], float]) -> float:
    """Draw one site: the input is read from the streams, normed and computed, and the output is written back to the
    streams."""
    sheet, many = drawn.sheet, many_streams(drawn)
    pieces = drawn.take(*layer.site(what))
    if pieces:
        # V4.1 reads the streams as the hyper-connection before this one computed.
        after = ", for the next one" if shared.kinds(drawn.config) else ""
        note = f"hyper-connection: {many} streams → 1{after}"
        height = drawn.row(f"{what} streams", needed(lines(pieces, RIGHT - LEFT, note)))
        drawn.box(pieces, LEFT, y, RIGHT - LEFT, height, note)
        trunk.into(drawn, y + height / 2)
        sheet.down(MIDDLE, y + height, y + height + GAP, drawn.hidden)
        y += height + GAP
    else:
        y = trunk.read(drawn, y)
    y = drawn.chain(layer.norms[what == "ffn" :][:1], y)
    # A part that begins with several paths draws its own arrow heads.
    sheet.down(MIDDLE, y, y + GAP, drawn.hidden, head=False)
    y = inside(y + GAP)
    if not pieces:
        return trunk.write(drawn, y)
    sheet.down(MIDDLE, y, y + GAP, drawn.hidden)
    end = pill(drawn, f"mixes the {many} streams and adds the output", y + GAP, f"{what} written", RIGHT - LEFT)
    trunk.back(drawn, (y + GAP + end) / 2)
    return end


def column(drawn: Drawn, pieces: Iterable[Element], x: float, y: float, width: float, key: str = "") -> float:
    """Boxes below each other; the arrow to the next box is labelled with the output of the previous one."""
    before = ""
    for number, piece in enumerate(pieces):
        if number:
            drawn.sheet.down(x + width / 2, y, y + GAP, before)
            y += GAP
        height = drawn.row(f"{key} {number}" if key else piece.key, needed(lines([piece], width)))
        drawn.box([piece], x, y, width, height)
        y, before = y + height, f"{piece.shape[0]:,}"
    return y


def _attention(drawn: Drawn, layer: Layer, y: float) -> float:
    """Keys of the window, compressed entries, queries, and the choice of entries; then the core and the output."""
    sheet, top, low = drawn.sheet, y, y + 22
    keys, queries, sink = drawn.take(*layer.keys), drawn.take(*layer.queries), drawn.take(layer.sink)
    compressors = drawn.take(*layer.compressor("attn."))
    indexer = (
        drawn.take(*layer.chooses), drawn.take(*layer.compressor("attn.indexer."), *layer.shared_keys),
    )  # fmt: skip
    ends = [(KEYS_AT + SINK_AT / 2, _window(drawn, keys, low), drawn.number("head_dim"))]
    if compressors:
        ends.append((COMPRESSORS_AT + PRESSED / 2, _compressors(drawn, compressors, low), drawn.number("head_dim")))
    ends.append((QUERIES_AT + ASKED / 2, column(drawn, queries, QUERIES_AT, low, ASKED, "path"), _heads(drawn)))
    if any(indexer):
        ends.append((INDEXER_AT + SLIM / 2, _indexer(drawn, layer, indexer, low), f"top {drawn.number('index_topk')}"))
    parts.spread(drawn, top, low, [KEYS_AT + SLIM / 2, *(x for x, _, _ in ends[1:])])
    height = drawn.row("sink", needed(lines(sink, SLIM - SINK_AT))) if sink else 0
    bottom = top + drawn.row("paths", max([ends[0][1] + 12 + height, *(at for _, at, _ in ends)]) - top)
    if sink:
        drawn.box(sink, KEYS_AT + SINK_AT, bottom - height, SLIM - SINK_AT, height)
        sheet.down(KEYS_AT + (SLIM + SINK_AT) / 2, bottom, bottom + parts.MEETING)
    for x, at, label in ends:
        parts.meet(drawn, x, at, bottom, label, 36 if x > INDEXER_AT else ASKED)
    y = bottom + parts.MEETING
    y += _core(drawn, y, bool(sink), layer == MAIN, {piece.variant for piece in indexer[1]})
    return _output(drawn, layer, y)


def _window(drawn: Drawn, keys: Sequence[Element], y: float) -> float:
    """The window's vectors: the end of each is rotated, and serves as the rope key (inference/model.py, Attention)."""
    y = column(drawn, keys, KEYS_AT, y, SLIM, "path")
    size, rope, window = (drawn.number(name) for name in ("head_dim", "qk_rope_head_dim", "sliding_window"))
    if not keys or not rope:
        return y
    for shape, text in (
        ("pill", f"RoPE on the last {rope} of {size}: the rope key"),
        ("cache", f"cached: the last {window} tokens"),
    ):
        said = wrapped(text, SLIM - 12)
        height = drawn.row(f"window {shape}", needed(said))
        drawn.sheet.down(KEYS_AT + SLIM / 2, y, y + GAP, size if shape == "pill" else "")
        drawn.sheet.box(KEYS_AT, y + GAP, SLIM, height, said, shape=shape)
        y += GAP + height
    return y


def _heads(drawn: Drawn) -> str:
    return f"{drawn.number('num_attention_heads')} x {drawn.number('head_dim')}"


def _frame(
    drawn: Drawn, title: str, pieces: Sequence[Element], at: Point, width: float
) -> tuple[int, float, list[Element]]:
    """Begin a frame in a lane. A mark that all of its pieces share is drawn once, at the frame. Return where its
    contents begin."""
    (x, y), (kind, inner) = at, whole(pieces)
    places = {piece.some for piece in inner}
    said = wrapped(title, width - 10, "lane")
    said += wrapped(places.pop(), width - 10) if len(places) == 1 else []
    said += [Line(SIGNS[kind] + kind, "mark")] if kind else []
    frame = drawn.sheet.frame(x, y, width, said, kind, 6)
    common = len({piece.some for piece in inner}) == 1
    plain = [piece._replace(name=piece.name.removeprefix("compressor.")) for piece in inner]
    return (
        frame,
        y + drawn.row(title, 10 + 15 * len(said)),
        [piece._replace(some="") if common else piece for piece in plain],
    )


def _compressors(drawn: Drawn, pieces: Sequence[Element], y: float) -> float:
    """A box for each ratio, with its layers and its parameters."""
    frame, at, pieces = _frame(drawn, "Compressor", pieces, (COMPRESSORS_AT, y), PRESSED)
    for number, variant in enumerate(dict.fromkeys(piece.variant for piece in pieces)):
        same = [piece for piece in pieces if piece.variant == variant]
        note = f"{variant.removeprefix('ratio ')} tokens → 1" if variant else shared.pressed(drawn.config)
        height = drawn.row(f"compressor {number}", needed(lines(same, PRESSED - 12, note)))
        drawn.box(same, COMPRESSORS_AT + 6, at, PRESSED - 12, height, note)
        at += height + 6
    size, rope = drawn.number("head_dim"), drawn.number("qk_rope_head_dim")
    kept = "cached, for later layers too" if shared.kinds(drawn.config) else "cached: one entry each"
    for shape, text in (("pill", f"RoPE on the last {rope} of {size}"), ("cache", kept)):
        said = wrapped(text, PRESSED - 18)
        height = drawn.row(f"compressor {shape}", needed(said))
        drawn.sheet.down(COMPRESSORS_AT + PRESSED / 2, at - 6, at + 8)
        drawn.sheet.box(COMPRESSORS_AT + 6, at + 8, PRESSED - 12, height, said, shape=shape)
        at += 14 + height
    drawn.sheet.close(frame, at + 2)
    return at + 2


def _indexer(drawn: Drawn, layer: Layer, both: tuple[list[Element], list[Element]], y: float) -> float:
    """The indexer: queries from the latent beside it, weights of heads, keys of compressed entries, and the chosen
    entries."""
    sheet, inner, middle = drawn.sheet, SLIM - 12, INDEXER_AT + SLIM / 2
    frame, at, pieces = _frame(drawn, "Lightning indexer", [*both[0], *both[1]], (INDEXER_AT, y), SLIM)
    many = len(both[0])
    groups = [*([piece] for piece in pieces[:many]), *([pieces[many:]] if pieces[many:] else [])]
    for number, some in enumerate(groups):
        note = f"{some[0].variant.removeprefix('ratio ')} tokens → 1 key" if some[0].variant else through(some[0])
        height = drawn.row(f"indexer {number}", needed(lines(some, inner, note)))
        start = drawn.places.get(layer.queries[1]) if some[0].template == layer.chooses[0] else None
        if start is not None:
            turn = start[0] + BETWEEN / 2
            sheet.line(start, (turn, start[1]), (turn, at + height / 2), (INDEXER_AT + 6, at + height / 2))
        drawn.box(some, INDEXER_AT + 6, at, inner, height, note)
        at += height + 6
    chosen = wrapped(shared.chosen(drawn.config, drawn.number("index_topk")), inner - 8)
    sheet.down(middle, at - 6, at + 8)
    sheet.box(INDEXER_AT + 6, at + 8, inner, needed(chosen), chosen, shape="pill")
    sheet.close(frame, at + 16 + needed(chosen))
    return at + 16 + needed(chosen)


def _core(drawn: Drawn, y: float, sinks: bool, main: bool, chosen: set[str]) -> float:
    """The core, in which keys, entries, queries and the choice meet, with the entries that a query attends to in each
    kind of layer. An indexer chooses among entries of the variants `chosen`."""
    heads, window = drawn.number("num_attention_heads"), drawn.number("sliding_window")
    width, rope = RIGHT - LEFT - 16, drawn.number("qk_rope_head_dim")
    said = [Line(f"Attention, {heads} heads{', each with a sink' * sinks}", "title")]
    said += wrapped("one vector for all heads, key and value at once", width)
    if rope:
        said += wrapped(f"RoPE turns the last {rope} values of queries and vectors, and turns the output back", width)
    ratios, count = drawn.config.get("compress_ratios"), drawn.config.get("num_hidden_layers")
    kinds = ratios[:count] if main and isinstance(ratios, list) and type(count) is int else []
    said += wrapped(f"a query attends to the {window} tokens before it", width)
    if main and shared.kinds(drawn.config):
        said += wrapped(shared.attended(drawn.config, drawn.number("index_topk")), width)
        kinds = []
    for ratio in sorted({ratio for ratio in kinds if type(ratio) is int and ratio}):
        which = f"the top {drawn.number('index_topk')}" if f"ratio {ratio}" in chosen else "every one"
        attended = f"in {kinds.count(ratio)} layers also to {which} of the {ratio}-token entries"
        said += wrapped(attended, width)
    height = drawn.row("core", needed(said))
    drawn.sheet.box(LEFT, y, RIGHT - LEFT, height, said, shape="pill")
    return height


def _output(drawn: Drawn, layer: Layer, y: float) -> float:
    """The output: each group of heads passes through its own matrix, and one last matrix joins the groups."""
    groups, rank, before = drawn.number("o_groups"), drawn.number("o_lora_rank"), _heads(drawn)
    for number, piece in enumerate(drawn.take(*layer.output)):
        drawn.sheet.down(MIDDLE, y, y + GAP, before)
        grouped = f"{groups} groups, each {piece.shape[-1]:,} → {rank}" if piece.template == layer.output[0] else ""
        note = grouped or through(piece)
        height = drawn.row(f"output {number}", needed(lines([piece], WIDE, note)))
        drawn.box([piece], MIDDLE - WIDE / 2, y + GAP, WIDE, height, note)
        y, before = y + GAP + height, f"{groups} x {rank}"
    return y


def collapsed(drawn: Drawn, layer: Layer, y: float) -> float:
    """The reduction of all streams to one, the last norm and the head."""
    pieces, rest = drawn.take(*layer.site("head")), layer.end[-2:]
    if not pieces and shared.kinds(drawn.config):
        y = pill(drawn, f"{many_streams(drawn)} streams → 1, as the last layer computed", y, "head streams")
        if drawn.has(rest):
            drawn.sheet.down(MIDDLE, y, y + GAP, drawn.hidden)
            y += GAP
    if pieces:
        note = f"{many_streams(drawn)} streams → 1"
        height = drawn.row("head streams", needed(lines(pieces, WIDE, note)))
        drawn.box(pieces, MIDDLE - WIDE / 2, y, WIDE, height, note)
        y += height
        if drawn.has(rest):
            drawn.sheet.down(MIDDLE, y, y + GAP, drawn.hidden)
            y += GAP
    return drawn.chain(rest, y)
