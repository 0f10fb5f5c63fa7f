"""Cut a small checkpoint from a real one: some layers, renumbered, and some experts, with matching router and config.

The result is a view: its parameters are the small model's, its pieces lie in the large model's files, so planning and
running need no special case. No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from msgspec import structs

from dsctl import models
from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint, View
from dsctl.checkpoint.groups import Known
from dsctl.checkpoint.odd_scales import ODD
from dsctl.checkpoint.pieces import Fault, Piece, Survey, cover
from dsctl.checkpoint.ranks import check_repeated
from dsctl.checkpoint.side_files import WHOLE
from dsctl.checkpoint.sliced_quantization import quantization_of_slice
from dsctl.codecs.renumbered import Renumbered
from dsctl.core.boxes import Box
from dsctl.core.errors import PlanError
from dsctl.core.params import Family, Param
from dsctl.layouts.ranks import main_layers
from dsctl.models.model import Model

# Bytes of the largest file of a slice.
SHARD_BYTES = 5 * 10**9
# Faults of a source that the small checkpoint's own survey reports again if they concern it.
_SURVEYED = frozenset({"missing-shard", "index-wrong", "index-unknown"})


@dataclass(frozen=True, slots=True)
class SliceCut:
    """The kept layers (an MTP layer by its number), in order, and routed experts; empty means all.

    `planned` has a layer's kept experts in their new order, for layers whose experts a plan chooses; then `experts` is
    empty.
    """

    layers: tuple[int, ...]
    experts: tuple[int, ...]
    planned: Mapping[int, tuple[int, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        layers = f"layers {','.join(map(str, self.layers))}"
        if not self.planned:
            return f"{layers}; experts {','.join(map(str, self.experts)) or 'all'}"
        digest = hashlib.sha256(json.dumps(sorted(self.planned.items())).encode()).hexdigest()
        counts = ",".join(map(str, sorted({len(experts) for experts in self.planned.values()})))
        return f"{layers}; experts by plan, {counts} per layer, sha256 {digest}"

    def experts_of(self, layer: int | None) -> tuple[int, ...]:
        """The kept experts of a layer of the source, in their new order; empty means all of them, in order."""
        return self.experts or (self.planned.get(layer, ()) if layer is not None else ())

    def renumbers(self, table: Family, small: Family, layer: int | None) -> bool:
        """Whether the numbers of experts in a table of a layer change; `small` is its family in the small model."""
        kept = self.experts_of(layer)
        return table.below != small.below or (table.below > 0 and kept != tuple(range(len(kept))))


def cut_of(source: Checkpoint | Known, layers: tuple[int, ...], mtp: bool, experts: tuple[int, ...]) -> SliceCut:
    """The cut of a checkpoint to these layers, all MTP layers if `mtp`, and these experts, by number.

    Raises:
        PlanError: the architecture is unknown, or does not have a layer or an expert.
        FormatError: a shape field of the config is missing or absurd.
    """
    if source.model is None or source.config is None or not source.families:
        hint = f"`dsctl convert SRC DST --layout published --only GLOB` keeps tensors by name; {models.known()}"
        place = source.store.place if isinstance(source, Checkpoint) else source.place
        raise PlanError(f"{place}: a slice needs a config.json of a known architecture", hint=hint)
    if isinstance(source, Checkpoint) and source.alone:
        hint = "cut it out of the whole checkpoint: `dsctl slice WHOLE DST --layers 0-4 --mtp only`"
        raise PlanError(f"{source.store.place}: is a drafter without its model, so it has no layers", hint=hint)
    main = main_layers(source.families)
    extra = draft_layers(source.families)
    there = max(family.experts for family in source.families)
    wanted = {*layers, *(extra if mtp else ())} or {*main, *extra}
    kept = SliceCut(tuple(sorted(wanted)), tuple(sorted(set(experts))))
    if mtp and not extra:
        hint = "leave the drafter out: the checkpoint was made without it"
        raise PlanError("there is no drafter: config.json declares none", hint=hint)
    if not {*kept.layers} <= {*main, *extra}:
        raise PlanError(f"no such layer: there are {len(main)}, numbered from 0, and {len(extra)} MTP")
    left = [layer for layer in extra if layer not in kept.layers]
    if left and len(left) < len(extra) and any(one.mtp and len(one.layers) < len(extra) for one in source.families):
        what = f"the drafter's {len(extra)} stages go together: {len(extra) - len(left)} of them would be left"
        raise PlanError(what, hint="--layers 0-3,mtp keeps all stages; without mtp all are dropped")
    if kept.layers[0] not in main:
        raise PlanError("only the MTP layer would be left", hint="keep at least one main layer")
    if kept.experts and kept.experts[-1] >= there:
        raise PlanError(f"no expert {kept.experts[-1]}: there are {there}, numbered from 0")
    if len(kept.experts) == 1:
        raise PlanError("one expert is too few: routers choose among several", hint="keep at least two")
    return kept


def draft_layers(families: Iterable[Family]) -> list[int]:
    """The numbers of the MTP layers."""
    return sorted({layer for family in families if family.mtp for layer in family.layers})


def small_config(model: Model, config: Mapping[str, Any], families: Sequence[Family], cut: SliceCut) -> dict[str, Any]:
    """The config of a cut. If all main layers stay under a plan of experts, only numbers of experts change.

    Raises:
        PlanError: the numbers of experts do not fit the architecture. FormatError: a shape field is absurd.
    """
    if not cut.planned:
        return model.sliced(config, cut.layers, cut.experts)
    extra, kept = draft_layers(families), {*cut.layers}
    if kept.issuperset(main_layers(families)) and kept.issuperset(extra):
        small = dict(config)
    elif kept == {*main_layers(families)}:
        small = model.without_mtp(config)
    else:
        small = model.sliced(config, cut.layers, ())
    return model.pruned(small, _number(families, cut, False), _number(families, cut, True))


def _number(families: Sequence[Family], cut: SliceCut, drafter: bool) -> int:
    """The largest number of experts that a kept layer will have, of the main layers or of the drafter's; 0 for none."""
    held = {layer: one.experts for one in families if one.experts and one.mtp == drafter for layer in one.layers}
    return max((len(cut.experts_of(layer)) or held[layer] for layer in cut.layers if layer in held), default=0)


