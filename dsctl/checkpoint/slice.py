"""Cut a small checkpoint from a real one: some layers, renumbered, and some experts, with matching router and config.

The result is a view: its parameters are the small model's, its pieces lie in the large model's files, so planning and
running need no special case. No torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from msgspec import structs

from dsctl import models
from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint, View
from dsctl.checkpoint.odd_scales import ODD
from dsctl.checkpoint.pieces import Fault, Piece, Survey, cover
from dsctl.checkpoint.quantization import LINEAR, is_named, linear, module_of, modules, patterns, texts
from dsctl.checkpoint.ranks import check_repeated
from dsctl.checkpoint.side_files import WHOLE
from dsctl.codecs import dress
from dsctl.codecs.codec import Codec
from dsctl.codecs.renumbered import Renumbered
from dsctl.core.boxes import Box
from dsctl.core.config_fields import QUANTIZATION, SPARED_FIELDS, edited
from dsctl.core.errors import FormatError, PlanError
from dsctl.core.params import Param
from dsctl.layouts.ranks import main_layers

# Bytes of the largest file of a slice.
SHARD_BYTES = 5 * 10**9
# Faults of a source that the small checkpoint's own survey reports again if they concern it.
_SURVEYED = frozenset({"missing-shard", "index-wrong", "index-unknown"})


@dataclass(frozen=True, slots=True)
class SliceCut:
    """The kept layers (an MTP layer by its number), in order, and routed experts; empty means all."""

    layers: tuple[int, ...]
    experts: tuple[int, ...]

    def __str__(self) -> str:
        return f"layers {','.join(map(str, self.layers))}; experts {','.join(map(str, self.experts)) or 'all'}"


def cut_of(checkpoint: Checkpoint, layers: tuple[int, ...], mtp: bool, experts: tuple[int, ...]) -> SliceCut:
    """The cut of a checkpoint to these layers, all MTP layers if `mtp`, and these experts, by number.

    Raises:
        PlanError: the architecture is unknown, or does not have a layer or an expert.
        FormatError: a shape field of the config is missing or absurd.
    """
    if checkpoint.model is None or checkpoint.config is None or not checkpoint.families:
        hint = f"`dsctl convert SRC DST --layout published --only GLOB` keeps tensors by name; {models.known()}"
        raise PlanError(f"{checkpoint.store.place}: a slice needs a config.json of a known architecture", hint=hint)
    if checkpoint.alone:
        hint = "cut it out of the whole checkpoint: `dsctl slice WHOLE DST --layers 0-4 --mtp only`"
        raise PlanError(f"{checkpoint.store.place}: is a drafter without its model, so it has no layers", hint=hint)
    main = main_layers(checkpoint.families)
    extra = sorted({layer for family in checkpoint.families if family.mtp for layer in family.layers})
    there = max(family.experts for family in checkpoint.families)
    wanted = {*layers, *(extra if mtp else ())} or {*main, *extra}
    kept = SliceCut(tuple(sorted(wanted)), tuple(sorted(set(experts))))
    if mtp and not extra:
        hint = "leave the drafter out: the checkpoint was made without it"
        raise PlanError(f"{checkpoint.store.place}: there is no drafter: config.json declares none", hint=hint)
    if not {*kept.layers} <= {*main, *extra}:
        raise PlanError(f"no such layer: there are {len(main)}, numbered from 0, and {len(extra)} MTP")
    left = [layer for layer in extra if layer not in kept.layers]
    if left and len(left) < len(extra) and any(one.mtp and len(one.layers) < len(extra) for one in checkpoint.families):
        what = f"the drafter's {len(extra)} stages go together: {len(extra) - len(left)} of them would be left"
        raise PlanError(what, hint="--layers 0-3,mtp keeps all stages; without mtp all are dropped")
    if kept.layers[0] not in main:
        raise PlanError("only the MTP layer would be left", hint="keep at least one main layer")
    if kept.experts and kept.experts[-1] >= there:
        raise PlanError(f"no expert {kept.experts[-1]}: there are {there}, numbered from 0")
    if len(kept.experts) == 1:
        raise PlanError("one expert is too few: routers choose among several", hint="keep at least two")
    return kept


def sliced(checkpoint: Checkpoint, cut: SliceCut) -> Checkpoint:
    """The small checkpoint as a view of the large one; `cut` comes from `cut_of` for this checkpoint.

    Raises:
        PlanError: a parameter cannot be cut so.
        FormatError: its ranks have different configs, or a shape field of the small config is absurd.
    """
    assert checkpoint.config is not None and checkpoint.model is not None
    check_repeated(checkpoint)
    config = checkpoint.model.sliced(checkpoint.config, cut.layers, cut.experts)
    extra = {layer for family in checkpoint.families if family.mtp for layer in family.layers}
    traits = replace(checkpoint.traits, stages=len(extra & {*cut.layers}))
    params = [param for family in checkpoint.model.families(config, traits) for param in family.params()]
    sources = dict(_sources(checkpoint, params, cut))
    survey = _survey(checkpoint, params, sources, cut, config)
    return replace(
        checkpoint,
        config=_skipping(config, checkpoint, [(param, sources[param.name]) for param in params], survey),
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
        expert = cut.experts[param.expert] if param.expert is not None and cut.experts else param.expert
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
    if source.family.below != param.family.below:
        return _renumbered(param, source, cover(pieces), cut)
    return pieces if source.shape == param.shape else _rows(param, source, cover(pieces), cut)


def _renumbered(param: Param, source: Param, pieces: tuple[Piece, ...], cut: SliceCut) -> tuple[Piece, ...]:
    """A table of experts by token with new numbers; only its first columns if a token now has fewer experts."""
    (piece, *more), (rows, columns) = pieces, param.shape
    stored, whole = piece.codec.plain, piece.slot.region == Box.whole(source.shape)
    if more or not whole or stored is None or rows != source.shape[0] or columns > source.shape[1]:
        raise _no_cut(param, source)
    slot = structs.replace(piece.slot, region=Box.whole(param.shape))
    return (structs.replace(piece, slot=slot, codec=Renumbered(stored, experts=source.family.below, kept=cut.experts)),)


def _rows(param: Param, source: Param, pieces: tuple[Piece, ...], cut: SliceCut) -> tuple[Piece, ...]:
    """The kept experts' rows of a parameter with one row per expert."""
    experts = cut.experts[: param.shape[0]]
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


