"""DeepSeek V4.1: V4's attention with caches that layers share, n-gram tables (Engram), and parts that read images.

Names, shapes and dtypes: deepseek-ai/DeepSeek-V4.1-Flash (revision dba1be0a), the headers of its 48 files as public
inventories list them, and inference/model.py. Split dimensions: its inference/convert.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import msgspec

from dsctl.core.attention import Sizes
from dsctl.core.config_fields import text_fields
from dsctl.core.header import TensorSpec
from dsctl.core.params import DSPARK, MTP, PLAIN_TRAITS, Drafter, Family, Param, Published, Traits, Unit
from dsctl.models.deepseek_v3 import DeepseekV3
from dsctl.models.deepseek_v4 import Block, stages_of, told
from dsctl.models.deepseek_v4_config import speaks_of_blocks, units
from dsctl.models.deepseek_v4_vision import aligner, tower
from dsctl.models.deepseek_v41_config import attention, pruned, shrunk, sliced, with_mtp, without_mtp
from dsctl.models.deepseek_v41_dimensions import Dimensions, dimensions
from dsctl.models.deepseek_v41_faults import contradictions
from dsctl.models.deepseek_v41_tables import kept_rows
from dsctl.models.model import Contradiction

QUANTIZED = ("attention", "indexer", "shared experts", "mtp", "engram")
_LAYER, _DRAFT = "layers.{layer}.", "mtp.{layer}."
# FP8 blocks of the matrices, and the groups of columns that share a scale in a row of a table.
BLOCK, ROW_GROUP = (32, 32), (1, 32)
_IMAGE = ("start", "end", "newline")


def caches(block: Block, d: Dimensions) -> Iterator[Family]:
    """Compressors and index keys of the layers whose caches others share, and the indexers that choose entries.

    A compressor of ratio 1 does not pool, so it has no gate.
    """
    owners = d.kv_source_layer_ids
    pooling = tuple(layer for layer in owners if d.compress_ratios[layer] > 1)
    for name, layers in (("wkv", owners), ("wgate", pooling)):
        if layers:
            shape = d.head_dim, d.hidden_size
            yield block.family(f"attn.compressor.{name}.weight", shape, "compressor", layers=layers)
    if owners:
        yield block.family("attn.compressor.norm.weight", (d.head_dim,), "norm", layers=owners)
        yield block.family("attn.indexer.wk.weight", (d.index_head_dim, d.head_dim), "indexer", layers=owners)
        yield block.family("attn.indexer.k_norm.weight", (d.index_head_dim,), "indexer", layers=owners)
    if d.index_source_layer_ids:
        where: dict[str, Any] = {"layers": d.index_source_layer_ids, "split": 0}
        shape = d.index_n_heads * d.index_head_dim, d.q_lora_rank
        yield block.family("attn.indexer.wq_b.weight", shape, "indexer", quantizable=True, **where)
        yield block.family("attn.indexer.weights_proj.weight", (d.index_n_heads, d.hidden_size), "indexer", **where)


def engram(block: Block, d: Dimensions) -> Iterator[Family]:
    """The n-gram tables, one per layer, and the matrix from the rows of a token to a key per stream and a value."""
    for layer, rows in zip(d.engram_layer_ids, d.engram_num_embeddings, strict=True):
        table: dict[str, Any] = {"layers": (layer,), "variant": f"layer {layer}", "split": 0, "table": True}
        shape = rows, d.engram_head_dim
        yield block.family("engram.embed.weight", shape, "engram tables", quantizable=True, **table)
    if not d.engram_layer_ids:
        return
    layers, width = d.engram_layer_ids, d.looked_up * d.engram_head_dim
    shape = (d.hc_mult + 1) * d.hidden_size, width
    yield block.family("engram.wkv.weight", shape, "engram", quantizable=True, layers=layers)
    for name in ("q_weight", "k_weight"):
        yield block.family(f"engram.{name}", (d.hc_mult, d.hidden_size), "engram", layers=layers)


def main_layers(d: Dimensions) -> Iterator[Family]:
    """All main layers. Every router has a bias for text and one for images."""
    block = Block(d, _LAYER, tuple(range(d.num_hidden_layers)))
    yield from block.attention()
    yield from caches(block, d)
    yield from engram(block, d)
    yield from block.hyper_connections(("attn", "ffn"))
    yield from block.experts(vision=True)


def drafter(d: Dimensions) -> Iterator[Family]:
    """The block drafter's stages: layers that attend to the window alone, with fewer experts than the main layers."""
    first, stages = d.num_hidden_layers, d.stages
    fewer = msgspec.structs.replace(
        d,
        n_routed_experts=d.dspark_n_routed_experts or d.n_routed_experts,
        num_experts_per_tok=d.dspark_num_experts_per_tok or d.num_experts_per_tok,
    )
    block = Block(fewer, _DRAFT, tuple(range(first, first + stages)), first)
    opening, closing = replace(block, layers=block.layers[:1]), replace(block, layers=block.layers[-1:])
    hidden, rank = d.hidden_size, d.dspark_markov_rank or 256
    targets = max(1, len(d.dspark_target_layer_ids or ()))
    yield from block.attention()
    yield from block.hyper_connections(("attn", "ffn"))
    yield from block.experts(vision=True)
    yield opening.family("main_proj.weight", (hidden, targets * hidden), "mtp", quantizable=True)
    yield opening.norm("main_norm", hidden)
    yield closing.norm("norm", hidden)
    for name in ("embed", "head"):
        yield closing.family(f"markov_head.{name}.weight", (d.vocab_size, rank), "mtp", split=0)
    yield closing.family("confidence_head.proj.weight", (1, hidden + rank), "mtp")


