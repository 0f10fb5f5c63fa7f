"""What a layer of the diagram consists of: attention with its indexer, a dense MLP, the experts, and what prediction
of several tokens begins with. Each part is drawn from `y` down, and gives back where it ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dsctl.show.drawing.architecture import Element
from dsctl.show.drawing.pieces import GAP, LEFT, MIDDLE, RIGHT, Drawn, lines, through, whole
from dsctl.show.drawing.sheet import SIGNS, Line, Point, needed, wrapped

BETWEEN = 22
LANE = (RIGHT - LEFT - 2 * BETWEEN) / 3
KEYS_AT, QUERIES_AT, INDEX_AT = (LEFT + n * (LANE + BETWEEN) for n in range(3))

_LAYER = "model.layers.{layer}."
_ATTENTION, _MLP = f"{_LAYER}self_attn.", f"{_LAYER}mlp."
KEYS = tuple(f"{_ATTENTION}{name}.weight" for name in ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj"))
QUERIES = tuple(f"{_ATTENTION}{name}.weight" for name in ("q_proj", "q_a_proj", "q_a_layernorm", "q_b_proj"))
# In which row of attention's lanes each stands.
PATH = {KEYS[0]: 0, KEYS[1]: 1, KEYS[2]: 2, QUERIES[0]: 0, QUERIES[1]: 0, QUERIES[2]: 1, QUERIES[3]: 2}
INDEX_QUERY = f"{_ATTENTION}indexer.wq_b.weight"
INDEX_KEY = f"{_ATTENTION}indexer.wk.weight"
INDEXER = (
    INDEX_QUERY,
    f"{_ATTENTION}indexer.weights_proj.weight",
    INDEX_KEY,
    *(f"{_ATTENTION}indexer.k_norm.{name}" for name in ("weight", "bias")),
)
OUTPUT = f"{_ATTENTION}o_proj.weight"
ATTENDING = (*KEYS, *QUERIES, *INDEXER, OUTPUT)
ROUTER = f"{_MLP}gate.weight", f"{_MLP}gate.e_score_correction_bias"


class Bank(NamedTuple):
    """The parameters of a layer's experts: their router, the routed ones, the shared ones; the last of each is down."""

    router: tuple[str, ...]
    routed: tuple[str, ...]
    shared: tuple[str, ...]


def _gated(prefix: str) -> tuple[str, str, str]:
    return f"{prefix}gate_proj.weight", f"{prefix}up_proj.weight", f"{prefix}down_proj.weight"


DENSE, SHARED, ROUTED = _gated(_MLP), _gated(f"{_MLP}shared_experts."), _gated(f"{_MLP}experts.{{expert}}.")
EXPERTS = (*ROUTER, *ROUTED, *SHARED)
BANK = Bank(ROUTER, ROUTED, SHARED)
INPUT_NORM, MLP_NORM = f"{_LAYER}input_layernorm.weight", f"{_LAYER}post_attention_layernorm.weight"
TOKEN = f"{_LAYER}embed_tokens.weight", f"{_LAYER}enorm.weight"
STATE = f"{_LAYER}hnorm.weight", f"{_LAYER}eh_proj.weight"
PREDICTED = f"{_LAYER}shared_head.norm.weight", f"{_LAYER}shared_head.head.weight"


def prediction(drawn: Drawn, y: float) -> float:
    """The next token and the last layer's hidden state, each normed, side by side into one matrix."""
    width, ends = MIDDLE - LEFT - BETWEEN / 2, []
    said = ((LEFT, TOKEN, "the next token"), (RIGHT - width, STATE[:1], "the last layer's hidden state"))
    for x, templates, note in said:
        drawn.sheet.label(x + width / 2, y + 9, note, "middle")
        ends.append((x + width / 2, _stack(drawn, drawn.take(*templates), x, y + 16, width)))
    low = y + drawn.row("joined", max(at for _, at in ends) - y)
    pieces = drawn.take(STATE[1])
    if pieces:
        for end, (x, at) in zip((MIDDLE - 40, MIDDLE + 40), ends, strict=True):
            drawn.sheet.line((x, at), (x, low + 12), (end, low + 12), (end, low + GAP + 4))
        low = _stack(drawn, pieces, MIDDLE - 150, low + GAP + 4, 300)
    return low


