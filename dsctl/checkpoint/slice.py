"""A small checkpoint cut from a real one: some layers, renumbered, and some experts, with router and config to match.

The result is a view: a checkpoint whose parameters are the small model's and whose pieces lie in the large one's
files, so that planning and running know nothing of it. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint
from dsctl.checkpoint.pieces import Fault, Piece, Survey, cover
from dsctl.checkpoint.quantization import LINEAR, is_named, linear, modules, patterns, texts
from dsctl.checkpoint.ranks import check_repeated
from dsctl.checkpoint.side_files import WHOLE
from dsctl.codecs import Codec, dress
from dsctl.core.boxes import Box
from dsctl.core.errors import FormatError, PlanError
from dsctl.core.params import Param

# Faults of a source that the small checkpoint's own survey reports again where they matter to it.
_SURVEYED = frozenset({"missing-shard", "index-wrong", "index-unknown"})
_PER_LAYER = ("indexer_types", "layer_types", "mlp_layer_types")
_SKIPPED = ("ignore", "ignored_layers", "modules_to_not_convert")


@dataclass(frozen=True, slots=True)
class Cut:
    """What to keep: layers (an MTP layer by its number), in order, and routed experts; empty means all."""

    layers: tuple[int, ...]
    experts: tuple[int, ...]

    def __str__(self) -> str:
        return f"layers {','.join(map(str, self.layers))}; experts {','.join(map(str, self.experts)) or 'all'}"


def cut_of(checkpoint: Checkpoint, layers: tuple[int, ...], mtp: bool, experts: tuple[int, ...]) -> Cut:
    """What to keep of a checkpoint: layers by number, all MTP layers where `mtp`, experts by number.

    Raises:
        PlanError: the architecture is unknown, or a layer or an expert is that it does not have.
        FormatError: a shape field of the config is missing or absurd.
    """
    if checkpoint.config is None or not checkpoint.families:
        raise PlanError(f"{checkpoint.store.place}: a slice needs a config.json of a known architecture")
    config = checkpoint.config
    main, extra = int(config.get("num_hidden_layers") or 0), int(config.get("num_nextn_predict_layers") or 0)
    there = int(config.get("n_routed_experts") or 0)
    wanted = {*layers, *(range(main, main + extra) if mtp else ())} or set(range(main + extra))
    kept = Cut(tuple(sorted(wanted)), tuple(sorted(set(experts))))
    if kept.layers[-1] >= main + extra or (mtp and not extra):
        raise PlanError(f"no such layer: there are {main}, numbered from 0, and {extra} MTP")
    if kept.layers[0] >= main:
        raise PlanError("no layer is left but MTP", hint="keep at least one other layer")
    if kept.experts and kept.experts[-1] >= there:
        raise PlanError(f"no expert {kept.experts[-1]}: there are {there}, numbered from 0")
    if len(kept.experts) == 1:
        raise PlanError("one expert is too few: the router scores a group by its two best", hint="keep at least two")
    return kept


def sliced(checkpoint: Checkpoint, cut: Cut) -> Checkpoint:
    """The small checkpoint as a view of the large one; `cut` is what `cut_of` gave for this one.

    Raises:
        PlanError: it has parameters that cannot be cut so.
        FormatError: its ranks have other configs, or a shape field of the small config is absurd.
    """
    assert checkpoint.config is not None
    check_repeated(checkpoint)
    view = replace(
        checkpoint,
        config=small_config(checkpoint.config, cut),
        manifests={},
        files={file: size for file, size in checkpoint.files.items() if file not in (ORIGINAL, WHOLE)},
        faults=[fault for fault in checkpoint.faults if fault.code not in _SURVEYED],
    )
    # Where things are is told of the large model.
    view.layout = checkpoint.layout
    sources = dict(_sources(checkpoint, view, cut))
    view.survey = _survey(checkpoint, view, sources, cut)
    _rename_skipped(view, sources, checkpoint)
    return view


def small_config(config: Mapping[str, Any], cut: Cut) -> dict[str, Any]:
    """The large model's config with the fields that layers and experts set made true."""
    main = [layer for layer in cut.layers if layer < config["num_hidden_layers"]]
    small = dict(config) | {"num_hidden_layers": len(main)}
    if "num_nextn_predict_layers" in config:
        small["num_nextn_predict_layers"] = len(cut.layers) - len(main)
    if "first_k_dense_replace" in config:
        small["first_k_dense_replace"] = sum(layer < config["first_k_dense_replace"] for layer in main)
    for field in _PER_LAYER:
        if isinstance(config.get(field), list) and len(config[field]) == config["num_hidden_layers"]:
            small[field] = [config[field][layer] for layer in main]
    return small | (_routing(config, len(cut.experts)) if cut.experts else {})


