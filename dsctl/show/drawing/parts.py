"""Parts of a layer in the diagram other than attention: a dense MLP, the experts, and the beginning of multi-token
prediction.

Each function draws a part from `y` down, and returns where it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dsctl.show.drawing.architecture import PREDICTION, Element
from dsctl.show.drawing.pieces import GAP, LEFT, MIDDLE, RIGHT, WIDE, Drawn, lines, through, whole
from dsctl.show.drawing.sheet import SIGNS, Line, Point, needed, wrapped

# Between the lanes of experts, and between those of attention.
BETWEEN, CLOSE = 10, 8
LANE = (RIGHT - LEFT - 2 * BETWEEN) / 3
ROUTER_AT, ROUTED_AT, SHARED_AT = (LEFT + n * (LANE + BETWEEN) for n in range(3))
# The height between the paths of attention and their meeting point: room for two lines beside each arrow.
MEETING = 40

_LAYER = "model.layers.{layer}."
_ATTENTION, _MLP = f"{_LAYER}self_attn.", f"{_LAYER}mlp."
KEYS = tuple(f"{_ATTENTION}{name}.weight" for name in ("kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj"))
QUERIES = tuple(f"{_ATTENTION}{name}.weight" for name in ("q_proj", "q_a_proj", "q_a_layernorm", "q_b_proj"))
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
    """The parameters of a layer's experts: router, routed and shared experts. The last of each is the down
    projection."""

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
    """The next token and the last layer's hidden state, each normed and concatenated for one matrix."""
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
        low = _stack(drawn, pieces, MIDDLE - WIDE / 2, low + GAP + 4, WIDE)
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


def meet(drawn: Drawn, x: float, y: float, bottom: float, label: str, width: float) -> None:
    """An arrow from the end of a path to the point where all paths meet, with a label of at most two lines."""
    drawn.sheet.down(x, y, bottom + MEETING)
    for number, line in enumerate(line for part in label.split("\n") for line in wrapped(part, width)):
        drawn.sheet.label(x + 5, bottom + 14 + 13 * number, line.text)


def spread(drawn: Drawn, top: float, low: float, middles: Sequence[float]) -> None:
    """Lines from the middle above to several places below."""
    drawn.sheet.line((MIDDLE, top), (MIDDLE, top + 8), head=False)
    drawn.sheet.line((min([*middles, MIDDLE]), top + 8), (max([*middles, MIDDLE]), top + 8), head=False)
    for x in middles:
        drawn.sheet.down(x, top + 8, low)


def dense(drawn: Drawn, y: float) -> float:
    """A gated MLP: gate and up side by side, then down."""
    return _mlp(drawn, DENSE, drawn.take(*DENSE), (MIDDLE - WIDE / 2, y), WIDE, "dense")


def _mlp(drawn: Drawn, names: Sequence[str], pieces: Sequence[Element], at: Point, width: float, key: str) -> float:
    """Gate and up, as one box if they are equal, then down, the last of `names`; the inner size labels the arrow."""
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
    many = f"{routed[0].experts:,}" if routed else drawn.number("n_routed_experts")
    # A drafter can have experts of its own, fewer than the main layers.
    own = drawn.config.get("dspark_n_routed_experts") if drawn.title == PREDICTION else None
    chosen = drawn.number("dspark_num_experts_per_tok" if own else "num_experts_per_tok")
    lanes = [(ROUTER_AT, router), (ROUTED_AT, routed), (SHARED_AT, shared)]
    spread(drawn, top, low, [x + LANE / 2 for x, pieces in lanes if pieces])
    ends, chosen_at = [], low
    if router:
        at = low
        for number, piece in enumerate(router):
            height = drawn.row(f"router {number}", needed(lines([piece], LANE, through(piece))))
            drawn.box([piece], ROUTER_AT, at, LANE, height, through(piece))
            at += height + 8
        hashed = [piece.some for piece in router if piece.stored == "I64"]
        tables = f"; {hashed[0] or 'in all layers'} by the token alone" if hashed else ""
        said = wrapped(f"chooses {chosen} of {many} per token{tables}", LANE - 16)
        sheet.down(ROUTER_AT + LANE / 2, at - 8, at + 6)
        sheet.box(ROUTER_AT, at + 6, LANE, needed(said), said, shape="pill")
        chosen_at = at + 6 + needed(said) / 2
        ends.append(at + 6 + needed(said))
    per_token = f", {chosen} per token" if chosen else ""
    count = drawn.number("n_shared_experts")
    for x, names, pieces, name, words in (
        (ROUTED_AT, bank.routed, routed, "routed", f"{many} routed experts{per_token}"),
        (SHARED_AT, bank.shared, shared, "shared", f"{count} shared expert{'s' * (count != '1')}, for every token"),
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
    said = [Line("sum of all expert outputs" if routed and shared else "sum of the expert outputs")]
    sheet.box(MIDDLE - 100, bottom + 24, 200, needed(said), said, shape="pill")
    return bottom + 24 + needed(said)


def _choice(drawn: Drawn, y: float, bottom: float) -> None:
    """The arrow from the choice to the frame of the routed experts. It ends above the frame if a router has many
    parts."""
    start, turn, end = ROUTER_AT + LANE, ROUTER_AT + LANE + BETWEEN / 2, min(y, bottom - 20)
    elbow = ((turn, y), (turn, end)) if end < y else ()
    drawn.sheet.line((start, y), *elbow, (ROUTED_AT, end))


def _expert(drawn: Drawn, names: Sequence[str], pieces: Sequence[Element], at: Point, said: tuple[str, str]) -> float:
    (x, y), (key, words) = at, said
    kind, pieces = whole(pieces)
    title = [line._replace(kind="title") for line in wrapped(words, LANE - 18, "title")]
    title += [Line(SIGNS[kind] + kind, "mark")] if kind else []
    frame = drawn.sheet.frame(x, y, LANE, title, kind)
    top = y + drawn.row("expert titles", 10 + 15 * len(title))
    bottom = _mlp(drawn, names, pieces, (x + 8, top), LANE - 16, key) + 8
    drawn.sheet.close(frame, y + drawn.row("expert frames", bottom - y))
    return y + drawn.row("expert frames", bottom - y)
