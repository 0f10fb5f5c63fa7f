"""A slice of a described checkpoint, such as a release by its name: the description of the small one. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.groups import Group, Known, whole
from dsctl.checkpoint.pieces import cover
from dsctl.checkpoint.slice import SliceCut, draft_layers, renumbered, small_config
from dsctl.codecs.codec import Codec
from dsctl.core.errors import PlanError
from dsctl.core.params import Family, Param


def sliced_description(known: Known, cut: SliceCut) -> Known:
    """The small checkpoint; `cut` comes from `cut_of` for this description.

    Raises:
        PlanError: the cut does not fit the architecture. FormatError: a shape field of the small config is absurd.
    """
    assert known.model is not None
    config = small_config(known.model, known.config, known.families, cut)
    traits = replace(known.traits, stages=len({*draft_layers(known.families)} & {*cut.layers}))
    sources = {
        (group.family.template, layer): (group.family, group.codec)
        for group in known.groups
        for layer in group.layers or (None,)
    }
    families = known.model.families(config, traits)
    groups = tuple(group for family in families for group in _groups(family, sources, cut))
    return replace(known, config=config, groups=groups, traits=traits)


def _groups(
    family: Family, sources: dict[tuple[str, int | None], tuple[Family, Codec]], cut: SliceCut
) -> Iterator[Group]:
    """The groups of a family of the small model, by the codec that reads the source."""
    found: dict[Codec, list[Param]] = {}
    for param in family.params():
        layer = None if param.layer is None else cut.layers[param.layer]
        stored = sources.get((family.template, layer))
        if stored is None:
            raise PlanError(
                f"{param.name}: the source does not have it", hint="`dsctl verify` lists the missing tensors"
            )
        source, codec = stored
        if codec.plain is not None and cut.renumbers(source, family, layer):
            codec = renumbered(codec.plain, Param(param.name, source, layer, None), cut)
        found.setdefault(codec, []).append(param)
    for codec, params in found.items():
        yield whole(family, codec).part(params)


def bytes_kept(small: Checkpoint | Known) -> int:
    """The bytes that the tensors of a sliced checkpoint take in the formats of the source."""
    if isinstance(small, Known):
        return sum(group.nbytes for group in small.groups)
    pieces = (piece for held in small.survey.pieces.values() for piece in cover(held))
    return sum(spec.nbytes for one in pieces for spec in one.codec.specs(one.slot.region.shape).values())
