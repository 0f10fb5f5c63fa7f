"""What is kept for the way back: the scales that decoding makes redundant, and kept ones. Pure, no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from dsctl.checkpoint.checkpoint import ORIGINAL
from dsctl.checkpoint.side_files import Side, kept_texts
from dsctl.codecs.codec import SCALE
from dsctl.core.boxes import Box
from dsctl.layouts.naming import DIALECTS
from dsctl.plan.plan import Want
from dsctl.plan.request import KEEP, PUBLISHED, RECIPE
from dsctl.plan.steps import Part, Region, region_of
from dsctl.plan.target import Target


def saves(target: Target) -> bool:
    """Whether the target keeps a side file with the scales that decoding makes redundant."""
    checkpoint, request = target.checkpoint, target.request
    decoded = target.formats.format.plain and request.to not in (KEEP, RECIPE, PUBLISHED)
    if not (request.keep_scales and decoded and checkpoint.layout.published):
        return False
    return any(codec.keeps_scales for codec in checkpoint.stored_codecs)


def scales_of(target: Target, names: Collection[str]) -> Side:
    """The side file with the scales of these parameters; their bytes are copied while the parameters are read."""
    scales = {
        piece.refs[1].name: piece.refs[1].spec
        for name, pieces in target.checkpoint.survey.pieces.items()
        if name in names
        for piece in pieces
        if piece.codec.keeps_scales
    }
    return Side(kept_texts(target.checkpoint), scales, "what this folder was converted from")


def kept_parts(target: Target, want: Want, reads: tuple[Region, ...]) -> Iterator[tuple[str, Part]]:
    """The scales of a parameter that the side file keeps: name there and where they are read."""
    if saves(target):
        for piece, region in zip(want.pieces, reads, strict=True):
            if piece.codec.keeps_scales:
                yield piece.refs[1].name, region.parts[1]


def kept_scales(target: Target, want: Want) -> Region | None:
    """The kept scales with which a parameter may be encoded again."""
    if not want.codec.keeps_scales:
        return None
    own = _own_scales(want)
    if own is not None:
        return own
    if target.original is None or want.codec != target.formats.kept:
        return None
    ref = target.original.scales.get(DIALECTS[want.codec.dialect].tensor(want.param.name, SCALE))
    if ref is None or ref.spec != want.codec.specs(want.param.shape)[SCALE]:
        return None
    shape = want.param.shape
    part = Part(SCALE, ORIGINAL, ref.begin, ref.spec)
    return Region(Box.whole(shape), want.codec, (part,), shape, (0,) * len(shape))


def _own_scales(want: Want) -> Region | None:
    """The source's scales of the same blocks, where only their dtype is another."""
    piece, wanted = want.pieces[0], want.codec.form
    held = piece.codec.form
    if len(want.pieces) > 1 or (held.codes, held.group) != (wanted.codes, wanted.group):
        return None
    region = region_of(piece)
    return region._replace(parts=(region.parts[1],))
