"""The `config.json` of DeepSeek V4.1: its attention, and the config of a part or of a small model. Pure.

What each field means: deepseek-ai/DeepSeek-V4.1-Flash (revision dba1be0a), config.json and inference/model.py.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsctl.core.attention import SharedCaches, whole_numbers
from dsctl.core.config_fields import TEXT, edited, resized, text_fields
from dsctl.core.errors import PlanError
from dsctl.models.deepseek_v3 import limited_tokens
from dsctl.models.deepseek_v3_config import refuse_two_numbers
from dsctl.models.deepseek_v4_config import last_layers, layers_read
from dsctl.models.deepseek_v41_tables import compacted, part_sizes

_RATIOS, _TARGETS, _STAGES = "compress_ratios", "dspark_target_layer_ids", "num_nextn_predict_layers"
_CACHES, _INDEXERS, _POOL = "kv_source_layer_ids", "index_source_layer_ids", "candidate_source_layer_id"
_TABLES = "engram_layer_ids"
# The rows of every part of an n-gram table in a slice: its hashes still spread over them, and a table takes 26 MB.
COMPACT = 4096


def _numbers(config: Mapping[str, Any], field: str) -> list[int]:
    found = config.get(field)
    return [number for number in found if type(number) is int] if isinstance(found, list) else []


def attention(config: Mapping[str, Any]) -> SharedCaches | None:
    """The sizes of attention in the main layers, or None if the config does not have them."""
    said = text_fields(config)
    sizes = whole_numbers(
        said, "num_attention_heads", "head_dim", "qk_rope_head_dim", "sliding_window", "index_n_heads",
        "index_head_dim", "index_topk", _POOL, "candidate_topk_blocks", "candidate_block_size", "num_hidden_layers",
    )  # fmt: skip
    if sizes is None:
        return None
    *plain, pool, blocks, each, layers = sizes
    ratios = _numbers(said, _RATIOS)
    if not 0 < layers <= len(ratios) or min(ratios) < 0:
        return None
    caches, indexers = (tuple(_numbers(said, field)) for field in (_CACHES, _INDEXERS))
    if any(not 0 <= layer < layers or not ratios[layer] for layer in (*caches, *indexers)):
        return None
    return SharedCaches(tuple(ratios[:layers]), caches, indexers, pool, blocks * each, *plain)


def without_mtp(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config for a checkpoint without a drafter."""
    said = text_fields(config)
    small = {field: value for field, value in said.items() if not field.startswith("dspark_")}
    if _STAGES in small:
        small[_STAGES] = 0
    if _RATIOS in small:
        small[_RATIOS] = small[_RATIOS][: small["num_hidden_layers"]]
    return resized(config, small)


