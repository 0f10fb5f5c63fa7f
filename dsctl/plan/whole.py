"""The side file in which ranks keep the texts of the whole, and the scales that their layout decodes with. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from dsctl.checkpoint.side_files import WHOLE, Side, kept_texts
from dsctl.codecs.codec import SCALE, moves_to
from dsctl.core.header import TensorSpec
from dsctl.layouts.naming import DIALECTS
from dsctl.plan.plan import Want
from dsctl.plan.steps import Copy, Part, Region
from dsctl.plan.target import Target


class _Scales(NamedTuple):
    """A piece's scales within those of its whole parameter: their name, dtype and shape there, and the first row."""

    name: str
    spec: TensorSpec
    row: int


def whole_side(target: Target, wants: Iterable[Want]) -> Side | None:
    """The side file to write, if any: for a whole checkpoint, or for parts that the target's layout decodes."""
    scales = {one.name: one.spec for want in wants for one in _decoded_with(target, want)}
    if target.layout.published or not (target.checkpoint.layout.published or (target.whole and scales)):
        return None
    texts = kept_texts(target.checkpoint) if target.whole is None else target.whole.literals
    return Side(texts, scales, "the whole checkpoint that this folder holds parts of")


def whole_copies(
    target: Target, want: Want, reads: Iterable[Region], offsets: Mapping[tuple[str, str], int]
) -> Iterator[Copy]:
    """The copies of a parameter's scales into the side file, from every piece."""
    for one, region in zip(_decoded_with(target, want), reads, strict=False):
        begin = offsets.get((WHOLE, one.name))
        if begin is not None:
            read = region.parts[1]
            at = begin + one.row * one.spec.nbytes // one.spec.shape[0]
            yield Copy(read, Part("", WHOLE, at, read.spec))


def _decoded_with(target: Target, want: Want) -> list[_Scales]:
    """The scales of each piece of a parameter that only the target's layout decodes; each piece has whole rows."""
    codec, param = want.pieces[0].codec, want.param
    if not (target.layout.decoded(param.family) and codec.scale_fmt):
        return []
    if not moves_to(codec, target.formats.codec(param, codec)):
        return []
    name, spec = DIALECTS[codec.dialect].tensor(param.name, SCALE), codec.specs(param.shape)[SCALE]
    boxes = [codec.box(SCALE, piece.slot.region, param.shape) for piece in want.pieces]
    return [_Scales(name, spec, box.start[0]) for box in boxes if box.shape[1] == spec.shape[1]]
