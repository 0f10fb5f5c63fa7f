"""The `config.json` of V3 and models with its fields: that of a part, and that without MTP layers. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from itertools import takewhile
from typing import Any

from dsctl.core.config_fields import edited, text_fields
from dsctl.core.errors import PlanError
from dsctl.core.params import MTP, NO_DRAFTER, Drafter
from dsctl.models.model import ExpertGroups

_MTP = "num_nextn_predict_layers"
# The entries of `architectures` in SGLang's own export of a drafter (sgl-project/sglang, export_deepseek_nextn.py).
_EXPORTED = ("DeepseekV3ForCausalLMNextN", "GlmMoeDsaForCausalLMNextN")
# Endings of names that only an MTP layer has, and the most such layers.
_TELLING = ("eh_proj.weight", "enorm.weight", "hnorm.weight", "shared_head.norm.weight")
_MOST_LAYERS = 64
# Fields with an entry for each of the main layers.
_PER_LAYER = ("indexer_types", "layer_types", "mlp_layer_types")


def without_mtp(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config without MTP layers, if it has the field."""
    return {**config, **({_MTP: 0} if _MTP in config else {})}


def is_export(config: Mapping[str, Any]) -> bool:
    """Whether this is the config of a drafter that SGLang's script wrote alone: its one layer has the number 0."""
    named = config.get("architectures")
    exported = isinstance(named, list) and any(one in _EXPORTED for one in named)
    return exported and config.get("num_hidden_layers") == 1


def stored_drafter(config: Mapping[str, Any], stored: Container[str]) -> Drafter:
    """The MTP layers after the main layers that stored tensors show."""
    said = text_fields(config)
    layers = 0 if is_export(said) else said.get("num_hidden_layers")
    if type(layers) is not int or not 0 <= layers <= 1 << 16:
        return NO_DRAFTER
    stages = (f"model.layers.{layers + number}" for number in range(_MOST_LAYERS))
    found = tuple(takewhile(lambda stage: any(f"{stage}.{end}" in stored for end in _TELLING), stages))
    return Drafter(MTP, found) if found else NO_DRAFTER


def with_mtp(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The same config with as many MTP layers as another one has."""
    return {**config, _MTP: other.get(_MTP) or 0}


def sliced(config: Mapping[str, Any], layers: Sequence[int], experts: Sequence[int]) -> dict[str, Any]:
    """The config with the fields adapted that depend on layers and experts."""
    whole = config["num_hidden_layers"]
    main = [layer for layer in layers if layer < whole]
    small = dict(config) | {"num_hidden_layers": len(main)}
    if _MTP in config:
        small[_MTP] = len(layers) - len(main)
    if "first_k_dense_replace" in config:
        small["first_k_dense_replace"] = sum(layer < config["first_k_dense_replace"] for layer in main)
    for field in _PER_LAYER:
        if isinstance(config.get(field), list) and len(config[field]) == whole:
            small[field] = [config[field][layer] for layer in main]
    return small | (_routing(config, len(experts)) if experts else {})


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


def pruned(config: Mapping[str, Any], experts: int, drafter: int) -> dict[str, Any]:
    """The same config for this number of routed experts.

    Raises:
        PlanError: the drafter would have a different number.
    """
    refuse_two_numbers("n_routed_experts", experts, drafter)
    return edited(config, {"n_routed_experts": experts})


def refuse_two_numbers(field: str, experts: int, drafter: int) -> None:
    """Refuse different numbers of experts if the config has one field for both.

    Raises:
        PlanError: they differ.
    """
    if drafter not in (0, experts):
        what = f"config.json has one {field} for main layers and drafter, which would have {experts} and {drafter}"
        raise PlanError(what, hint="give the drafter's layers the same number, or leave them out with --layers")


def expert_groups(config: Mapping[str, Any]) -> ExpertGroups:
    """The groups of a router with `n_group` and `topk_group`.

    A score is the sum of two experts with a correction bias (DeepSeek-V3 inference/model.py, `Gate`), otherwise the
    largest one (deepseek-ai/DeepSeek-V2 modeling_deepseek.py, `group_limited_greedy`).
    """
    said = text_fields(config)
    number, chosen = (said.get(field) for field in ("n_group", "topk_group"))
    if type(number) is not int or type(chosen) is not int or number < 2 or chosen < 1:
        return ExpertGroups()
    return ExpertGroups(number, chosen, 2 if said.get("topk_method", "noaux_tc") == "noaux_tc" else 1)
