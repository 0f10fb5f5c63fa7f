"""The `config.json` of DeepSeek V4: its drafter, and the config of a part or of a small model. Pure.

What each field means: deepseek-ai/DeepSeek-V4-Flash-0731, config.json and inference/model.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsctl.core.attention import Compressed, whole_numbers
from dsctl.core.params import DSPARK, MTP, Unit
from dsctl.models.deepseek_v3 import counted, limited_tokens

# Layers of this ratio compress overlapping groups and choose entries with an indexer.
INDEXED = 4
_RATIOS, _TARGETS = "compress_ratios", "dspark_target_layer_ids"
# It does not count the stages of a drafter.
_LAYERS = "num_nextn_predict_layers"


def _ratios(config: Mapping[str, Any]) -> list[Any]:
    found = config.get(_RATIOS)
    return list(found) if isinstance(found, list) else []


def expected(config: Mapping[str, Any]) -> tuple[str, int]:
    """The kind of drafter in a config, and the number of its stages: one entry of `compress_ratios` for each.

    `num_nextn_predict_layers` does not count stages: it is 1 in releases with three.
    """
    layers = config.get("num_hidden_layers")
    stages = len(_ratios(config)) - layers if type(layers) is int else 0
    if stages <= 0:
        return "", 0
    return (DSPARK if speaks_of_blocks(config) else MTP), stages


def speaks_of_blocks(config: Mapping[str, Any]) -> bool:
    """Whether the config has a block drafter's fields."""
    return any(field.startswith("dspark_") for field in config)


def attention(config: Mapping[str, Any]) -> Compressed | None:
    """The sizes of attention in the main layers, or None if the config does not have them."""
    sizes = whole_numbers(
        config, "num_attention_heads", "head_dim", "qk_rope_head_dim", "sliding_window", "index_n_heads",
        "index_head_dim", "index_topk",
    )  # fmt: skip
    layers, ratios = config.get("num_hidden_layers"), _ratios(config)
    if not sizes or type(layers) is not int or not all(type(ratio) is int and ratio >= 0 for ratio in ratios):
        return None
    return Compressed(tuple(ratios[:layers]), INDEXED, *sizes)


def units(config: Mapping[str, Any]) -> tuple[Unit, ...]:
    """Heads, and the groups of the output projection: a group's matrices read only its own heads."""
    return (*counted(config, "num_attention_heads", "heads"), *counted(config, "o_groups", "output groups"))


def without_mtp(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config for a checkpoint without a drafter."""
    small = {field: value for field, value in config.items() if not field.startswith("dspark_")}
    if _LAYERS in small:
        small[_LAYERS] = 0
    if _RATIOS in small:
        small[_RATIOS] = _ratios(config)[: config["num_hidden_layers"]]
    return small


def with_mtp(config: Mapping[str, Any], other: Mapping[str, Any], stages: int) -> dict[str, Any]:
    """The same config with the drafter that another one describes, of so many stages, in the place of its own."""
    taken = {field: value for field, value in other.items() if field.startswith("dspark_") or field == _LAYERS}
    return without_mtp(config) | taken | {_RATIOS: _ratios(config)[: config["num_hidden_layers"]] + [0] * stages}


def sliced(config: Mapping[str, Any], layers: Sequence[int], experts: Sequence[int]) -> dict[str, Any]:
    """The config adapted to layers and experts: the kinds of layers, those that choose experts by token, the number of
    stages, and the layers that a block drafter reads.
    """
    whole, ratios = config["num_hidden_layers"], _ratios(config)
    main = [layer for layer in layers if layer < whole]
    stages = len(layers) - len(main)
    small = dict(config) if stages else without_mtp(config)
    small |= {"num_hidden_layers": len(main), _RATIOS: [ratios[layer] for layer in main] + [0] * stages}
    if type(config.get("num_hash_layers")) is int:
        small["num_hash_layers"] = sum(layer < config["num_hash_layers"] for layer in main)
    if isinstance(small.get(_TARGETS), list):
        small[_TARGETS] = layers_read(small[_TARGETS], main)
    if experts:
        small["n_routed_experts"] = len(experts)
        small["num_experts_per_tok"] = min(config.get("num_experts_per_tok") or 1, len(experts))
    return small


def layers_read(before: Sequence[int], main: Sequence[int]) -> list[int]:
    """The new numbers of the layers that a drafter reads; the last layers if one of them was removed."""
    if set(before) <= set(main):
        return [main.index(layer) for layer in before]
    return last_layers(len(before), len(main))


def last_layers(count: int, layers: int) -> list[int]:
    """The numbers of the last `count` layers; the first one is repeated if there are fewer."""
    return [max(0, layers - count + place) for place in range(count)]


def shrunk(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """A copy of the config with small dimensions; sizes of heads, compression and streams stay real.

    `sizes` may hold layers, experts, hidden, heads, vocab, moe_intermediate.
    """
    layers, heads, count = sizes["layers"], sizes["heads"], sizes["experts"]
    whole, ratios = config["num_hidden_layers"], _ratios(config)
    small = dict(config) | {
        "vocab_size": sizes["vocab"],
        "hidden_size": sizes["hidden"],
        "moe_intermediate_size": sizes["moe_intermediate"],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "n_routed_experts": count,
        "num_experts_per_tok": min(config["num_experts_per_tok"], max(count // 2, 1)),
        "num_hash_layers": min(config["num_hash_layers"], max(layers - 1, 0)),
        "q_lora_rank": min(config["q_lora_rank"], sizes["hidden"]),
        "o_lora_rank": min(config["o_lora_rank"], sizes["hidden"]),
        "o_groups": min(config["o_groups"], heads),
        "index_n_heads": min(config["index_n_heads"], heads),
        "index_topk": min(config["index_topk"], 64),
        _RATIOS: [*(ratios[layer % whole] for layer in range(layers)), *ratios[whole:]],
    }
    if _TARGETS in config:
        small |= {
            _TARGETS: last_layers(len(config[_TARGETS]), layers),
            "dspark_noise_token_id": min(config["dspark_noise_token_id"], sizes["vocab"] - 1),
        }
    for field, most in (("vision_n_layers", 2), ("vision_dim", 128), ("vision_inter_dim", 256), ("vision_n_heads", 2)):
        if field in config:
            small[field] = min(config[field], most)
    return small | limited_tokens(config)
