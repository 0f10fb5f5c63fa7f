"""The `config.json` of V3 and models with its fields: that of a part, and that without MTP layers. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MTP = "num_nextn_predict_layers"
# Fields with an entry for each of the main layers.
_PER_LAYER = ("indexer_types", "layer_types", "mlp_layer_types")


def without_mtp(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config without MTP layers, if it has the field."""
    return {**config, **({_MTP: 0} if _MTP in config else {})}


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
