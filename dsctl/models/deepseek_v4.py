"""DeepSeek V4: compressed attention with a window, hyper-connections, experts in four bits, and a drafter of two kinds.

Names, shapes and dtypes: deepseek-ai/DeepSeek-V4-Flash, inference/model.py and its published tensors, as the header
schemas of ByteDance-Seed/VeOmni (formats/v4-flash.json and v4-flash-base.json, commit 7a496e8d) list them; the block
drafter: deepseek-ai/DeepSeek-V4-Flash-0731. Split dimensions: inference/convert.py of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import msgspec

from dsctl.core.attention import Sizes
from dsctl.core.header import TensorSpec
from dsctl.core.params import DSPARK, MTP, PLAIN_TRAITS, Drafter, Family, Published, Traits, Unit
from dsctl.models.deepseek_v3 import DeepseekV3
from dsctl.models.deepseek_v4_config import (
    INDEXED,
    attention,
    expected,
    shrunk,
    sliced,
    speaks_of_blocks,
    units,
    with_mtp,
    without_mtp,
)  # fmt: skip
from dsctl.models.deepseek_v4_dimensions import MOST_STAGES, BlockSizes, Dimensions, dimensions
from dsctl.models.deepseek_v4_faults import contradictions
from dsctl.models.deepseek_v4_saved import restored
from dsctl.models.deepseek_v4_vision import vision_tower
from dsctl.models.model import Contradiction

# Endings of names that only one kind of drafter has.
_TELLING = {
    DSPARK: ("main_proj.weight", "main_norm.weight", "markov_w1.weight", "markov_w2.weight"),
    MTP: ("e_proj.weight", "h_proj.weight", "enorm.weight", "hnorm.weight"),
}
_STAGE, _OWN = "mtp.{}.", "mtp.0.emb.tok_emb.weight"
# An expert of the main layers, and one of a drafter that is stored alone.
_EXPERTS = ("layers.0.ffn.experts.0.w1.", "mtp.0.ffn.experts.0.w1.")
QUANTIZED = ("attention", "indexer", "shared experts", "mtp")
_LAYER, _DRAFT = "layers.{layer}.", "mtp.{layer}."


def told(stored: Mapping[str, TensorSpec]) -> Traits:
    """Facts that the names and dtypes of a checkpoint's tensors show.

    `num_nextn_predict_layers` does not count the stages of a drafter: releases with three say 1.
    """
    stages = next(number for number in range(MOST_STAGES, -1, -1) if number == 0 or _has_stage(stored, number - 1))
    drafter = ""
    for kind, ends in _TELLING.items():
        names = (f"{_STAGE.format(stage)}{head}{end}" for stage in range(stages) for head in _HEADS for end in ends)
        if not drafter and any(name in stored for name in names):
            drafter = kind
    expert = next((one for one in _EXPERTS if f"{one}weight" in stored), _EXPERTS[0])
    codes, scale = stored.get(f"{expert}weight"), stored.get(f"{expert}scale")
    # Only models with vision have a router bias for images; the drafter alone shows it, too.
    vision = "vision.norm.weight" in stored or ("embed.weight" not in stored and "mtp.0.ffn.gate.bias_vl" in stored)
    return Traits(
        drafter or (DSPARK if stages > 1 else MTP if stages else ""),
        stages or None,
        _OWN in stored,
        vision,
        {"I8": "e2m1", "F4": "e2m1", "F8_E4M3": "e4m3"}.get(codes.dtype, "") if codes and scale else "",
        scale.dtype if codes and scale else "",
    )


_HEADS = ("", "markov_head.")


def stages_of(kind: str, stages: int) -> Drafter:
    """A drafter with so many stages."""
    return Drafter(kind, tuple(f"mtp.{number}" for number in range(stages)))


def _has_stage(stored: Mapping[str, TensorSpec], number: int) -> bool:
    """Whether a parameter of a drafter's stage is present."""
    stage = _STAGE.format(number)
    return any(f"{stage}{name}" in stored for name in ("attn_norm.weight", "attn.wkv.weight", "ffn.gate.weight"))