def _routing(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Experts, groups and experts per token for `count` experts: groups stay equal and hold two or more each.

    A group's score is the sum of its two best experts (DeepSeek-V3 inference/model.py, `Gate`).
    """
    groups = next((g for g in range(config.get("n_group") or 1, 1, -1) if count % g == 0 and count // g >= 2), 1)
    chosen = min(config.get("topk_group") or 1, groups)
    edited = {
        "n_routed_experts": count,
        "num_experts_per_tok": min(config.get("num_experts_per_tok") or 1, chosen * (count // groups)),
        "n_group": groups,
        "topk_group": chosen,
    }
    return {field: value for field, value in edited.items() if config.get(field) is not None}


def _sources(checkpoint: Checkpoint, view: Checkpoint, cut: Cut) -> Iterator[tuple[str, Param]]:
    """For each parameter of the small model, by name, the parameter of the large one that it is cut from."""
    known = {(param.template, param.layer, param.expert): param for param in checkpoint.params}
    for param in view.params:
        layer = None if param.layer is None else cut.layers[param.layer]
        expert = cut.experts[param.expert] if param.expert is not None and cut.experts else param.expert
        source = known.get((param.template, layer, expert))
        if source is None:
            raise PlanError(f"{param.name}: layer {layer} of {checkpoint.store.place} has no such parameter")
        yield param.name, source


def _survey(checkpoint: Checkpoint, view: Checkpoint, sources: Mapping[str, Param], cut: Cut) -> Survey:
    survey = Survey()
    wrong = {fault.where: fault for fault in checkpoint.survey.faults if fault.code != "extra-tensor"}
    for param in view.params:
        source = sources[param.name]
        pieces = checkpoint.survey.pieces.get(source.name)
        if pieces:
            whole = source.shape == param.shape
            survey.pieces[param.name] = pieces if whole else _rows(param, source, cover(pieces), cut)
            continue
        survey.missing.append(param)
        survey.faults.append(wrong.get(source.name) or Fault("missing-tensor", source.name, "missing"))
    return survey


def _rows(param: Param, source: Param, pieces: tuple[Piece, ...], cut: Cut) -> tuple[Piece, ...]:
    """The rows of the kept experts in a parameter that has one row per expert."""
    (piece, *more), rest = pieces, source.shape[1:]
    whole = Box.whole(source.shape)
    if more or piece.slot.region != whole or param.shape != (len(cut.experts), *rest) or param.role != "router":
        raise PlanError(f"{param.name}: {list(source.shape)} cannot be cut to {list(param.shape)}")
    return tuple(
        piece._replace(
            slot=piece.slot._replace(
                region=Box((first, *(0,) * len(rest)), (last, *rest)),
                at=(piece.slot.at[0] + cut.experts[first], *piece.slot.at[1:]),
            )
        )
        for first, last in _runs(cut.experts)
    )


def _runs(numbers: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Where consecutive numbers stand: [3, 4, 9] gives (0, 2), (2, 3)."""
    breaks = [place for place, (one, two) in enumerate(pairwise(numbers), 1) if two != one + 1]
    yield from pairwise((0, *breaks, len(numbers)))


def _rename_skipped(view: Checkpoint, sources: Mapping[str, Param], checkpoint: Checkpoint) -> None:
    """Give the modules that a quantization_config leaves alone their new names, and drop those that are gone."""
    if view.config is None or view.quantization is None:
        return
    known = {name for param in checkpoint.params for name in _modules(param)}
    renamed = {
        old: new
        for param in view.params
        for old, new in zip(_modules(sources[param.name]), _modules(param), strict=True)
    }
    said = dict(view.quantization)
    for field in _SKIPPED:
        if isinstance(said.get(field), list):
            if not all(isinstance(name, str) for name in said[field]):
                what = f"config.json: quantization_config.{field} holds something that is not a module's name"
                raise FormatError(what, hint="`dsctl verify` checks the config, with --fix it is written anew")
            names = [renamed.get(name, name) for name in said[field] if name not in known or name in renamed]
            said[field] = list(dict.fromkeys(names))
    stored = [(param, pieces[0].codec) for param in view.params if (pieces := view.survey.pieces.get(param.name))]
    if stored and not any(codec.config() for _, codec in stored):
        del view.config["quantization_config"]
        return
    if said.get("quant_method") == dress.METHOD:
        said |= _targeted(view.quantization, [(param, sources[param.name], codec) for param, codec in stored])
    view.config["quantization_config"] = said


def _targeted(said: Mapping[str, Any], stored: Sequence[tuple[Param, Param, Codec]]) -> dict[str, Any]:
    """The groups and exceptions of compressed-tensors for these parameters, by what is said of those they are cut from.

    Patterns hold numbers of layers, and a group of which nothing is left would be of nothing.
    """

    def patterned(entries: Any) -> list[str]:
        wanted = texts(entries)
        marked = [(new, any(is_named(text, _module(old), old) for text in wanted)) for new, old, _ in linears]
        return list(patterns(marked))

    linears = [one for one in stored if linear(one[0])]
    groups = {}
    for name, group in (said.get("config_groups") or {}).items():
        targets = texts(group.get("targets"))
        held = (
            any(is_named(text, _module(old), old) for text in targets) for _, old, codec in linears if codec.config()
        )
        if any(held):
            groups[name] = group if LINEAR in targets else {**group, "targets": patterned(group.get("targets"))}
    return {"config_groups": groups, "ignore": patterned(said.get("ignore"))}


def _module(param: Param) -> str:
    return param.name.removesuffix(".weight")


def _modules(param: Param) -> tuple[str, ...]:
    """Every name under which a config may leave a parameter's module alone; experts may be named one by one."""
    return (param.name.removesuffix(".weight"), *modules(param))