def sliced(checkpoint: Checkpoint, cut: SliceCut) -> Checkpoint:
    """The small checkpoint as a view of the large one; `cut` comes from `cut_of` for this checkpoint.

    Raises:
        PlanError: a parameter cannot be cut so.
        FormatError: its ranks have different configs, or a shape field of the small config is absurd.
    """
    assert checkpoint.config is not None and checkpoint.model is not None
    check_repeated(checkpoint)
    config = small_config(checkpoint.model, checkpoint.config, checkpoint.families, cut)
    traits = replace(checkpoint.traits, stages=len({*draft_layers(checkpoint.families)} & {*cut.layers}))
    params = [param for family in checkpoint.model.families(config, traits) for param in family.params()]
    sources = dict(_sources(checkpoint, params, cut))
    survey = _survey(checkpoint, params, sources, cut, config)
    return replace(
        checkpoint,
        config=quantization_of_slice(
            config, checkpoint, [(param, sources[param.name]) for param in params], survey, bool(cut.planned)
        ),
        manifests={},
        files={file: size for file, size in checkpoint.files.items() if file not in (ORIGINAL, ODD, WHOLE)},
        faults=[fault for fault in checkpoint.faults if fault.code not in _SURVEYED],
        # The places of pieces are the large model's.
        view=View(checkpoint.layout, survey),
        known_traits=traits,
    )


def _sources(checkpoint: Checkpoint, params: Iterable[Param], cut: SliceCut) -> Iterator[tuple[str, Param]]:
    """For each parameter of the small model, by name, the parameter of the large one from which it is cut."""
    known = {(param.template, param.layer, param.expert): param for param in checkpoint.params}
    for param in params:
        layer = None if param.layer is None else cut.layers[param.layer]
        kept = cut.experts_of(layer)
        expert = kept[param.expert] if param.expert is not None and kept else param.expert
        source = known.get((param.template, layer, expert))
        if source is None:
            raise PlanError(f"{param.name}: layer {layer} of {checkpoint.store.place} has no such parameter")
        yield param.name, source


