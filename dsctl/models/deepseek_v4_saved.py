"""Translate the `config.json` that transformers saves for DeepSeek V4 to the releases' fields. Pure.

huggingface/transformers 5.24, models/deepseek_v4/configuration_deepseek_v4.py: `__post_init__` turns the releases'
fields into its own fields, which it saves, and `mtp.*` is not loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsctl.core.errors import FormatError
from dsctl.models.deepseek_v4_config import without_mtp

_RATIOS, _KINDS, _ROUTING, _RATES = "compress_ratios", "layer_types", "mlp_layer_types", "compress_rates"
_ROPE, _SLIDING, _INDEXED = "rope_parameters", "sliding_attention", "compressed_sparse_attention"
# Compression ratios by kind of layer if the config has none; a layer with an indexer always has this one.
_USUAL = {_INDEXED: 4, "heavily_compressed_attention": 128}
# Its own fields that have no meaning with these values.
_NEUTRAL = {
    "mlp_bias": False, "output_router_logits": False, "pad_token_id": None, "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
}  # fmt: skip
_SILENT = (("dequantize", False), ("modules_to_convert", None), ("modules_to_not_convert", None))
_OWN = (_KINDS, _ROUTING, _RATES, _ROPE, "partial_rotary_factor", "dtype")


def released(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with a release's fields; a config that already has them is returned unchanged.

    It has no drafter, because transformers does not save one.

    Raises:
        FormatError: it has a setting that a release's fields cannot express.
    """
    if _RATIOS in config or _KINDS not in config:
        return dict(config)
    said = {name: value for name, value in config.items() if name not in _OWN}
    said = {name: value for name, value in said.items() if name not in _NEUTRAL or value != _NEUTRAL[name]}
    said |= {_RATIOS: _ratios(config), "num_hash_layers": _hashed(config), **_rotary(config)}
    if "dtype" in config:
        said.setdefault("torch_dtype", config["dtype"])
    head, factor = config.get("head_dim"), config.get("partial_rotary_factor")
    if type(head) is int and isinstance(factor, (int, float)):
        said.setdefault("qk_rope_head_dim", int(head * factor))
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict):
        said |= _quantized(quantization, said)
    else:
        said.pop("expert_dtype", None)
    return dict(sorted(without_mtp(said).items()))


def restored(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same if it can be translated, else the unchanged config."""
    try:
        return released(config)
    except FormatError:
        return dict(config)


def _ratios(config: Mapping[str, Any]) -> list[int]:
    kinds, layers = config[_KINDS], config.get("num_hidden_layers")
    rates = config.get(_RATES)
    ratios = {_SLIDING: 0, **_USUAL, **(rates if isinstance(rates, dict) else {})}
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise FormatError(f"config.json: {_KINDS} is not a list of num_hidden_layers {layers} kinds")
    found = []
    for layer, kind in enumerate(kinds):
        ratio = ratios.get(kind) if isinstance(kind, str) else None
        if type(ratio) is not int or (kind == _SLIDING) != (ratio == 0) or (kind == _INDEXED) != (ratio == 4):
            what = f"{kind!r} of layer {layer} with {_RATES} {ratio!r}"
            raise FormatError(f"config.json: {_KINDS}: no release has {what}")
        found.append(ratio)
    return found


def _hashed(config: Mapping[str, Any]) -> int:
    """The number of layers that choose experts by token; in releases these are the first layers."""
    kinds = config.get(_ROUTING)
    if not isinstance(kinds, list):
        raise FormatError(f"config.json: no {_ROUTING} says which layers choose experts by token")
    count = kinds.count("hash_moe")
    if kinds != ["hash_moe"] * count + ["moe"] * (len(kinds) - count):
        raise FormatError(f"config.json: {_ROUTING}: releases choose by token in the first layers alone")
    return count


def _rotary(config: Mapping[str, Any]) -> dict[str, Any]:
    """A release's rotary embedding fields: only layers that compress have a scaled embedding."""
    both = config.get(_ROPE)
    main, compress = (both.get(name) for name in ("main", "compress")) if isinstance(both, dict) else (None, None)
    if not isinstance(main, dict) or not isinstance(compress, dict):
        raise FormatError(f"config.json: no {_ROPE} of main and compress")
    if main.get("rope_type") != "default":
        raise FormatError(f"config.json: {_ROPE}: main is {main.get('rope_type')!r}, in releases it is unscaled")
    thetas = {"rope_theta": main.get("rope_theta"), "compress_rope_theta": compress.get("rope_theta")}
    for name, theta in thetas.items():
        if theta is None or config.get(name, theta) != theta:
            raise FormatError(f"config.json: {_ROPE}: rope_theta {theta!r} beside {name} {config.get(name)!r}")
    kind = compress.get("rope_type")
    if kind == "default":
        return {**thetas, "rope_scaling": None}
    rest = {name: value for name, value in compress.items() if name not in ("rope_type", "rope_theta", "type")}
    rest.pop("partial_rotary_factor", None)
    if rest.get("attention_factor") == 1.0:
        del rest["attention_factor"]
    return {**thetas, "rope_scaling": dict(sorted({**rest, "type": kind}.items()))}


def _quantized(quantization: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """The `quantization_config` without meaningless fields, and the experts' dtype beside it, as releases have it."""
    rest = {name: value for name, value in quantization.items() if (name, value) not in _SILENT}
    kind = rest.pop("expert_dtype", None)
    if rest.get("quant_method") == "fp8":
        rest.setdefault("fmt", "e4m3")
    beside = {} if kind is None or "expert_dtype" in said else {"expert_dtype": kind}
    return {"quantization_config": dict(sorted(rest.items())), **beside}
