"""Scales for the way back: those to keep when decoding, and kept ones to encode with. Pure, no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from msgspec import structs

from dsctl.checkpoint.side_files import Original, Side, kept_texts
from dsctl.codecs.codec import CHOSEN, SCALE, Codec
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.core.boxes import Box
from dsctl.layouts.naming import DIALECTS
from dsctl.plan.plan import Want
from dsctl.plan.steps import Part, Region, Step, region_of
from dsctl.plan.target import Target


def gathers(target: Target, step: Step) -> bool:
    """Whether the odd scales of a parameter are kept; they are found during the conversion."""
    read = step.reads[0]
    whole = len(step.reads) == 1 and read.container == step.shape
    return step.how != "move" and read.codec.scales_follow and whole and target.saves


def scales_of(target: Target, names: Collection[str]) -> Side:
    """The side file with the scales of these parameters; their bytes are copied when the parameters are read."""
    scales = {
        ref.name: ref.spec
        for name, pieces in target.checkpoint.survey.pieces.items()
        if name in names
        for piece in pieces
        if _kept_whole(target, piece.codec)
        for ref in piece.chosen.values()
    }
    return Side(kept_texts(target.checkpoint), scales, "what this folder was converted from")


def kept_parts(target: Target, want: Want, reads: tuple[Region, ...]) -> Iterator[tuple[str, Part]]:
    """The scales of a parameter that the side file keeps: their names in it, and the parts to read."""
    for piece, region in zip(want.pieces, reads, strict=True):
        if _kept_whole(target, piece.codec):
            named = piece.chosen
            yield from ((named[part.name].name, part) for part in region.parts if part.name in named)


def _kept_whole(target: Target, codec: Codec) -> bool:
    """Whether all scales of a parameter are kept: decoding uses them, and they do not follow from the values."""
    return codec.keeps_scales and not codec.scales_follow and bool(target.formats.format.plain)


def odd_scales(target: Target, want: Want) -> Part | None:
    """The kept odd scales of a parameter that is encoded again."""
    if target.odd is None or not want.codec.scales_follow:
        return None
    name = DIALECTS[want.codec.dialect].tensor(want.param.name, SCALE)
    ref = target.odd.of(name, want.codec.specs(want.param.shape)[SCALE])
    return None if ref is None else Part(SCALE, ref.file, ref.begin, ref.spec)


def kept_scales(target: Target, want: Want) -> Region | None:
    """The kept scales for encoding a parameter again."""
    if not want.codec.keeps_scales or want.codec.scales_follow:
        return None
    if want.codec.scale_fmt is None:
        return _beside(target.original, want, want.codec)
    own = _own_scales(want)
    if own is not None:
        return own
    before = target.returns.get(want.param.name, target.formats.kept)
    sides = (target.original, before), (target.whole, target.encoded)
    known = (_beside(side, want, want.codec) for side, codec in sides if side and _alike(codec, want.codec))
    return next(filter(None, known), None)


def _beside(side: Original | None, want: Want, codec: Codec) -> Region | None:
    """The parts beside a parameter's codes in a side file, if it has all of them as this codec stores them."""
    shape, parts = want.param.shape, []
    for part, spec in codec.specs(shape).items():
        if side is None or part not in CHOSEN:
            continue
        ref = side.scales.get(DIALECTS[codec.dialect].tensor(want.param.name, part))
        if ref is None or ref.spec != spec:
            return None
        parts.append(Part(part, ref.file, ref.begin, ref.spec))
    return Region(Box.whole(shape), codec, tuple(parts), shape, (0,) * len(shape)) if parts else None


def _alike(kept: Codec | None, wanted: Codec) -> bool:
    """Whether kept scales are of a codec's kind; the spec of each shows whether they are of its blocks."""
    return kept is not None and isinstance(wanted, Fp8Block) and kept == replace(wanted, block=kept.block)


def _own_scales(want: Want) -> Region | None:
    """The source's scales of the same blocks, if only their dtype is different."""
    piece, wanted = want.pieces[0], want.codec.form
    held = piece.codec.form
    if len(want.pieces) > 1 or (held.codes, held.group) != (wanted.codes, wanted.group):
        return None
    region = region_of(piece)
    return structs.replace(region, parts=(region.parts[1],))