def _survey(
    checkpoint: Checkpoint,
    params: Iterable[Param],
    sources: Mapping[str, Param],
    cut: SliceCut,
    small: Mapping[str, Any],
) -> Survey:
    """The pieces of the small model's parameters; `small` is its config."""
    survey = Survey()
    wrong = {fault.where: fault for fault in checkpoint.survey.faults if fault.code != "extra-tensor"}
    for param in params:
        source = sources[param.name]
        pieces = checkpoint.survey.pieces.get(source.name)
        if pieces and param.family.table and source.shape != param.shape:
            survey.pieces[param.name] = _of_table(checkpoint, param, source, cover(pieces), small)
            continue
        if pieces:
            survey.pieces[param.name] = _cut(param, source, pieces, cut)
            continue
        survey.missing.append(param)
        fault = wrong.get(source.name) or Fault("missing-tensor", source.name, "missing")
        survey.faults.append(fault)
        if param.family.mtp:
            survey.mtp.add(fault)
    return survey


def _cut(param: Param, source: Param, pieces: tuple[Piece, ...], cut: SliceCut) -> tuple[Piece, ...]:
    """The small model's part of a parameter of the large one."""
    kept = cut.experts_of(source.layer)
    if cut.renumbers(source.family, param.family, source.layer):
        return _renumbered(param, source, cover(pieces), cut)
    if source.shape == param.shape and (param.role != "router" or kept == tuple(range(len(kept)))):
        return pieces
    return _rows(param, source, cover(pieces), kept)


def _renumbered(param: Param, source: Param, pieces: tuple[Piece, ...], cut: SliceCut) -> tuple[Piece, ...]:
    """A table of experts by token with new numbers; only its first columns if a token now has fewer experts."""
    (piece, *more), (rows, columns) = pieces, param.shape
    stored, whole = piece.codec.plain, piece.slot.region == Box.whole(source.shape)
    if more or not whole or stored is None or rows != source.shape[0] or columns > source.shape[1]:
        raise _no_cut(param, source)
    slot = structs.replace(piece.slot, region=Box.whole(param.shape))
    return (structs.replace(piece, slot=slot, codec=renumbered(stored, source, cut)),)


def renumbered(dtype: str, table: Param, cut: SliceCut) -> Renumbered:
    """The codec that gives the experts of a table of the source their new numbers."""
    kept = cut.experts_of(table.layer) or tuple(range(table.family.below))
    return Renumbered(dtype, experts=table.family.below, kept=kept, near=bool(cut.planned))


def _rows(param: Param, source: Param, pieces: tuple[Piece, ...], experts: tuple[int, ...]) -> tuple[Piece, ...]:
    """The kept experts' rows of a parameter with one row per expert."""
    experts = experts[: param.shape[0]]
    if param.role != "router" or param.shape[0] != len(experts):
        raise _no_cut(param, source)
    return _taken(param, source, pieces, ((experts[first], experts[last - 1] + 1) for first, last in _runs(experts)))


def _of_table(
    checkpoint: Checkpoint, param: Param, source: Param, pieces: tuple[Piece, ...], small: Mapping[str, Any]
) -> tuple[Piece, ...]:
    """The kept rows of a table; its first rows if the config does not show of which parts it consists."""
    assert checkpoint.model is not None and checkpoint.config is not None
    ranges = checkpoint.model.kept_rows(checkpoint.config, small, source, param)
    return _taken(param, source, pieces, [(0, param.shape[0])] if ranges is None else ranges)


def _taken(
    param: Param, source: Param, pieces: tuple[Piece, ...], ranges: Iterable[tuple[int, int]]
) -> tuple[Piece, ...]:
    """These ranges of a parameter's rows, one below the other."""
    (piece, *more), rest = pieces, source.shape[1:]
    if more or piece.slot.region != Box.whole(source.shape) or param.shape[1:] != rest:
        raise _no_cut(param, source)
    taken, filled = [], 0
    for begin, end in ranges:
        region = Box((filled, *(0,) * len(rest)), (filled + end - begin, *rest))
        slot = structs.replace(piece.slot, region=region, at=(piece.slot.at[0] + begin, *piece.slot.at[1:]))
        taken.append(structs.replace(piece, slot=slot))
        filled += end - begin
    return tuple(taken)


def _no_cut(param: Param, source: Param) -> PlanError:
    return PlanError(f"{param.name}: {list(source.shape)} cannot be cut to {list(param.shape)}")


def _runs(numbers: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers, as ranges of positions: [3, 4, 9] gives (0, 2), (2, 3)."""
    breaks = [place for place, (one, two) in enumerate(pairwise(numbers), 1) if two != one + 1]
    yield from pairwise((0, *breaks, len(numbers)))
