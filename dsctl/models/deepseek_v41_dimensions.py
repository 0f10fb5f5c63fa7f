"""The fields of `config.json` that set names and shapes of DeepSeek V4.1, checked and typed. Pure.

deepseek-ai/DeepSeek-V4.1-Flash (revision dba1be0a), config.json, inference/model.py and inference/engram.py. The
language model's fields are in `text_config`, those of the parts that read images in `vision_config`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec

from dsctl.core.config_fields import text_fields
from dsctl.core.errors import FormatError
from dsctl.models.deepseek_v3 import Count, Size
from dsctl.models.deepseek_v4_dimensions import MOST_STAGES, BlockSizes

# The most rows of an n-gram table: five times a release's.
Rows = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]
_HINT = "put the matching config.json beside the files"


class Vision(msgspec.Struct, frozen=True):
    """The fields of `vision_config` that set shapes."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Count
    patch_size: Size = 14
    downsample_ratio: Size = 3


class Dimensions(BlockSizes, frozen=True, kw_only=True):
    """The fields of `config.json` that set names and shapes."""

    kv_source_layer_ids: tuple[Count, ...]
    index_source_layer_ids: tuple[Count, ...]
    engram_layer_ids: tuple[Count, ...] = ()
    engram_num_embeddings: tuple[Rows, ...] = ()
    engram_head_dim: Size = 256
    engram_n_heads: Size = 8
    engram_max_ngram_size: Annotated[int, msgspec.Meta(ge=2, le=64)] = 4
    dspark_n_routed_experts: Size | None = None
    dspark_num_experts_per_tok: Size | None = None
    vision_config: Vision | None = None

    @property
    def stages(self) -> int:
        """The number of the drafter's stages: one entry of `compress_ratios` for each, after those of the layers."""
        return len(self.compress_ratios) - self.num_hidden_layers

    @property
    def looked_up(self) -> int:
        """The number of rows that a token looks up in a table: one for each n-gram length from 2 and each head."""
        return (self.engram_max_ngram_size - 1) * self.engram_n_heads


def dimensions(config: Mapping[str, Any]) -> Dimensions:
    """Check and type the fields that set names and shapes.

    Raises:
        FormatError: one is missing, of the wrong type or absurd, or contradicts others.
    """
    try:
        found = msgspec.convert(text_fields(config), Dimensions)
    except msgspec.ValidationError as error:
        raise FormatError(f"config.json: {error}", hint=_HINT) from None
    for wrong in _wrong(found):
        raise FormatError(f"config.json: {wrong}", hint=_HINT)
    return found


def _wrong(d: Dimensions) -> Iterator[str]:
    """Impossible combinations of fields."""
    layers = d.num_hidden_layers
    if not 0 <= d.stages <= MOST_STAGES:
        yield f"compress_ratios has {len(d.compress_ratios):,} entries for {layers} layers and a drafter's stages"
    if d.num_attention_heads * d.head_dim % d.o_groups:
        yield f"o_groups {d.o_groups} does not divide {d.num_attention_heads} heads of {d.head_dim}"
    if len(d.engram_layer_ids) != len(d.engram_num_embeddings):
        tables = len(d.engram_num_embeddings)
        yield f"engram_layer_ids names {len(d.engram_layer_ids)} layers, engram_num_embeddings has {tables} sizes"
    for field in ("kv_source_layer_ids", "index_source_layer_ids", "engram_layer_ids"):
        numbers = getattr(d, field)
        if len(set(numbers)) < len(numbers) or max(numbers, default=0) >= layers:
            yield f"{field} {list(numbers)} are not different layers of {layers}, numbered from 0"