def with_mtp(config: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The same config with the drafter that another one describes, in the place of its own."""
    bare, theirs = without_mtp(config), text_fields(other)
    taken = {field: value for field, value in theirs.items() if field.startswith("dspark_") or field == _STAGES}
    layers = theirs.get("num_hidden_layers")
    stages = _numbers(theirs, _RATIOS)[layers:] if type(layers) is int and layers > 0 else []
    ratios = [*text_fields(bare)[_RATIOS], *stages]
    nested = bare.get(TEXT)
    # `edited` would put new fields beside `text_config`, where loaders do not look for them.
    fields = taken | {_RATIOS: ratios}
    return {**bare, TEXT: nested | fields} if isinstance(nested, dict) else bare | fields


def sliced(config: Mapping[str, Any], layers: Sequence[int], experts: Sequence[int]) -> dict[str, Any]:
    """The config adapted to layers and experts, with n-gram tables of parts of `COMPACT` rows.

    Raises:
        PlanError: a layer reads the cache, the chosen entries or the candidates of a layer that is left out.
    """
    said = text_fields(config)
    whole, ratios = said["num_hidden_layers"], said[_RATIOS]
    main = [layer for layer in layers if layer < whole]
    _refuse_orphans(said, main)
    stages = len(layers) - len(main)
    small = dict(said) if stages else text_fields(without_mtp(config))
    small |= {"num_hidden_layers": len(main), _RATIOS: [ratios[layer] for layer in main] + [0] * stages}
    if _STAGES in small:
        small[_STAGES] = stages
    for field in (_CACHES, _INDEXERS):
        small[field] = [main.index(layer) for layer in said[field] if layer in main]
    if type(said.get(_POOL)) is int:
        last = small[_CACHES][-1] if small[_CACHES] else len(main) - 1
        small[_POOL] = main.index(said[_POOL]) if said[_POOL] in main else last
    small |= compacted(config, main, COMPACT)
    if isinstance(small.get(_TARGETS), list):
        small[_TARGETS] = layers_read(small[_TARGETS], main)
    return resized(config, small | (_fewer_experts(small, experts) if experts else {}))


def _refuse_orphans(said: Mapping[str, Any], main: Sequence[int]) -> None:
    missing = sorted({layer for kept in main for layer in _needed(said, kept)}.difference(main))
    if missing:
        one = next(kept for kept in main if missing[0] in _needed(said, kept))
        what = f"layer {one} uses what layer {missing[0]} computes: its cache entries or the entries that it chooses"
        raise PlanError(what, hint=f"--layers must include {', '.join(map(str, missing))} too")


def _needed(said: Mapping[str, Any], layer: int) -> Iterator[int]:
    """The layers from which a main layer takes the cache, the choice of entries, and the candidates."""
    if not said[_RATIOS][layer]:
        return
    for field in (_CACHES, _INDEXERS):
        sources = sorted(said[field])
        place = bisect_right(sources, layer)
        if place:
            yield sources[place - 1]
    pool = said.get(_POOL)
    if layer in said[_INDEXERS] and type(pool) is int and layer > pool:
        yield pool


def _fewer_experts(said: Mapping[str, Any], experts: Sequence[int]) -> dict[str, Any]:
    """The numbers of experts; a drafter has the kept ones among its own."""
    found: dict[str, Any] = {
        "n_routed_experts": len(experts),
        "num_experts_per_tok": min(said.get("num_experts_per_tok") or 1, len(experts)),
    }
    own = said.get("dspark_n_routed_experts")
    if type(own) is int:
        kept = sum(expert < own for expert in experts)
        if kept < 2:
            what = f"the drafter has the experts 0 to {own - 1}: {kept} of them would be left, and a router needs two"
            raise PlanError(what, hint="keep two of them, or leave the drafter out of --layers")
        found |= {
            "dspark_n_routed_experts": kept,
            "dspark_num_experts_per_tok": min(said.get("dspark_num_experts_per_tok") or 1, kept),
        }
    return found


def pruned(config: Mapping[str, Any], experts: int, drafter: int) -> dict[str, Any]:
    """The same config for these numbers of routed experts; a drafter has a number of its own."""
    own = {"dspark_n_routed_experts": drafter} if drafter and "dspark_n_routed_experts" in text_fields(config) else {}
    if not own:
        refuse_two_numbers("n_routed_experts", experts, drafter)
    return edited(config, {"n_routed_experts": experts, **own})


def schedule(layers: int) -> dict[str, list[int]]:
    """The kinds of `layers` main layers, as the release arranges its 40: the window alone, then layers that share
    caches of two tokens per entry, then layers that share one cache of an entry per token.
    """
    half = layers // 2 if layers > 6 else 3
    ratios = [0 if layer < 2 else 2 if layer < half else 1 for layer in range(layers)]
    caches = [*range(2, min(half, layers), 6), *([half] if half < layers else [])]
    step = 4 if layers >= 28 else 2
    tables = [layer for layer in ((1, 14) if layers > 14 else (1, 2)) if layer < layers]
    return {
        _RATIOS: ratios,
        _CACHES: caches,
        _INDEXERS: sorted({*caches, *range(half, layers, step)}),
        _POOL: [half if half < layers else max(layers - 1, 0)],
        _TABLES: tables,
    }


def shrunk(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """A copy of the config with small dimensions; sizes of heads and streams stay real.

    `sizes` may hold layers, experts, hidden, heads, vocab, moe_intermediate.
    """
    said = text_fields(config)
    layers, heads, count = sizes["layers"], sizes["heads"], sizes["experts"]
    stages = len(said[_RATIOS]) - said["num_hidden_layers"]
    kinds = schedule(layers)
    own = max(2, min(said["dspark_n_routed_experts"], count // 2))
    least, ngram, hashes = 64, said["engram_max_ngram_size"], min(said["engram_n_heads"], 2)
    tables = part_sizes(len(kinds[_TABLES]), (ngram - 1) * hashes, least)
    small = said | {
        "vocab_size": sizes["vocab"],
        "hidden_size": sizes["hidden"],
        "moe_intermediate_size": sizes["moe_intermediate"],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "n_routed_experts": count,
        "num_experts_per_tok": min(said["num_experts_per_tok"], max(count // 2, 1)),
        "q_lora_rank": min(said["q_lora_rank"], sizes["hidden"]),
        "o_lora_rank": min(said["o_lora_rank"], sizes["hidden"]),
        "o_groups": min(said["o_groups"], heads),
        "index_n_heads": min(said["index_n_heads"], heads),
        "index_topk": min(said["index_topk"], 64),
        "candidate_topk_blocks": min(said["candidate_topk_blocks"], 16),
        **kinds,
        _POOL: kinds[_POOL][0],
        _RATIOS: kinds[_RATIOS] + [0] * stages,
        "engram_n_heads": hashes,
        "engram_vocab_size": least,
        "engram_num_embeddings": [sum(one) for one in tables],
        "engram_compressed_vocab_size": min(said["engram_compressed_vocab_size"], sizes["vocab"]),
        "dspark_n_routed_experts": own,
        "dspark_num_experts_per_tok": min(said["dspark_num_experts_per_tok"], max(own // 2, 1)),
        _TARGETS: last_layers(len(said[_TARGETS]), layers),
        "dspark_noise_token_id": min(said["dspark_noise_token_id"], sizes["vocab"] - 1),
    }
    if "image_token_id" in small:
        small["image_token_id"] = min(small["image_token_id"], sizes["vocab"] - 2)
    least_of = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2}
    if isinstance(small.get("vision_config"), dict):
        eye = small["vision_config"]
        small["vision_config"] = eye | {field: min(eye[field], most) for field, most in least_of.items()}
    return resized(config, small | limited_tokens(said))
