"""Kimi K3: KDA and latent attention in turns, residuals that attend to earlier layers, and experts of a smaller width.

Names, shapes and dtypes: moonshotai/Kimi-K3, config.json and its published tensor listing. Split dimensions:
vllm-project/vllm, models/kimi_k3 (pull request 50089); sgl-project/sglang, models/kimi_k3.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from dsctl.core.attention import Sizes
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorSpec
from dsctl.core.params import PLAIN_TRAITS, Family, Published, Traits, Unit
from dsctl.models.deepseek_v3 import DeepseekV3, Size, gated
from dsctl.models.kimi_k3_config import Dimensions, dimensions, expert_groups, pruned, shrunk, sliced
from dsctl.models.kimi_k25 import Vision as VisionSizes
from dsctl.models.kimi_k25 import image_table, plain, prefixed
from dsctl.models.model import ExpertGroups

_LAYER = "model.layers.{layer}."
_ATTENTION, _MLP, _MOE = _LAYER + "self_attn.", _LAYER + "mlp.", _LAYER + "block_sparse_moe."
# Kinds of attention, for names that both kinds of layers have.
_KDA, _FULL = "KDA", "full attention"


class Vision(VisionSizes, frozen=True, kw_only=True):
    """The fields of `vision_config` that set shapes."""

    qkv_hidden_size: Size


def outside(d: Dimensions) -> Iterator[Family]:
    """Embedding, the last attention to the outputs of layers, last norm and head."""
    yield Family("model.embed_tokens.weight", (d.vocab_size, d.hidden_size), "embedding", split=0)
    if d.attn_res_block_size:
        yield Family("model.output_attn_res_norm.weight", (d.hidden_size,), "norm", last=True)
        yield Family("model.output_attn_res_proj.weight", (1, d.hidden_size), "attention", last=True)
    yield Family("model.norm.weight", (d.hidden_size,), "norm", last=True)
    if not d.tie_word_embeddings:
        yield Family("lm_head.weight", (d.vocab_size, d.hidden_size), "head", split=0, last=True)


def everywhere(d: Dimensions) -> Iterator[Family]:
    """The parameters that every layer has: norms, and what its two parts add up of the outputs of earlier layers."""
    names = ["input_layernorm", "post_attention_layernorm"]
    if d.attn_res_block_size:
        names += ["self_attention_res_norm", "mlp_res_norm"]
        for name in ("self_attention_res_proj", "mlp_res_proj"):
            yield Family(f"{_LAYER}{name}.weight", (1, d.hidden_size), "attention", layers=d.layers)
    yield from (Family(f"{_LAYER}{name}.weight", (d.hidden_size,), "norm", layers=d.layers) for name in names)


def kda(d: Dimensions) -> Iterator[Family]:
    """Kimi Delta Attention. No release quantizes its matrices.

    `A_log` has a value per head, padded to the size of a head: loaders take the first ones, so every rank has all.
    """
    sizes, hidden = d.linear_attn_config, d.hidden_size
    heads, size = sizes.num_heads, sizes.head_dim
    width = heads * size
    where: dict[str, Any] = {"layers": d.kda, "variant": _KDA}
    for name, shape, split in (
        ("q_proj", (width, hidden), 0),
        ("k_proj", (width, hidden), 0),
        ("v_proj", (width, hidden), 0),
        ("b_proj", (heads, hidden), 0),
        ("f_a_proj", (size, hidden), None),
        ("f_b_proj", (width, size), 0),
        ("g_proj", (width, hidden), 0),
        ("o_proj", (hidden, width), 1),
    ):
        yield Family(f"{_ATTENTION}{name}.weight", shape, "attention", split=split, **where)
    kernel = width, 1, sizes.short_conv_kernel_size
    for name in ("q", "k", "v"):
        yield Family(f"{_ATTENTION}{name}_conv1d.weight", kernel, "attention", split=0, dtype="F32", **where)
    yield Family(f"{_ATTENTION}A_log", (max(heads, size),), "attention", dtype="F32", **where)
    yield Family(f"{_ATTENTION}dt_bias", (width,), "attention", split=0, dtype="F32", **where)
    yield Family(f"{_ATTENTION}o_norm.weight", (size,), "norm", dtype="F32", **where)


def full_attention(d: Dimensions) -> Iterator[Family]:
    """Multi-head latent attention as in DeepSeek V3, with a gate for its output."""
    heads, rank, rotary, down = (
        d.num_attention_heads,
        d.kv_lora_rank,
        d.qk_rope_head_dim,
        f"{_ATTENTION}fused_qkv_a_proj",
    )
    where: dict[str, Any] = {"layers": d.full, "variant": _FULL}
    for name, shape, split in (
        ("q_a_proj", (d.q_lora_rank, d.hidden_size), None),
        ("q_b_proj", (heads * (d.qk_nope_head_dim + rotary), d.q_lora_rank), 0),
        ("kv_a_proj_with_mqa", (rank + rotary, d.hidden_size), None),
        ("kv_b_proj", (heads * (d.qk_nope_head_dim + d.v_head_dim), rank), 0),
        ("o_proj", (d.hidden_size, heads * d.v_head_dim), 1),
    ):
        fused = down if split is None else ""
        yield Family(f"{_ATTENTION}{name}.weight", shape, "attention", True, split, fused=fused, **where)
    if d.mla_use_output_gate:
        shape = heads * d.v_head_dim, d.hidden_size
        yield Family(f"{_ATTENTION}g_proj.weight", shape, "attention", split=0, **where)
    for name, size in (("q_a_layernorm", d.q_lora_rank), ("kv_a_layernorm", rank)):
        yield Family(f"{_ATTENTION}{name}.weight", (size,), "norm", **where)


def experts(d: Dimensions) -> Iterator[Family]:
    """A MoE layer: its routed experts read and write a smaller vector, made by two matrices that every rank has."""
    hidden, width, inner, layers = d.hidden_size, d.expert_width, d.moe_intermediate_size, d.moe
    yield Family(f"{_MOE}gate.weight", (d.num_experts, hidden), "router", layers=layers)
    yield Family(f"{_MOE}gate.e_score_correction_bias", (d.num_experts,), "router", dtype="F32", layers=layers)
    if d.routed_expert_hidden_size:
        for name, shape in (("down", (width, hidden)), ("up", (hidden, width))):
            yield Family(f"{_MOE}routed_expert_{name}_proj.weight", shape, "routed experts", layers=layers)
        if d.latent_moe_use_norm:
            yield Family(f"{_MOE}routed_expert_norm.weight", (width,), "norm", layers=layers)
    if d.num_shared_experts:
        shared = inner * d.num_shared_experts
        yield from gated(f"{_MOE}shared_experts.", hidden, shared, "shared experts", layers=layers)
    at = f"{_MOE}experts.{{expert}}."
    where: dict[str, Any] = {"layers": layers, "experts": d.num_experts, "active": d.num_experts_per_token}
    for name, shape, split, fused in (
        ("w1", (inner, width), 0, f"{at}w13"),
        ("w3", (inner, width), 0, f"{at}w13"),
        ("w2", (width, inner), 1, ""),
    ):
        yield Family(f"{at}{name}.weight", shape, "routed experts", True, split, fused=fused, **where)


def language_model(d: Dimensions) -> Iterator[Family]:
    """All of it, without the prefix."""
    yield from outside(d)
    yield from everywhere(d)
    if d.kda:
        yield from kda(d)
    if d.full:
        yield from full_attention(d)
    if d.dense:
        yield from gated(_MLP, d.hidden_size, d.intermediate_size, "dense mlp", layers=d.dense)
    if d.moe:
        yield from experts(d)


def vision(config: Mapping[str, Any]) -> Iterator[Family]:
    """The parts that read images, without biases; none if the config has no `vision_config`.

    Raises:
        FormatError: a field is missing, of the wrong type or absurd.
    """
    said = config.get("vision_config")
    if said is None:
        return
    try:
        v = msgspec.convert(said, Vision)
    except msgspec.ValidationError as error:
        raise FormatError(f"config.json: vision_config: {error}") from None
    size, inner, attended = v.vt_hidden_size, v.vt_intermediate_size, v.qkv_hidden_size
    yield from image_table(v)
    for number in range(v.vt_num_hidden_layers):
        block = f"vision_tower.encoder.blocks.{number}."
        yield from (plain(f"{block}{norm}.weight", size) for norm in ("norm0", "norm1"))
        yield plain(f"{block}wqkv.weight", 3 * attended, size)
        yield plain(f"{block}wo.weight", size, attended)
        yield plain(f"{block}mlp.fc0.weight", inner, size)
        yield plain(f"{block}mlp.fc1.weight", size, inner)
    yield plain("vision_tower.encoder.final_layernorm.weight", size)
    yield plain("mm_projector.proj.0.weight", v.joined, v.joined)
    yield plain("mm_projector.proj.2.weight", v.text_hidden_size, v.joined)
    yield plain("mm_projector.post_norm.weight", v.text_hidden_size)


class KimiK3(DeepseekV3):
    """Kimi K3. What its caches cost is not known to dsctl: KDA keeps a state per sequence instead of one per token."""

    name = "kimi_k3"
    architecture = "KimiK3ForConditionalGeneration"
    # The smallest number of layers that includes every kind.
    usual_sizes: Mapping[str, int] = MappingProxyType({"layers": 4})

    def traits(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Traits:
        return PLAIN_TRAITS

    def families(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Family, ...]:
        return (*prefixed(language_model(dimensions(config))), *vision(config))

    def published(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> Mapping[str, Published]:
        return {"routed experts": Published("mxfp4", "compressed-tensors-packed", why="as Kimi K3 stores them")}

    def units(self, config: Mapping[str, Any]) -> tuple[Unit, ...]:
        d = dimensions(config)
        return (Unit(d.num_attention_heads, "heads"), Unit(d.linear_attn_config.num_heads, "KDA heads"))

    def attention(self, config: Mapping[str, Any]) -> Sizes | None:
        return None

    def without_mtp(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return dict(config)

    def with_mtp(self, config: Mapping[str, Any], other: Mapping[str, Any], traits: Traits) -> dict[str, Any]:
        return dict(config)

    def sliced(self, config: Mapping[str, Any], layers: Sequence[int], experts: Sequence[int]) -> dict[str, Any]:
        return sliced(config, layers, experts)

    def tiny(self, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        return shrunk(config, sizes)

    def pruned(self, config: Mapping[str, Any], experts: int, drafter: int) -> dict[str, Any]:
        return pruned(config, experts)

    def expert_groups(self, config: Mapping[str, Any]) -> ExpertGroups:
        return expert_groups(config)
