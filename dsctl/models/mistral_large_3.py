"""Mistral Large 3: DeepSeek V3's layers under Mistral's own names, without an MTP layer, and parts that read images.

Its repository has `params.json` in place of `config.json`, with names of its own for fields too. Names of the language
model: the headers of mistralai/Mistral-Large-3-675B-Instruct-2512, as a public loader's tests list them, and
vllm-project/vllm, models/mistral_large_3.py. Those of the parts that read images: the same format in Mistral Small 4,
as two public readers of it list every tensor; they were not seen for Large 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any

import msgspec

from dsctl.core.attention import Latent, Sizes, whole_numbers
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorSpec
from dsctl.core.params import PLAIN_TRAITS, Family, Published, Traits, Unit
from dsctl.models.deepseek_v3 import Count, DeepseekV3, Size, counted
from dsctl.models.model import ExpertGroups

_LAYER = "layers.{layer}."
_ATTENTION = _LAYER + "attention."
_ROLES = ("attention", "dense mlp", "routed experts", "shared experts")
_MOE, _VISION = "moe", "vision_encoder"


class Experts(msgspec.Struct, frozen=True):
    """The fields of `moe` that set names and shapes."""

    expert_hidden_dim: Size
    num_experts: Count
    num_experts_per_tok: Count
    num_shared_experts: Count = 0
    first_k_dense_replace: Count = 0


class Vision(msgspec.Struct, frozen=True):
    """The fields of `vision_encoder` that set names and shapes; the defaults are those of Mistral Small 4."""

    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Count
    num_channels: Annotated[int, msgspec.Meta(ge=1, le=16)] = 3
    patch_size: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 14
    spatial_merge_size: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    add_pre_mm_projector_layer_norm: bool = True
    adapter_bias: bool = False


class Dimensions(msgspec.Struct, frozen=True):
    """The fields of `params.json` that set names and shapes."""

    dim: Size
    hidden_dim: Size
    n_layers: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    n_heads: Size
    vocab_size: Size
    q_lora_rank: Size
    kv_lora_rank: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size
    moe: Experts
    tied_embeddings: bool = False
    vision_encoder: Vision | None = None

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(range(self.n_layers))


def dimensions(config: Mapping[str, Any]) -> Dimensions:
    """Check and type the fields that set names and shapes.

    Raises:
        FormatError: one is missing, of the wrong type or absurd.
    """
    try:
        return msgspec.convert(config, Dimensions)
    except msgspec.ValidationError as error:
        raise FormatError(f"params.json: {error}") from None


def attention(d: Dimensions) -> Iterator[Family]:
    """Latent attention and the layer's norms. No release quantizes the two matrices that compress."""
    query = d.n_heads * (d.qk_nope_head_dim + d.qk_rope_head_dim)
    for name, shape, split in (
        ("wq_a", (d.q_lora_rank, d.dim), None),
        ("wq_b", (query, d.q_lora_rank), 0),
        ("wkv_a_with_mqa", (d.kv_lora_rank + d.qk_rope_head_dim, d.dim), None),
        ("wkv_b", (d.n_heads * (d.qk_nope_head_dim + d.v_head_dim), d.kv_lora_rank), 0),
        ("wo", (d.dim, d.n_heads * d.v_head_dim), 1),
    ):
        yield Family(f"{_ATTENTION}{name}.weight", shape, "attention", split is not None, split, layers=d.layers)
    for name, size in (
        (f"{_ATTENTION}q_a_norm", d.q_lora_rank),
        (f"{_ATTENTION}kv_a_norm", d.kv_lora_rank),
        (f"{_LAYER}attention_norm", d.dim),
        (f"{_LAYER}ffn_norm", d.dim),
    ):
        yield Family(f"{name}.weight", (size,), "norm", layers=d.layers)


def gated(prefix: str, dim: int, inner: int, role: str, **where: Any) -> Iterator[Family]:
    """The three matrices of a gated MLP: w1 (gate) and w3 (up) are cut by rows, w2 (down) by columns."""
    for name, shape, split, fused in (
        ("w1", (inner, dim), 0, f"{prefix}w13"),
        ("w3", (inner, dim), 0, f"{prefix}w13"),
        ("w2", (dim, inner), 1, ""),
    ):
        yield Family(f"{prefix}{name}.weight", shape, role, True, split, fused=fused, **where)


def feed_forward(d: Dimensions) -> Iterator[Family]:
    """Dense layers first, then layers of experts, whose router has no bias."""
    moe = d.moe
    dense = d.layers[: moe.first_k_dense_replace] if moe.num_experts else d.layers
    layers = d.layers[len(dense) :]
    if dense:
        yield from gated(f"{_LAYER}feed_forward.", d.dim, d.hidden_dim, "dense mlp", layers=dense)
    if not layers:
        return
    yield Family(f"{_LAYER}gate.weight", (moe.num_experts, d.dim), "router", layers=layers)
    if moe.num_shared_experts:
        inner = moe.expert_hidden_dim * moe.num_shared_experts
        yield from gated(f"{_LAYER}shared_experts.", d.dim, inner, "shared experts", layers=layers)
    where: dict[str, Any] = {"layers": layers, "experts": moe.num_experts, "active": moe.num_experts_per_tok}
    yield from gated(f"{_LAYER}experts.{{expert}}.", d.dim, moe.expert_hidden_dim, "routed experts", **where)


