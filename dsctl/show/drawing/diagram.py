"""Both architectures as block diagrams, stage beside stage, with the path through attention and sizes on the arrows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from dsctl.look.diff import Diff
from dsctl.look.wording import ranges
from dsctl.show.drawing import compressed, drafters, engram, latent, names, parts, shared, trunk, vision
from dsctl.show.drawing.architecture import EMBEDDING, PREDICTION, VISION, Element, Stage, stages
from dsctl.show.drawing.pieces import GAP, LEFT, MIDDLE, RIGHT, Drawn, streams
from dsctl.show.drawing.sheet import SIGNS, WIDTH, Line, Sheet, needed, wrapped

Pair = tuple[Stage | None, Stage | None]
# A step of a stage: its parameters, and the function that draws it from a height.
Part = tuple[tuple[str, ...], Callable[[float], float]]
# Stages that the residual stream of the main model does not pass.
APART = (VISION, PREDICTION, "Other")
# Parts that are drawn once if several stages have equal ones.
SHARED = {"Latent attention": parts.ATTENDING, "Router and experts": parts.EXPERTS}
# The most times that heights of rows are measured.
PASSES = 4
# The left edge of frames, and of the line that passes them.
EDGE, PAST = 12, 5


def diagrams(diff: Diff, storage: bool = True, beside: bool = True) -> tuple[Sheet, Sheet]:
    """The drawings of both sides.

    With `storage`, every box shows the stored format of its parameters. With `beside`, parts that both sides have are
    at the same height; without it, each drawing is as high as its own parts need.
    """
    pairs, shared = stages(diff, storage), dict[str, float]()
    like = {what: _alike(pairs, part) for what, part in SHARED.items()}
    heights = (shared, shared) if beside else (dict[str, float](), dict[str, float]())
    for _ in range(PASSES):
        # A row can grow because rows within it grew for the other side.
        before = [dict(known) for known in heights]
        for side in (0, 1):
            _side(Sheet(heights[side]), pairs, side, like)
        if [*heights] == before:
            break
    return _side(Sheet(heights[0]), pairs, 0, like), _side(Sheet(heights[1]), pairs, 1, like)


def _alike(pairs: Sequence[Pair], part: tuple[str, ...]) -> dict[str, str]:
    """Stages whose part equals that of a different stage, on both sides, each with that stage: the one with the most
    layers."""
    first: dict[Any, str] = {}
    like: dict[str, str] = {}
    for pair in sorted(pairs, key=lambda pair: -max(len(stage.layers) if stage else 0 for stage in pair)):
        title = _title(pair)
        inside = [tuple(piece for piece in stage.pieces if piece.key in part) if stage else () for stage in pair]
        # A stage that only one side has is compared with nothing: the differences of its pieces do not count.
        alone = [(side, tuple(map(_plain, pieces))) for side, pieces in enumerate(inside)]
        keys: list[Any] = (
            [tuple(inside)] if all(pair) else [key for key, stage in zip(alone, pair, strict=True) if stage]
        )
        if any(inside) and keys[0] in first:
            like[title] = first[keys[0]]
        for key in (*keys, *alone):
            first.setdefault(key, title)
    return like


def _plain(piece: Element) -> Element:
    return piece._replace(kind="", words=(), some="")


def _title(pair: Pair) -> str:
    return next(stage.title for stage in pair if stage)


def _side(sheet: Sheet, pairs: Sequence[Pair], side: int, like: Mapping[str, Mapping[str, str]]) -> Sheet:
    y, state = 4.0, None
    config = next((stage.config for pair in pairs if (stage := pair[side])), {})
    last = max((n for n, pair in enumerate(pairs) if pair[side] and _title(pair) not in APART), default=0)
    for place, pair in enumerate(pairs):
        title, stage = _title(pair), pair[side]
        sheet.cuts.append((y - 4, title))
        if title in APART:
            sheet.trunk = None
        here = {what: found[title] for what, found in like.items() if title in found}
        height = sheet.row(title, _stage(sheet, stage, pair[1 - side], here, bool(side), y) if stage else 44)
        if stage is None:
            what = title[0].lower() + title[1:]
            sheet.box(LEFT, y, WIDTH - LEFT - 4, 44, [Line(f"no {what}")], shape="ghost")
        elif title == PREDICTION and state:
            _branch(sheet, state, y)
        elif stage.layers and title not in APART:
            state = y + height + 6
        y += height + GAP
        if sheet.trunk is not None and place < last:
            trunk.grow(sheet, config, y)
            sheet.label(LEFT, y - 9, _flow(config))
    sheet.height = y - GAP + 4
    return sheet


def _flow(config: Mapping[str, Any]) -> str:
    """The label of the state between layers: residual stream, 7,168."""
    many, width = config.get("hc_mult"), streams(config)
    flow = f"{many:,} residual streams" if type(many) is int else "residual stream"
    return f"{flow}, {width}" if width else flow


def _branch(sheet: Sheet, state: float, y: float) -> None:
    """Draw the branch from the residual stream after the last layer past the parts that follow it; the branch is cut
    where the sheet is cut."""
    passed = [cut for cut, _ in sheet.cuts if cut > state]
    sheet.line((trunk.AT, state), (PAST, state), (PAST, passed[0]), head=False, kind="dashed")
    for top, bottom in zip(passed, passed[1:], strict=False):
        sheet.line((PAST, top), (PAST, bottom), head=False, kind="dashed")
    sheet.line((PAST, passed[-1]), (PAST, y + 20), (EDGE, y + 20), kind="dashed")


def _stage(sheet: Sheet, stage: Stage, other: Stage | None, like: Mapping[str, str], after: bool, y: float) -> float:
    """A frame with the stage's parts below each other, along the residual stream. Return its height."""
    many = len(stage.layers)
    numbered = many and stage.title != "Other"
    name = stage.called or stage.title
    said = [Line(f"{name} x {many:,}" if numbered else name, "title")]
    if numbered:
        said.append(Line(f"{stage.unit}{'s' if many > 1 else ''} {ranges(stage.layers)}"))
    if stage.words:
        said.append(Line(SIGNS[stage.kind] + stage.words, "mark"))
    frame = sheet.frame(EDGE, y, WIDTH - EDGE - 4, said, stage.kind, LEFT - EDGE)
    drawn = Drawn(sheet, stage, other, like, after)
    at = drawn.rest(_along(drawn, y + drawn.row("title", 12 + 15 * len(said))))
    height = drawn.row("whole", at + 12 - y)
    trunk.grow(sheet, stage.config, y + height)
    sheet.close(frame, y + height)
    return height


