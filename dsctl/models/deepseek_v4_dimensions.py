"""The fields of `config.json` that set names and shapes of DeepSeek V4, checked and typed. Pure.

deepseek-ai/DeepSeek-V4-Flash, config.json and inference/model.py; for the parts that read images,
deepseek-ai/DeepSeek-V4-Flash-Vision-Exp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from dsctl.core.errors import FormatError
from dsctl.models.deepseek_v3 import Count, Size
from dsctl.models.deepseek_v4_saved import released

# The most stages of a drafter.
MOST_STAGES = 64
_HINT = "put the matching config.json beside the files"


class BlockSizes(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that set names and shapes of layers, in V4 and V4.1."""

    vocab_size: Size
    hidden_size: Size
    moe_intermediate_size: Size
    num_hidden_layers: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    num_attention_heads: Size
    head_dim: Size
    q_lora_rank: Size
    o_lora_rank: Size
    o_groups: Size
    n_routed_experts: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
    num_experts_per_tok: Size
    index_n_heads: Size
    index_head_dim: Size
    hc_mult: Annotated[int, msgspec.Meta(ge=1, le=64)]
    compress_ratios: tuple[Count, ...]
    num_hash_layers: Count = 0
    n_shared_experts: Count = 0
    tie_word_embeddings: bool = False
    dspark_target_layer_ids: tuple[Count, ...] | None = None
    dspark_markov_rank: Size | None = None


class Dimensions(BlockSizes, frozen=True, kw_only=True):
    """The fields of `config.json` that set names and shapes."""

    vision_n_layers: Count = 32
    vision_dim: Size = 1024
    vision_inter_dim: Size = 2816
    vision_patch_size: Size = 14
    vision_downsample_ratio: Size = 3


def dimensions(config: Mapping[str, Any]) -> Dimensions:
    """Check and type the fields that set names and shapes.

    Raises:
        FormatError: one is missing, of the wrong type or absurd, or contradicts others.
    """
    try:
        found = msgspec.convert(released(config), Dimensions)
    except msgspec.ValidationError as error:
        raise FormatError(f"config.json: {error}", hint=_HINT) from None
    wrong = _wrong(found)
    if wrong:
        raise FormatError(f"config.json: {wrong}", hint=_HINT)
    return found


def _wrong(d: Dimensions) -> str:
    """The first impossible combination of fields, or an empty string."""
    ratios, layers = len(d.compress_ratios), d.num_hidden_layers
    if ratios < layers:
        what = f"{ratios} entries for num_hidden_layers {layers}"
        return f"compress_ratios has {what}: the kind of some layers is unknown"
    if ratios > layers + MOST_STAGES:
        what = f"{ratios:,} entries for {layers} layers and a drafter's stages"
        return f"compress_ratios has {what}: no drafter has more than {MOST_STAGES}"
    if d.num_attention_heads * d.head_dim % d.o_groups:
        return f"o_groups {d.o_groups} does not divide {d.num_attention_heads} heads of {d.head_dim}"
    if d.num_hash_layers > layers:
        return f"num_hash_layers {d.num_hash_layers} is more than num_hidden_layers {layers}"
    return ""