def _stack(drawn: Drawn, pieces: Iterable[Element], x: float, y: float, width: float) -> float:
    for number, piece in enumerate(pieces):
        if number:
            drawn.sheet.down(x + width / 2, y, y + GAP, drawn.hidden)
            y += GAP
        height = drawn.row(piece.template, needed(lines([piece], width, through(piece))))
        drawn.box([piece], x, y, width, height, through(piece))
        y += height
    return y


def attention(drawn: Drawn, y: float) -> float:
    """Latent attention: what is cached, the queries, the indexer that chooses among earlier tokens, and the output."""
    sheet, top = drawn.sheet, y
    low = y + 22
    keys, queries, indexer = drawn.take(*KEYS), drawn.take(*QUERIES), drawn.take(*INDEXER)
    ends = [
        (KEYS_AT + LANE / 2, _path(drawn, keys, KEYS_AT, low), _last(drawn, keys)),
        (QUERIES_AT + LANE / 2, _path(drawn, queries, QUERIES_AT, low), _last(drawn, queries)),
    ]
    middles = [x for x, _, _ in ends]
    if indexer:
        ends.append((INDEX_AT + LANE / 2, _indexer(drawn, indexer, low), f"top {drawn.number('index_topk')}"))
        middles.append(INDEX_AT + LANE / 2)
    spread(drawn, top, low, middles)
    bottom = top + drawn.row("paths", max(at for _, at, _ in ends) - top)
    if not indexer and drawn.other is not None and any(template in drawn.other for template in INDEXER):
        said = [Line("no indexer"), Line("nothing is chosen:"), Line("all earlier tokens count")]
        sheet.box(INDEX_AT, low, LANE, bottom - low, said, shape="ghost")
    for x, at, label in ends:
        sheet.down(x, at, bottom + GAP + 4)
        sheet.label(x + 5, bottom + 17, label)
    y = bottom + GAP + 4
    y += _core(drawn, bool(indexer), y)
    for piece in drawn.take(OUTPUT):
        sheet.down(MIDDLE, y, y + GAP, _heads(drawn, piece.shape[-1], ("v_head_dim",)))
        height = drawn.row(OUTPUT, needed(lines([piece], 300)))
        drawn.box([piece], MIDDLE - 150, y + GAP, 300, height)
        y += GAP + height
    return y


def spread(drawn: Drawn, top: float, low: float, middles: Sequence[float]) -> None:
    """From the middle above to several places below."""
    drawn.sheet.line((MIDDLE, top), (MIDDLE, top + 8), head=False)
    drawn.sheet.line((min([*middles, MIDDLE]), top + 8), (max([*middles, MIDDLE]), top + 8), head=False)
    for x in middles:
        drawn.sheet.down(x, top + 8, low)


def _path(drawn: Drawn, pieces: Sequence[Element], x: float, y: float) -> float:
    """Boxes at the heights that they have on both sides and in both lanes."""
    last, before = y, ""
    for piece in pieces:
        row = PATH[piece.template]
        height = drawn.row(f"path {row}", needed(lines([piece], LANE)))
        at = y + sum(drawn.row(f"path {above}", 0) + GAP for above in range(row))
        if before or row:
            drawn.sheet.down(x + LANE / 2, last, at, before)
        drawn.box([piece], x, at, LANE, height)
        last, before = at + height, _out(drawn, piece)
    return last


def _out(drawn: Drawn, piece: Element) -> str:
    """What leaves a matrix or norm, taken apart where it is a latent with its rotary part."""
    size = piece.shape[0]
    latent, rotary = (drawn.config.get(name) for name in ("kv_lora_rank", "qk_rope_head_dim"))
    if piece.template == KEYS[0] and type(latent) is int and type(rotary) is int and latent + rotary == size:
        return f"{latent:,} + {rotary:,}, cached"
    return f"{size:,}"