@dataclass(frozen=True, slots=True)
class Block:
    """Layers with the same parts: the prefix of their names, their numbers, and their compression ratio."""

    d: BlockSizes
    prefix: str
    layers: tuple[int, ...]
    first: int = 0

    def at(self, layers: tuple[int, ...] | None = None) -> dict[str, Any]:
        """The placement fields of their families."""
        return {
            "layers": self.layers if layers is None else layers, "first_layer": self.first, "mtp": self.first > 0,
        }  # fmt: skip

    def family(self, name: str, shape: tuple[int, ...], role: str, **more: Any) -> Family:
        return Family(f"{self.prefix}{name}", shape, role, **{**self.at(), **more})

    def norm(self, name: str, size: int) -> Family:
        return self.family(f"{name}.weight", (size,), "norm")

    def attention(self) -> Iterator[Family]:
        """Keys and values are one vector of `head_dim` for all heads; the heads' outputs pass through groups."""
        d = self.d
        query, wide = d.num_attention_heads * d.head_dim, d.o_groups * d.o_lora_rank
        for name, shape, split in (
            ("wq_a", (d.q_lora_rank, d.hidden_size), None),
            ("wq_b", (query, d.q_lora_rank), 0),
            ("wkv", (d.head_dim, d.hidden_size), None),
            ("wo_a", (wide, query // d.o_groups), 0),
            ("wo_b", (d.hidden_size, wide), 1),
        ):
            fused = f"{self.prefix}attn.fused_wqa_wkv" if split is None else ""
            yield self.family(f"attn.{name}.weight", shape, "attention", quantizable=True, split=split, fused=fused)
        yield self.family("attn.attn_sink", (d.num_attention_heads,), "attention", split=0, dtype="F32")
        yield self.norm("attn.q_norm", d.q_lora_rank)
        yield self.norm("attn.kv_norm", d.head_dim)
        yield self.norm("attn_norm", d.hidden_size)
        yield self.norm("ffn_norm", d.hidden_size)

    def compressor(self, name: str, role: str, ratio: int, size: int, layers: tuple[int, ...]) -> Iterator[Family]:
        """The parameters that compress `ratio` tokens to one entry of `size` values."""
        width = 2 * size if ratio == INDEXED else size
        where = {"layers": layers, "variant": f"ratio {ratio}"}
        yield self.family(f"{name}.ape", (ratio, width), role, dtype="F32", **where)
        yield self.family(f"{name}.wkv.weight", (width, self.d.hidden_size), role, **where)
        yield self.family(f"{name}.wgate.weight", (width, self.d.hidden_size), role, **where)
        yield self.family(f"{name}.norm.weight", (size,), "norm", **where)

    def compressed(self) -> Iterator[Family]:
        """The compressors of layers, by ratio, and the indexers."""
        d = self.d
        kinds = {layer: d.compress_ratios[layer] for layer in self.layers}
        for ratio in sorted({*kinds.values()} - {0}):
            layers = tuple(layer for layer, kind in kinds.items() if kind == ratio)
            yield from self.compressor("attn.compressor", "compressor", ratio, d.head_dim, layers)
            if ratio != INDEXED:
                continue
            shape = d.index_n_heads * d.index_head_dim, d.q_lora_rank
            where: dict[str, Any] = {"layers": layers, "split": 0}
            yield self.family("attn.indexer.wq_b.weight", shape, "indexer", quantizable=True, **where)
            yield self.family("attn.indexer.weights_proj.weight", (d.index_n_heads, d.hidden_size), "indexer", **where)
            yield from self.compressor("attn.indexer.compressor", "indexer", ratio, d.index_head_dim, layers)

    def hyper_connections(self, sites: Sequence[str]) -> Iterator[Family]:
        """`hc_mult` residual streams: how a site reads, writes and mixes them (24 numbers for 4), in float32."""
        streams = self.d.hc_mult
        for site in sites:
            numbers, scales = (streams, 1) if site == "head" else (streams * (streams + 2), 3)
            shapes = {"fn": (numbers, streams * self.d.hidden_size), "base": (numbers,), "scale": (scales,)}
            for part, shape in shapes.items():
                yield self.family(f"hc_{site}_{part}", shape, "hyper-connections", dtype="F32")

    def experts(self, vision: bool) -> Iterator[Family]:
        """Router, shared and routed experts; the first `num_hash_layers` layers choose by token, without a bias."""
        d = self.d
        hashed = () if self.first else tuple(layer for layer in self.layers if layer < d.num_hash_layers)
        biased = self.layers if vision else tuple(layer for layer in self.layers if layer not in hashed)
        yield self.family("ffn.gate.weight", (d.n_routed_experts, d.hidden_size), "router")
        if hashed:
            table = d.vocab_size, d.num_experts_per_tok
            yield self.family("ffn.gate.tid2eid", table, "router", dtype="I64", layers=hashed, below=d.n_routed_experts)
        if biased:
            yield self.family("ffn.gate.bias", (d.n_routed_experts,), "router", dtype="F32", layers=biased)
        if vision:
            yield self.family("ffn.gate.bias_vl", (d.n_routed_experts,), "router", dtype="F32")
        if d.n_shared_experts:
            inner = d.moe_intermediate_size * d.n_shared_experts
            yield from self.gated("ffn.shared_experts.", "shared experts", inner, None)
        where = {"experts": d.n_routed_experts, "active": d.num_experts_per_tok}
        yield from self.gated("ffn.experts.{expert}.", "routed experts", d.moe_intermediate_size, 0, **where)

    def gated(self, name: str, role: str, inner: int, cut: int | None, **where: Any) -> Iterator[Family]:
        """The three matrices of a gated MLP; shared experts are whole in every rank."""
        hidden, both = self.d.hidden_size, f"{self.prefix}{name}w13"
        for part, shape, split, fused in (
            ("w1", (inner, hidden), cut, both),
            ("w3", (inner, hidden), cut, both),
            ("w2", (hidden, inner), None if cut is None else 1, ""),
        ):
            yield self.family(f"{name}{part}.weight", shape, role, quantizable=True, split=split, fused=fused, **where)

    def whole(self, vision: bool) -> Iterator[Family]:
        """All of these layers."""
        yield from self.attention()
        yield from self.compressed() if not self.first else ()
        yield from self.hyper_connections(("attn", "ffn"))
        yield from self.experts(vision)


def outside(d: Dimensions) -> Iterator[Family]:
    """Embedding, the reduction of all residual streams to one, last norm and head."""
    yield Family("embed.weight", (d.vocab_size, d.hidden_size), "embedding", split=0)
    yield Family("norm.weight", (d.hidden_size,), "norm", last=True)
    yield from (replace(family, last=True) for family in Block(d, "", ()).hyper_connections(("head",)))
    if not d.tie_word_embeddings:
        yield Family("head.weight", (d.vocab_size, d.hidden_size), "head", split=0, last=True)


def drafter(d: Dimensions, kind: str, stages: int, own: bool, vision: bool) -> Iterator[Family]:
    """The drafter's stages: layers without compression, and the parameters that each kind of drafter adds."""
    first = d.num_hidden_layers
    layers = tuple(range(first, first + stages))
    block = Block(d, _DRAFT, layers, first)
    yield from block.whole(vision)
    opening, closing = replace(block, layers=layers[:1]), replace(block, layers=layers[-1:])
    hidden, vocabulary = d.hidden_size, (d.vocab_size, d.hidden_size)
    yield from closing.hyper_connections(("head",))
    yield closing.norm("norm", hidden)
    if kind == MTP:
        for name in ("e_proj", "h_proj"):
            yield block.family(f"{name}.weight", (hidden, hidden), "mtp", quantizable=True)
        yield from (block.norm(name, hidden) for name in ("enorm", "hnorm"))
        if own:
            yield opening.family("emb.tok_emb.weight", vocabulary, "embedding", split=0, twin="embed.weight")
            yield opening.family("head.weight", vocabulary, "head", split=0, twin="head.weight")
        return
    targets = 3 if d.dspark_target_layer_ids is None else max(1, len(d.dspark_target_layer_ids))
    rank = d.dspark_markov_rank or 256
    yield opening.family("main_proj.weight", (hidden, targets * hidden), "mtp", quantizable=True)
    yield opening.norm("main_norm", hidden)
    for name in ("markov_w1", "markov_w2"):
        yield closing.family(f"markov_head.{name}.weight", (d.vocab_size, rank), "mtp", split=0)
    yield closing.family("confidence_head.proj.weight", (1, hidden + rank), "mtp")


class DeepseekV4(DeepseekV3):
    """V4-Flash and V4-Pro, their bases, and the releases with a block drafter."""

    name = "deepseek_v4"
    architecture = "DeepseekV4ForCausalLM"
    # The smallest number of layers that includes every kind.
    usual_sizes: Mapping[str, int] = MappingProxyType({"layers": 5})

    def traits(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Traits:
        found = told(stored)
        return found if found.drafter else replace(found, drafter=expected(config)[0])

    def families(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Family, ...]:
        d = dimensions(config)
        kind, stages = expected(config)
        # A stage that only the config mentions is missing; no release has a classic drafter with several stages.
        if traits.stages is not None:
            stages = traits.stages if traits.drafter == MTP else max(traits.stages, stages)
        kind = traits.drafter or kind
        main = Block(d, _LAYER, tuple(range(d.num_hidden_layers)))
        return (
            *outside(d),
            *main.whole(traits.vision),
            *(drafter(d, kind, stages, traits.own, traits.vision) if stages else ()),
            *(vision_tower(d) if traits.vision else ()),
        )

    def contradictions(
        self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec], traits: Traits
    ) -> Iterator[Contradiction]:
        checked = msgspec.structs.asdict(dimensions(config))
        return contradictions({field: checked.get(field, value) for field, value in config.items()}, stored, traits)

    def published(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> Mapping[str, Published]:
        # No release with a block drafter is a base: eight-bit experts there come from a repack of four-bit experts.
        eight_bits = traits.experts == "e4m3" and traits.scales == "F32" and traits.drafter != DSPARK
        base = traits.own or eight_bits
        stored, who = ("fp8-block", "V4-Flash-Base") if base else ("fp8-block-e8m0", "V4-Flash")
        rest = Published(stored, "v4", "ue8m0", f"as {who} stores them")
        fields = (("expert_dtype", (("e2m1", "fp4"), ("e4m3", "fp8"))),)
        experts = rest._replace(format=stored if base else "mxfp4", fields=fields)
        return dict.fromkeys(QUANTIZED, rest) | {"routed experts": experts}

    def attention(self, config: Mapping[str, Any]) -> Sizes | None:
        return attention(config)

    def units(self, config: Mapping[str, Any]) -> tuple[Unit, ...]:
        return units(config)

    def restored(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return restored(config)

    def drafter(self, config: Mapping[str, Any]) -> Drafter:
        kind, stages = expected(config)
        return stages_of(kind or (DSPARK if speaks_of_blocks(config) else ""), stages)

    def stored_drafter(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Drafter:
        found = told(stored)
        return stages_of(found.drafter, found.stages or 0)

    def without_mtp(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return without_mtp(config)

    def with_mtp(self, config: Mapping[str, Any], other: Mapping[str, Any], traits: Traits) -> dict[str, Any]:
        return with_mtp(config, other, expected(other)[1] if traits.stages is None else traits.stages)

    def sliced(self, config: Mapping[str, Any], layers: Sequence[int], experts: Sequence[int]) -> dict[str, Any]:
        return sliced(config, layers, experts)

    def tiny(self, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        return shrunk(config, sizes)