def vision(d: Dimensions) -> Iterator[Family]:
    """The parts that read images; they are copied unchanged."""
    sizes = d.vision_config
    if sizes is None:
        return
    yield from (Family(f"image_{name}", (d.hidden_size,), "vision") for name in _IMAGE)
    yield from tower(sizes.num_hidden_layers, sizes.hidden_size, sizes.intermediate_size, sizes.patch_size)
    yield from aligner(sizes.hidden_size * sizes.downsample_ratio**2, d.hidden_size)


class DeepseekV41(DeepseekV3):
    """V4.1-Flash."""

    name = "deepseek_v41"
    architecture = "DeepseekV41ForCausalLM"
    # The smallest number of layers that includes every kind.
    usual_sizes: Mapping[str, int] = MappingProxyType({"layers": 8, "hidden": 256})

    def traits(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Traits:
        found = told(stored)
        return replace(found, drafter=DSPARK) if text_fields(config).get("dspark_block_size") else found

    def families(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Family, ...]:
        d = dimensions(config)
        outside = [
            Family("embed.weight", (d.vocab_size, d.hidden_size), "embedding", split=0),
            Family("norm.weight", (d.hidden_size,), "norm", last=True),
        ]
        if not d.tie_word_embeddings:
            outside.append(Family("head.weight", (d.vocab_size, d.hidden_size), "head", split=0, last=True))
        return (*outside, *main_layers(d), *(drafter(d) if d.stages else ()), *vision(d))

    def contradictions(
        self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec], traits: Traits
    ) -> Iterator[Contradiction]:
        return contradictions(dimensions(config), text_fields(config), stored, traits)

    def published(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> Mapping[str, Published]:
        rest = Published("fp8-block-e8m0", "v4", "ue8m0", "as V4.1-Flash stores them", block=BLOCK)
        fields = (("quantization_config.expert_dtype", (("e2m1", "fp4"), ("e4m3", "fp8"))),)
        table = rest._replace(block=ROW_GROUP, own_block=True)
        return dict.fromkeys(QUANTIZED, rest) | {
            "routed experts": rest._replace(format="mxfp4", fields=fields), "engram tables": table,
        }  # fmt: skip

    def attention(self, config: Mapping[str, Any]) -> Sizes | None:
        return attention(config)

    def units(self, config: Mapping[str, Any]) -> tuple[Unit, ...]:
        return units(text_fields(config))

    def drafter(self, config: Mapping[str, Any]) -> Drafter:
        stages = dimensions(config).stages
        return stages_of(DSPARK if speaks_of_blocks(text_fields(config)) else MTP if stages else "", stages)

    def stored_drafter(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Drafter:
        found = told(stored)
        return stages_of(found.drafter, found.stages or 0)

    def without_mtp(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return without_mtp(config)

    def with_mtp(self, config: Mapping[str, Any], other: Mapping[str, Any], traits: Traits) -> dict[str, Any]:
        return with_mtp(config, other)

    def sliced(self, config: Mapping[str, Any], layers: Sequence[int], experts: Sequence[int]) -> dict[str, Any]:
        return sliced(config, layers, experts)

    def pruned(self, config: Mapping[str, Any], experts: int, drafter: int) -> dict[str, Any]:
        return pruned(config, experts, drafter)

    def kept_rows(
        self, config: Mapping[str, Any], small: Mapping[str, Any], source: Param, param: Param
    ) -> Iterable[tuple[int, int]] | None:
        assert source.layer is not None and param.layer is not None
        return kept_rows(config, small, source.layer, param.layer)

    def tiny(self, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        return shrunk(config, sizes)