def _last(drawn: Drawn, pieces: Sequence[Element]) -> str:
    if not pieces:
        return ""
    value = "v_head_dim" if pieces[-1].template == KEYS[-1] else "qk_rope_head_dim"
    return _heads(drawn, pieces[-1].shape[0], ("qk_nope_head_dim", value))


def _heads(drawn: Drawn, size: int, fields: tuple[str, ...]) -> str:
    """A size as heads times what each has, where config.json says so."""
    heads, parts = drawn.config.get("num_attention_heads"), [drawn.config.get(name) for name in fields]
    if type(heads) is not int or not all(type(part) is int for part in parts):
        return f"{size:,}"
    known = [part for part in parts if type(part) is int]
    if heads * sum(known) != size:
        return f"{size:,}"
    each = " + ".join(f"{part:,}" for part in known)
    return f"{heads:,} x ({each})" if len(known) > 1 else f"{heads:,} x {each}"


def _indexer(drawn: Drawn, pieces: Sequence[Element], y: float) -> float:
    """The indexer in its frame: queries from the latent beside it, keys, weights of heads, and what is chosen."""
    sheet, inner, middle = drawn.sheet, LANE - 16, INDEX_AT + LANE / 2
    kind, pieces = whole(pieces)
    title = [Line("Lightning indexer", "title"), *([Line(SIGNS[kind] + kind, "mark")] if kind else [])]
    frame = sheet.frame(INDEX_AT, y, LANE, title, kind)
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
            _from_latent(drawn, at + height / 2)
        drawn.box(some, INDEX_AT + 8, at, inner, height, note)
        at += height + 6
    chosen = wrapped(f"scores every earlier token, keeps the top {drawn.number('index_topk')}", inner - 12)
    sheet.down(middle, at - 6, at + 8)
    sheet.box(INDEX_AT + 8, at + 8, inner, needed(chosen), chosen, shape="pill")
    sheet.close(frame, at + 16 + needed(chosen))
    return at + 16 + needed(chosen)


def _from_latent(drawn: Drawn, y: float) -> None:
    """The indexer's queries come from the normed latent of the queries, where there is one."""
    start = drawn.places.get(QUERIES[2])
    if start is not None:
        turn = start[0] + BETWEEN / 2
        drawn.sheet.line(start, (turn, start[1]), (turn, y), (INDEX_AT + 8, y))


def _core(drawn: Drawn, indexed: bool, y: float) -> float:
    """Where keys, values, queries and the choice meet."""
    heads, top = drawn.number("num_attention_heads"), drawn.number("index_topk")
    attended = f"the {top} tokens that an indexer chose" if indexed else "every earlier token"
    said = [
        Line(f"Attention, {heads} heads" if heads else "Attention", "title"),
        Line(f"a query attends to {attended}"),
    ]
    kind = ""
    other = drawn.other or {}
    latent = any(template in other for template in (*KEYS, *QUERIES))
    if latent and indexed != any(template in other for template in INDEXER):
        kind = "changed"
        words = ("every earlier token", "chosen ones")
        said.append(Line(SIGNS[kind] + " → ".join(words if indexed == drawn.after else words[::-1]), "mark"))
    height = drawn.row("core", needed(said))
    drawn.sheet.box(LEFT, y, RIGHT - LEFT, height, said, kind=kind, shape="pill")
    return height


def dense(drawn: Drawn, y: float) -> float:
    """A gated MLP: gate and up side by side, then down."""
    return _mlp(drawn, DENSE, drawn.take(*DENSE), (LEFT + 60, y), RIGHT - LEFT - 120, "dense")


def _mlp(drawn: Drawn, names: Sequence[str], pieces: Sequence[Element], at: Point, width: float, key: str) -> float:
    """Gate and up as one box where they are alike, then down, the last of `names`; the inner size on the arrow."""
    (x, y), middle = at, at[0] + width / 2
    first, down = ([one for one in pieces if (one.template == names[-1]) is last] for last in (False, True))
    if not first:
        first, down = down, []
    height = drawn.row(f"{key} gate", needed(lines(first, width)))
    drawn.box(first, x, y, width, height)
    y += height
    if down:
        drawn.sheet.down(middle, y, y + GAP, f"{first[0].shape[0]:,}")
        height = drawn.row(f"{key} down", needed(lines(down, width)))
        drawn.box(down, x, y + GAP, width, height)
        y += GAP + height
    return y


