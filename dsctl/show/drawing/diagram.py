"""Both architectures as block diagrams, stage beside stage: attention opened into its path, sizes on the arrows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from dsctl.look.diff import Diff
from dsctl.look.wording import ranges
from dsctl.show.drawing import compressed, drafters, parts, vision
from dsctl.show.drawing.architecture import PREDICTION, VISION, Element, Stage, stages
from dsctl.show.drawing.pieces import GAP, MIDDLE, Drawn, streams
from dsctl.show.drawing.sheet import SIGNS, WIDTH, Line, Sheet

Pair = tuple[Stage | None, Stage | None]
# Parts that are drawn once where several stages have them alike.
SHARED = {"Latent attention": parts.ATTENDING, "Router and experts": parts.EXPERTS}
EDGE = 20


def diagrams(diff: Diff) -> tuple[Sheet, Sheet]:
    """The drawings of both sides; what they have in common is at the same height."""
    pairs, heights = stages(diff), dict[str, float]()
    like = {what: _alike(pairs, part) for what, part in SHARED.items()}
    for side in (0, 1):
        _side(Sheet(heights), pairs, side, like)
    return _side(Sheet(heights), pairs, 0, like), _side(Sheet(heights), pairs, 1, like)


def _alike(pairs: Sequence[Pair], part: tuple[str, ...]) -> dict[str, str]:
    """Stages whose part is that of another one, on both sides, and that one: the stage with the most layers."""
    first: dict[Any, str] = {}
    like: dict[str, str] = {}
    for pair in sorted(pairs, key=lambda pair: -max(len(stage.layers) if stage else 0 for stage in pair)):
        title = _title(pair)
        inside = [tuple(piece for piece in stage.pieces if piece.key in part) if stage else () for stage in pair]
        # A stage that one side alone has is beside nothing: how its pieces differ does not count there.
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
    y, last, state = 4.0, None, None
    for pair in pairs:
        title, stage = _title(pair), pair[side]
        sheet.cuts.append((y - 4, title))
        here = {what: found[title] for what, found in like.items() if title in found}
        height = sheet.row(title, _stage(sheet, stage, pair[1 - side], here, bool(side), y) if stage else 44)
        if stage is None:
            what = title[0].lower() + title[1:]
            sheet.box(EDGE, y, WIDTH - EDGE - 4, 44, [Line(f"no {what}")], shape="ghost")
        elif title == PREDICTION:
            if state:
                _branch(sheet, state, y)
        elif title not in (VISION, "Other"):
            if last:
                sheet.down(MIDDLE, last, y, streams(stage.config))
            last = y + height
            state = last - 16 if stage.layers else state
        y += height + GAP
    sheet.height = y - GAP + 4
    return sheet


def _branch(sheet: Sheet, state: float, y: float) -> None:
    """From the last layer past what follows it, cut where the sheet is."""
    passed = [cut for cut, _ in sheet.cuts if cut > state]
    sheet.line((EDGE, state), (8, state), (8, passed[0]), head=False, kind="dashed")
    for top, bottom in zip(passed, passed[1:], strict=False):
        sheet.line((8, top), (8, bottom), head=False, kind="dashed")
    sheet.line((8, passed[-1]), (8, y + 20), (EDGE, y + 20), kind="dashed")


def _stage(sheet: Sheet, stage: Stage, other: Stage | None, like: Mapping[str, str], after: bool, y: float) -> float:
    """A frame with the stage's parts below each other; its height."""
    many = len(stage.layers)
    numbered = many and stage.title != "Other"
    name = stage.called or stage.title
    said = [Line(f"{name} x {many:,}" if numbered else name, "title")]
    if numbered:
        said.append(Line(f"{stage.unit}{'s' if many > 1 else ''} {ranges(stage.layers)}"))
    if stage.words:
        said.append(Line(SIGNS[stage.kind] + stage.words, "mark"))
    frame = sheet.frame(EDGE, y, WIDTH - EDGE - 4, said, stage.kind)
    drawn = Drawn(sheet, stage, other, like, after)
    at, started = y + drawn.row("title", 12 + 15 * len(said)), False
    for templates, draw in _parts(drawn):
        if drawn.has(templates):
            if started:
                # What begins with several ways has the heads of its own.
                spread = any(templates == part and what not in like for what, part in SHARED.items())
                sheet.down(MIDDLE, at, at + GAP, drawn.streams, not spread)
                at += GAP
            at, started = draw(at), True
    height = drawn.row("whole", drawn.rest(at) + 12 - y)
    sheet.close(frame, y + height)
    return height


def _parts(drawn: Drawn) -> tuple[tuple[tuple[str, ...], Callable[[float], float]], ...]:
    """What a stage can consist of, in the order of computation: its parameters, and how it is drawn from a height."""

    def chain(*templates: str) -> tuple[tuple[str, ...], Callable[[float], float]]:
        return templates, partial(drawn.chain, templates)

    def once(what: str, draw: Callable[[Drawn, float], float]) -> tuple[tuple[str, ...], Callable[[float], float]]:
        part = SHARED[what]
        return part, partial(drawn.compact, part, what) if what in drawn.like else partial(draw, drawn)

    return (
        chain("model.embed_tokens.weight"),
        ((*parts.TOKEN, *parts.STATE), partial(parts.prediction, drawn)),
        chain(parts.INPUT_NORM),
        once("Latent attention", parts.attention),
        chain(parts.MLP_NORM),
        (parts.DENSE, partial(parts.dense, drawn)),
        once("Router and experts", parts.experts),
        chain(*parts.PREDICTED),
        chain("model.norm.weight", "lm_head.weight"),
        (vision.ALL, partial(vision.vision, drawn)),
        ((compressed.EMBEDDING,), partial(compressed.embedding, drawn)),
        (drafters.START, partial(drafters.prediction, drawn)),
        (drafters.BLOCKS, partial(drafters.blocks, drawn)),
        *((one.everything, partial(compressed.layer, drawn, one)) for one in (compressed.MAIN, compressed.DRAFT)),
        (drafters.END, partial(drafters.drafted, drawn)),
        (compressed.LAST.end, partial(compressed.collapsed, drawn, compressed.LAST)),
    )