def _along(drawn: Drawn, y: float) -> float:
    """Draw the beginning in the middle, the blocks that read the residual stream and add to it, and the end."""
    at, middle = _sequence(drawn, _leads(drawn), y)
    for block in _blocks(drawn):
        if any(drawn.has(templates) for templates, _ in block):
            at, middle = (
                trunk.write(drawn, _sequence(drawn, block, trunk.read(drawn, _joined(drawn, at, middle)))[0]),
                False,
            )
    for layer in (names.MAIN, names.DRAFT):
        if drawn.has(layer.everything):
            at, middle = _joined(drawn, at, middle), False
            if layer == names.MAIN:
                at = _shares(drawn, at)
            at = compressed.layer(drawn, layer, at)
    tails = _tails(drawn)
    if any(drawn.has(templates) for templates, _ in tails):
        if middle:
            drawn.sheet.down(MIDDLE, at, at + GAP, drawn.hidden)
            at += GAP
        elif drawn.sheet.trunk is not None:
            at = trunk.end(drawn, at)
        return _sequence(drawn, tails, at)[0]
    return trunk.begin(drawn, at) if middle and drawn.title == EMBEDDING else at


def _shares(drawn: Drawn, y: float) -> float:
    """The kinds of layers that share caches, and the n-gram tables of some of them, if there are any.

    If only the other side has them, the same room stays free.
    """
    top = y
    said = [line for text in shared.layers(drawn.config) for line in wrapped(text, RIGHT - LEFT - 16)]
    if said:
        height = drawn.row("kinds", needed(said))
        drawn.sheet.box(LEFT, y, RIGHT - LEFT, height, said, shape="pill")
        y += height + 10
    if drawn.has(engram.ALL):
        y = engram.lookup(drawn, y) + 10
    return top + drawn.row("shared", y - top)


def _joined(drawn: Drawn, y: float, middle: bool) -> float:
    """The place where a block reads the residual stream, which begins here unless it comes from above."""
    if middle:
        return trunk.begin(drawn, y)
    if drawn.sheet.trunk is None:
        drawn.sheet.trunk = y
    return y


def _sequence(drawn: Drawn, parts: Iterable[Part], y: float) -> tuple[float, bool]:
    """Draw the parts that exist below each other. Return where they end, and whether any exists."""
    started = False
    for templates, draw in parts:
        if drawn.has(templates):
            if started:
                # A part that begins with several paths draws its own arrow heads.
                spread = any(templates == part and what not in drawn.like for what, part in SHARED.items())
                drawn.sheet.down(MIDDLE, y, y + GAP, drawn.hidden, not spread)
                y += GAP
            y, started = draw(y), True
    return y, started


def _chain(drawn: Drawn, *templates: str) -> Part:
    return templates, partial(drawn.chain, templates)


def _once(drawn: Drawn, what: str, draw: Callable[[Drawn, float], float]) -> Part:
    part = SHARED[what]
    return part, partial(drawn.compact, part, what) if what in drawn.like else partial(draw, drawn)


def _leads(drawn: Drawn) -> tuple[Part, ...]:
    """The beginning of a stage without a residual stream."""
    return (
        _chain(drawn, "model.embed_tokens.weight"),
        ((*parts.TOKEN, *parts.STATE), partial(parts.prediction, drawn)),
        (vision.ALL, partial(vision.vision, drawn)),
        ((names.EMBEDDING,), partial(compressed.embedding, drawn)),
        (drafters.START, partial(drafters.prediction, drawn)),
        (drafters.BLOCKS, partial(drafters.blocks, drawn)),
    )


def _blocks(drawn: Drawn) -> tuple[tuple[Part, ...], ...]:
    """The blocks of a layer; each reads the residual stream and adds to it."""
    return (
        (_chain(drawn, parts.INPUT_NORM), _once(drawn, "Latent attention", latent.attention)),
        (
            _chain(drawn, parts.MLP_NORM),
            (parts.DENSE, partial(parts.dense, drawn)),
            _once(drawn, "Router and experts", parts.experts),
        ),
    )


def _tails(drawn: Drawn) -> tuple[Part, ...]:
    """The end of the residual stream."""
    return (
        _chain(drawn, *parts.PREDICTED),
        _chain(drawn, "model.norm.weight", "lm_head.weight"),
        (drafters.END, partial(drafters.drafted, drawn)),
        (names.LAST.end, partial(compressed.collapsed, drawn, names.LAST)),
    )