def experts(drawn: Drawn, y: float, bank: Bank = BANK) -> float:
    """The router, the routed experts that it chooses among, and the shared ones; their sums are added."""
    sheet, top, low = drawn.sheet, y, y + 22
    router, routed, shared = (drawn.take(*names) for names in bank)
    chosen, many = drawn.number("num_experts_per_tok"), drawn.number("n_routed_experts")
    lanes = [(KEYS_AT, router), (QUERIES_AT, routed), (INDEX_AT, shared)]
    spread(drawn, top, low, [x + LANE / 2 for x, pieces in lanes if pieces])
    ends, chosen_at = [], low
    if router:
        at = low
        for number, piece in enumerate(router):
            height = drawn.row(f"router {number}", needed(lines([piece], LANE, through(piece))))
            drawn.box([piece], KEYS_AT, at, LANE, height, through(piece))
            at += height + 8
        hashed = [piece.some for piece in router if piece.stored == "I64"]
        tables = f"; {hashed[0] or 'in all layers'} by the token alone" if hashed else ""
        said = wrapped(f"chooses {chosen} of {many} per token{tables}", LANE - 16)
        sheet.down(KEYS_AT + LANE / 2, at - 8, at + 6)
        sheet.box(KEYS_AT, at + 6, LANE, needed(said), said, shape="pill")
        chosen_at = at + 6 + needed(said) / 2
        ends.append(at + 6 + needed(said))
    per_token = f", {chosen} per token" if chosen else ""
    count = drawn.number("n_shared_experts")
    for x, names, pieces, name, words in (
        (QUERIES_AT, bank.routed, routed, "routed", f"{many} routed experts{per_token}"),
        (INDEX_AT, bank.shared, shared, "shared", f"{count} shared expert{'s' * (count != '1')}, for every token"),
    ):
        if pieces:
            ends.append(_expert(drawn, names, pieces, (x, low), (name, words)))
            if router and names is bank.routed:
                _choice(drawn, chosen_at, ends[-1])
    bottom = top + drawn.row("experts", max(ends) - top)
    tails = [x + LANE / 2 for x, pieces in lanes[1:] if pieces]
    for x in tails:
        sheet.line((x, ends[-1]), (x, bottom + 10), head=False)
    sheet.line((min([*tails, MIDDLE]), bottom + 10), (max([*tails, MIDDLE]), bottom + 10), head=False)
    sheet.down(MIDDLE, bottom + 10, bottom + 24)
    said = [Line("sum of what the experts give" if routed and shared else "sum of the experts")]
    sheet.box(MIDDLE - 110, bottom + 24, 220, needed(said), said, shape="pill")
    return bottom + 24 + needed(said)


def _choice(drawn: Drawn, y: float, bottom: float) -> None:
    """From the choice to the frame of the routed experts, which ends above it where a router has many parts."""
    start, turn, end = KEYS_AT + LANE, KEYS_AT + LANE + BETWEEN / 2, min(y, bottom - 20)
    elbow = ((turn, y), (turn, end)) if end < y else ()
    drawn.sheet.line((start, y), *elbow, (QUERIES_AT, end))


def _expert(drawn: Drawn, names: Sequence[str], pieces: Sequence[Element], at: Point, said: tuple[str, str]) -> float:
    (x, y), (key, words) = at, said
    kind, pieces = whole(pieces)
    title = [line._replace(kind="title") for line in wrapped(words, LANE - 24, "title")]
    title += [Line(SIGNS[kind] + kind, "mark")] if kind else []
    frame = drawn.sheet.frame(x, y, LANE, title, kind)
    top = y + drawn.row("expert titles", 10 + 15 * len(title))
    bottom = _mlp(drawn, names, pieces, (x + 8, top), LANE - 16, key) + 8
    drawn.sheet.close(frame, y + drawn.row("expert frames", bottom - y))
    return y + drawn.row("expert frames", bottom - y)