def vision(v: Vision, dim: int) -> Iterator[Family]:
    """The parts that read images, down to vectors of the language model's width; they are copied unchanged."""
    size, inner = v.hidden_size, v.intermediate_size
    yield Family("vision_encoder.patch_conv.weight", (size, v.num_channels, v.patch_size, v.patch_size), "vision")
    yield Family("vision_encoder.ln_pre.weight", (size,), "vision")
    for number in range(v.num_hidden_layers):
        at = f"vision_encoder.transformer.layers.{number}."
        yield from (Family(f"{at}{name}.weight", (size,), "vision") for name in ("attention_norm", "ffn_norm"))
        yield from (Family(f"{at}attention.{name}.weight", (size, size), "vision") for name in ("wq", "wk", "wv", "wo"))
        yield from (Family(f"{at}feed_forward.{name}.weight", (inner, size), "vision") for name in ("w1", "w3"))
        yield Family(f"{at}feed_forward.w2.weight", (size, inner), "vision")
    if v.add_pre_mm_projector_layer_norm:
        yield Family("pre_mm_projector_norm.weight", (size,), "vision")
    yield Family("patch_merger.merging_layer.weight", (size, size * v.spatial_merge_size**2), "vision")
    for name, columns in (("w_in", size), ("w_out", dim)):
        yield Family(f"vision_language_adapter.{name}.weight", (dim, columns), "vision")
        if v.adapter_bias:
            yield Family(f"vision_language_adapter.{name}.bias", (dim,), "vision")


class MistralLarge3(DeepseekV3):
    """Mistral Large 3 in Mistral's own format."""

    name = "mistral_large_3"
    architecture = None
    usual_sizes: Mapping[str, int] = MappingProxyType({})

    def matches(self, config: Mapping[str, Any]) -> bool:
        """`params.json` does not name an architecture; these fields have no other reader here."""
        return "model_type" not in config and "kv_lora_rank" in config and "dim" in config and _MOE in config

    def traits(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Traits:
        return PLAIN_TRAITS

    def families(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Family, ...]:
        d = dimensions(config)
        outside = [
            Family("tok_embeddings.weight", (d.vocab_size, d.dim), "embedding", split=0),
            Family("norm.weight", (d.dim,), "norm", last=True),
        ]
        if not d.tied_embeddings:
            outside.append(Family("output.weight", (d.vocab_size, d.dim), "head", split=0, last=True))
        images = vision(d.vision_encoder, d.dim) if d.vision_encoder else ()
        return (*outside, *attention(d), *feed_forward(d), *images)

    def published(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> Mapping[str, Published]:
        form = Published("fp8-block-ct", "compressed-tensors", why="as Mistral Large 3 stores them")
        return dict.fromkeys(_ROLES, form)

    def units(self, config: Mapping[str, Any]) -> tuple[Unit, ...]:
        return counted(config, "n_heads", "heads")

    def attention(self, config: Mapping[str, Any]) -> Sizes | None:
        sizes = whole_numbers(config, "n_layers", "n_heads", "kv_lora_rank", "qk_rope_head_dim")
        if sizes is None:
            return None
        layers, heads, latent, rotary = sizes
        return Latent(layers, heads, latent, rotary)

    def without_mtp(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return dict(config)

    def with_mtp(self, config: Mapping[str, Any], other: Mapping[str, Any], traits: Traits) -> dict[str, Any]:
        return dict(config)

    def sliced(self, config: Mapping[str, Any], layers: Sequence[int], experts: Sequence[int]) -> dict[str, Any]:
        moe = config[_MOE] | {"first_k_dense_replace": sum(n < config[_MOE]["first_k_dense_replace"] for n in layers)}
        if experts:
            chosen = min(moe["num_experts_per_tok"], len(experts))
            moe |= {"num_experts": len(experts), "num_experts_per_tok": chosen}
            moe |= {field: 1 for field in ("num_expert_groups", "num_expert_groups_per_tok") if field in moe}
        return {**config, "n_layers": len(layers), _MOE: moe}

    def pruned(self, config: Mapping[str, Any], experts: int, drafter: int) -> dict[str, Any]:
        return {**config, _MOE: config[_MOE] | {"num_experts": experts}}

    def expert_groups(self, config: Mapping[str, Any]) -> ExpertGroups:
        said = config[_MOE]
        number, chosen = (said.get(field, 1) for field in ("num_expert_groups", "num_expert_groups_per_tok"))
        known = type(number) is int and type(chosen) is int and number > 1 and chosen > 0
        return ExpertGroups(number, chosen) if known else ExpertGroups()

    def tiny(self, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        dense = min(config[_MOE]["first_k_dense_replace"], max(sizes["layers"] - 1, 0), 1)
        moe = config[_MOE] | {
            "expert_hidden_dim": sizes["moe_intermediate"],
            "num_experts": sizes["experts"],
            "num_experts_per_tok": min(config[_MOE]["num_experts_per_tok"], max(sizes["experts"] // 2, 1)),
            "first_k_dense_replace": dense,
        }
        small = {
            **config,
            "dim": sizes["hidden"],
            "hidden_dim": sizes["intermediate"],
            "n_layers": sizes["layers"],
            "n_heads": sizes["heads"],
            "vocab_size": sizes["vocab"],
            "q_lora_rank": min(config["q_lora_rank"], sizes["hidden"]),
            _MOE: moe,
        }
        most = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        eye = config.get(_VISION)
        images = {_VISION: eye | {field: min(eye[field], most[field]) for field in most if field in eye}} if eye else {}
        return small | images | ({"n_kv_heads": sizes["heads"]} if "n_kv_heads" in config else {})