def _skipping(
    config: dict[str, Any], checkpoint: Checkpoint, cut: Sequence[tuple[Param, Param]], survey: Survey
) -> dict[str, Any]:
    """The small config; its quantization_config lists unquantized modules by their new names.

    `cut` has the small model's parameters, each with the one from which it is cut. Removed modules are not listed.
    """
    if checkpoint.quantization is None:
        return config
    known = {name for param in checkpoint.params for name in _modules(param)}
    renamed = {old: new for param, source in cut for old, new in zip(_modules(source), _modules(param), strict=True)}
    said = dict(checkpoint.quantization)
    for field in SPARED_FIELDS:
        if isinstance(said.get(field), list):
            if not all(isinstance(name, str) for name in said[field]):
                what = f"config.json: quantization_config.{field} holds something that is not a module's name"
                raise FormatError(what, hint="`dsctl verify` checks the config, and --fix rewrites it")
            names = [renamed.get(name, name) for name in said[field] if name not in known or name in renamed]
            said[field] = list(dict.fromkeys(names))
    stored = [(param, source, pieces[0].codec) for param, source in cut if (pieces := survey.pieces.get(param.name))]
    if stored and not any(codec.quantized for _, _, codec in stored):
        return edited(config, {}, [QUANTIZATION])
    if said.get("quant_method") == dress.METHOD:
        said |= _targeted(checkpoint.quantization, stored)
    return edited(config, {QUANTIZATION: said})


def _targeted(said: Mapping[str, Any], stored: Sequence[tuple[Param, Param, Codec]]) -> dict[str, Any]:
    """The groups and exceptions of compressed-tensors for these parameters, from those of the original parameters.

    Patterns contain layer numbers, and a group without remaining modules must be dropped.
    """

    def patterned(entries: Any) -> list[str]:
        wanted = texts(entries)
        marked = [(new, any(is_named(text, module_of(old), old) for text in wanted)) for new, old, _ in linears]
        return list(patterns(marked))

    linears = [one for one in stored if linear(one[0])]
    groups = {}
    for name, group in (said.get("config_groups") or {}).items():
        targets = texts(group.get("targets"))
        held = (
            any(is_named(text, module_of(old), old) for text in targets) for _, old, codec in linears if codec.quantized
        )
        if any(held):
            groups[name] = group if LINEAR in targets else {**group, "targets": patterned(group.get("targets"))}
    # An entry without a number is not about a removed layer; it may name modules as a loader does, not as the files do.
    general = [text for text in texts(said.get("ignore")) if not any(map(str.isdigit, text))]
    unmatched = [text for text in general if not any(is_named(text, module_of(old), old) for _, old, _ in linears)]
    return {"config_groups": groups, "ignore": [*unmatched, *patterned(said.get("ignore"))]}


def _modules(param: Param) -> tuple[str, ...]:
    """Every name under which a config may list a parameter's module as unquantized; experts may be listed singly."""
    return (module_of(param), *modules(param))
