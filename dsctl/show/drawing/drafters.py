"""The parts that V4's drafters add to a layer in a block diagram, at its beginning and its end.

deepseek-ai/DeepSeek-V4-Flash and DeepSeek-V4-Flash-0731, inference/model.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsctl.show.drawing import parts
from dsctl.show.drawing.architecture import Element
from dsctl.show.drawing.compressed import BETWEEN, collapsed, column, pill
from dsctl.show.drawing.names import DRAFT, named
from dsctl.show.drawing.pieces import GAP, LEFT, MIDDLE, RIGHT, Drawn, lines, through, whole
from dsctl.show.drawing.sheet import SIGNS, Line, needed, wrapped

_DRAFT = DRAFT.prefix
TOKEN = named(_DRAFT, "emb.tok_emb.weight enorm.weight e_proj.weight")
STATE = named(_DRAFT, "hnorm.weight h_proj.weight")
BLOCKS = named(_DRAFT, "main_proj.weight main_norm.weight")
# V4's names and V4.1's.
MARKOV = named(f"{_DRAFT}markov_head.", "markov_w1.weight markov_w2.weight embed.weight head.weight")
CONFIDENCE = f"{_DRAFT}confidence_head.proj.weight"
START = (*TOKEN, *STATE)
END = (*DRAFT.end, *MARKOV, CONFIDENCE)


def prediction(drawn: Drawn, y: float) -> float:
    """Prediction: the next token and the last layer's streams, each normed and projected, then added."""
    width, low = MIDDLE - LEFT - BETWEEN, y + 16
    ends = []
    for x, names, note in ((LEFT, TOKEN, "the next token"), (RIGHT - width, STATE, "the last layer's streams")):
        drawn.sheet.label(x + width / 2, y + 9, note, "middle")
        ends.append((x + width / 2, column(drawn, drawn.take(*names), x, low, width)))
    bottom = y + drawn.row("joined", max(at for _, at in ends) - y)
    for end, (x, at) in zip((MIDDLE - 40, MIDDLE + 40), ends, strict=True):
        drawn.sheet.line((x, at), (x, bottom + 12), (end, bottom + 12), (end, bottom + GAP + 4))
    return _begun(drawn, y, pill(drawn, "sum", bottom + GAP + 4, "sum", 120))


def _begun(drawn: Drawn, y: float, end: float) -> float:
    """The height at which layers begin, the same on both sides for any kind of drafter."""
    bottom = y + drawn.row("begun", end - y)
    if bottom > end:
        drawn.sheet.down(MIDDLE, end, bottom, head=False)
    return bottom


def blocks(drawn: Drawn, y: float) -> float:
    """A block drafter: the states of some layers side by side, projected to one."""
    targets, size = drawn.config.get("dspark_target_layer_ids"), drawn.number("dspark_block_size")
    which = ", ".join(map(str, targets)) if isinstance(targets, list) else "some layers"
    drawn.sheet.label(MIDDLE, y + 9, f"states of layers {which} side by side", "middle")
    drawn.sheet.label(MIDDLE, y + 23, f"drafts {size} tokens at a time", "middle")
    return _begun(drawn, y, drawn.chain(BLOCKS, y + 30))


def drafted(drawn: Drawn, y: float) -> float:
    """The end of a drafter: the reduction to one stream, the head, and the additional parts of a block drafter."""
    own = drawn.has([f"{_DRAFT}head.weight"])
    y = collapsed(drawn, DRAFT, y)
    if not own:
        drawn.sheet.down(MIDDLE, y, y + GAP, drawn.hidden)
        y = pill(drawn, "the main model's head", y + GAP, "main head")
    markov, confidence = drawn.take(*MARKOV), drawn.take(CONFIDENCE)
    if not markov and not confidence:
        return y
    width, low = MIDDLE - LEFT - BETWEEN, y + 22
    both = ((LEFT, markov, "Markov head: the token before"), (RIGHT - width, confidence, "Confidence of a draft"))
    parts.spread(drawn, y, low, [x + width / 2 for x, pieces, _ in both if pieces])
    return max(_beside(drawn, pieces, (x, low), width, title) for x, pieces, title in both if pieces)


def _beside(drawn: Drawn, pieces: Sequence[Element], at: tuple[float, float], width: float, title: str) -> float:
    """Pieces in a frame. The first of several is a table that is indexed by the previous token."""
    (x, y), (kind, inner) = at, whole(pieces)
    said = [*wrapped(title, width - 16, "title"), *([Line(SIGNS[kind] + kind, "mark")] if kind else [])]
    frame = drawn.sheet.frame(x, y, width, said, kind)
    y += 10 + 15 * len(said)
    for number, piece in enumerate(inner):
        rows, columns = piece.shape
        if number:
            drawn.sheet.down(x + width / 2, y, y + GAP, f"{columns:,}")
            y += GAP
        table = number == 0 and len(inner) > 1
        note = f"{rows:,} → {columns:,}" if table else through(piece)
        height = drawn.row(piece.key, needed(lines([piece], width - 16, note)))
        drawn.box([piece], x + 8, y, width - 16, height, note)
        y += height
    drawn.sheet.close(frame, y + 8)
    return y + 8
