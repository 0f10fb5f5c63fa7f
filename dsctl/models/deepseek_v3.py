"""DeepSeek V3: MLA attention, a few dense layers, then MoE layers with shared experts, and MTP layers.

Shapes and names: deepseek-ai/DeepSeek-V3 README_WEIGHTS.md and inference/model.py; modeling_deepseek.py of the model
repository. Quantized matrices: README_WEIGHTS.md; the router bias is float32 (huggingface/transformers pull 42580).
Split dimensions: deepseek-ai/DeepSeek-V3 inference/convert.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any

import msgspec

from dsctl.core.attention import Latent, Sizes, whole_numbers
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorSpec
from dsctl.core.params import MTP, PLAIN_TRAITS, Drafter, Family, Param, Published, Traits, Unit, drafter_of
from dsctl.models.deepseek_v3_config import (
    expert_groups,
    is_export,
    pruned,
    sliced,
    stored_drafter,
    with_mtp,
    without_mtp,
)
from dsctl.models.deepseek_v3_traits import as_stored, told
from dsctl.models.model import Contradiction, ExpertGroups

Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 16)]


class Dimensions(msgspec.Struct, frozen=True):
    """The fields of `config.json` that set names and shapes."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    moe_intermediate_size: Size
    num_hidden_layers: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    num_attention_heads: Size
    kv_lora_rank: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size
    q_lora_rank: Size | None = None
    n_routed_experts: Count | None = None
    n_shared_experts: Count | None = None
    num_experts_per_tok: Count | None = None
    first_k_dense_replace: Count = 0
    moe_layer_freq: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 1
    num_nextn_predict_layers: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    topk_method: str | None = None
    tie_word_embeddings: bool = False
    index_n_heads: Size | None = None
    index_head_dim: Size | None = None
    index_topk: Size | None = None

    @property
    def mtp_layers(self) -> tuple[int, ...]:
        return tuple(range(self.num_hidden_layers, self.num_hidden_layers + self.num_nextn_predict_layers))

    @property
    def moe_layers(self) -> tuple[int, ...]:
        if not self.n_routed_experts:
            return ()
        first, step = self.first_k_dense_replace, self.moe_layer_freq
        return tuple(n for n in range(first, self.num_hidden_layers) if n % step == 0)

    @property
    def dense_layers(self) -> tuple[int, ...]:
        moe = set(self.moe_layers)
        return tuple(n for n in range(self.num_hidden_layers) if n not in moe)


def dimensions(config: Mapping[str, Any]) -> Dimensions:
    """Check and type the fields that set names and shapes.

    Raises:
        FormatError: one is missing, of the wrong type or absurd.
    """
    try:
        found = msgspec.convert(config, Dimensions)
    except msgspec.ValidationError as error:
        raise FormatError(f"config.json: {error}") from None
    return msgspec.structs.replace(found, num_hidden_layers=0) if is_export(config) else found


# The roles whose matrices FP8 releases quantize.
QUANTIZED = ("attention", "indexer", "dense mlp", "routed experts", "shared experts")
_LAYER = "model.layers.{layer}."
_ATTENTION = _LAYER + "self_attn."
_MLP = _LAYER + "mlp."


def attention(d: Dimensions, layers: tuple[int, ...], mtp: bool) -> list[Family]:
    """Multi-head latent attention (DeepSeek-V2 paper, section 2.1), and the layer's two norms."""
    heads, rank, query = d.num_attention_heads, d.kv_lora_rank, d.qk_nope_head_dim + d.qk_rope_head_dim
    down = "" if d.q_lora_rank is None else f"{_ATTENTION}fused_qkv_a_proj"

    def matrix(name: str, rows: int, columns: int, split: int | None = None, fused: str = "") -> Family:
        template, shape = f"{_ATTENTION}{name}.weight", (rows, columns)
        return Family(template, shape, "attention", True, split, layers=layers, mtp=mtp, fused=fused)

    def norm(template: str, size: int) -> Family:
        return Family(template, (size,), "norm", layers=layers, mtp=mtp)

    if d.q_lora_rank is None:
        queries = [matrix("q_proj", heads * query, d.hidden_size, 0)]
    else:
        queries = [
            matrix("q_a_proj", d.q_lora_rank, d.hidden_size, fused=down),
            norm(f"{_ATTENTION}q_a_layernorm.weight", d.q_lora_rank),
            matrix("q_b_proj", heads * query, d.q_lora_rank, 0),
        ]
    return [
        *queries,
        matrix("kv_a_proj_with_mqa", rank + d.qk_rope_head_dim, d.hidden_size, fused=down),
        norm(f"{_ATTENTION}kv_a_layernorm.weight", rank),
        matrix("kv_b_proj", heads * (d.qk_nope_head_dim + d.v_head_dim), rank, 0),
        matrix("o_proj", d.hidden_size, heads * d.v_head_dim, 1),
        norm(f"{_LAYER}input_layernorm.weight", d.hidden_size),
        norm(f"{_LAYER}post_attention_layernorm.weight", d.hidden_size),
    ]


def gated(prefix: str, hidden: int, inner: int, role: str, **where: Any) -> list[Family]:
    """The three matrices of a gated MLP: gate and up are cut by rows, down by columns."""
    both = f"{prefix}gate_up_proj"
    return [
        Family(f"{prefix}gate_proj.weight", (inner, hidden), role, True, 0, fused=both, **where),
        Family(f"{prefix}up_proj.weight", (inner, hidden), role, True, 0, fused=both, **where),
        Family(f"{prefix}down_proj.weight", (hidden, inner), role, True, 1, **where),
    ]


def experts(d: Dimensions, layers: tuple[int, ...], mtp: bool, bias: bool) -> list[Family]:
    """A MoE layer: router, its bias if it has one (DeepSeek-V3 paper, section 2.1.2), shared and routed experts."""
    count, inner = d.n_routed_experts or 0, d.moe_intermediate_size
    families = [Family(f"{_MLP}gate.weight", (count, d.hidden_size), "router", layers=layers, mtp=mtp)]
    if bias:
        name = f"{_MLP}gate.e_score_correction_bias"
        families.append(Family(name, (count,), "router", dtype="F32", layers=layers, mtp=mtp))
    if d.n_shared_experts:
        shared = inner * d.n_shared_experts
        families += gated(f"{_MLP}shared_experts.", d.hidden_size, shared, "shared experts", layers=layers, mtp=mtp)
    where = {"layers": layers, "experts": count, "active": d.num_experts_per_tok or 0, "mtp": mtp}
    return families + gated(f"{_MLP}experts.{{expert}}.", d.hidden_size, inner, "routed experts", **where)


def outside(d: Dimensions) -> list[Family]:
    """Embedding, last norm and head."""
    families = [
        Family("model.embed_tokens.weight", (d.vocab_size, d.hidden_size), "embedding", split=0),
        Family("model.norm.weight", (d.hidden_size,), "norm", last=True),
    ]
    if not d.tie_word_embeddings:
        families.append(Family("lm_head.weight", (d.vocab_size, d.hidden_size), "head", split=0, last=True))
    return families


def multi_token_prediction(d: Dimensions, twins: bool = True) -> list[Family]:
    """The parameters that an MTP layer adds to a MoE layer; its twins duplicate the main embedding and head
    (README_WEIGHTS.md)."""
    if not d.mtp_layers:
        return []
    where: dict[str, Any] = {"layers": d.mtp_layers, "mtp": True}
    vocabulary, hidden = (d.vocab_size, d.hidden_size), (d.hidden_size,)
    embedding, head = f"{_LAYER}embed_tokens.weight", f"{_LAYER}shared_head.head.weight"
    same = [
        Family(embedding, vocabulary, "embedding", split=0, twin="model.embed_tokens.weight", **where),
        Family(head, vocabulary, "head", split=0, twin="lm_head.weight", **where),
    ]
    return [
        *same * twins,
        Family(f"{_LAYER}enorm.weight", hidden, "norm", **where),
        Family(f"{_LAYER}hnorm.weight", hidden, "norm", **where),
        Family(f"{_LAYER}eh_proj.weight", (d.hidden_size, 2 * d.hidden_size), "mtp", **where),
        Family(f"{_LAYER}shared_head.norm.weight", hidden, "norm", **where),
    ]


def shrunk(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """A copy of the config with small dimensions; head and latent sizes stay real, because they cause partial blocks.

    `sizes` may hold layers, experts, hidden, heads, vocab, intermediate, moe_intermediate.
    """
    layers, count = sizes["layers"], sizes["experts"]
    small = dict(config)
    small |= {
        "vocab_size": sizes["vocab"],
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["intermediate"],
        "moe_intermediate_size": sizes["moe_intermediate"],
        "num_hidden_layers": layers,
        "num_attention_heads": sizes["heads"],
        "first_k_dense_replace": min(config.get("first_k_dense_replace", 0), max(layers - 1, 0), 1),
    }
    if "num_key_value_heads" in config:
        small["num_key_value_heads"] = sizes["heads"]
    if config.get("q_lora_rank"):
        small["q_lora_rank"] = min(config["q_lora_rank"], sizes["hidden"])
    if config.get("n_routed_experts"):
        small["n_routed_experts"] = count
        small["num_experts_per_tok"] = min(config.get("num_experts_per_tok") or 1, max(count // 2, 1))
    for field in ("n_group", "topk_group"):
        if config.get(field):
            small[field] = min(config[field], 2 if field == "n_group" and count % 2 == 0 and count >= 4 else 1)
    return small | limited_tokens(config)


def limited_tokens(config: Mapping[str, Any]) -> dict[str, int]:
    """The special tokens of a config, with the small tokenizer's numbers."""
    limits = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return {field: limit for field, limit in limits.items() if config.get(field) is not None}


def counted(config: Mapping[str, Any], field: str, noun: str) -> tuple[Unit, ...]:
    """The number of units in a config field, if it is a positive number."""
    number = config.get(field)
    return (Unit(number, noun),) if type(number) is int and number > 0 else ()


def fp8_blocks(scale_fmt: str, why: str) -> dict[str, Published]:
    """The published form of releases that quantize to FP8 by blocks: all matrices of these roles in the same form."""
    return dict.fromkeys(QUANTIZED, Published("fp8-block", "deepseek", scale_fmt, why))


class DeepseekV3:
    """V3, R1, V3.1, and models with their architecture such as Moonlight."""

    name = "deepseek_v3"
    # The entry of `architectures`, for models that it identifies.
    architecture: str | None = "DeepseekV3ForCausalLM"
    usual_sizes: Mapping[str, int] = MappingProxyType({})

    def matches(self, config: Mapping[str, Any]) -> bool:
        if config.get("model_type") == self.name:
            return True
        return self.architecture is not None and self.architecture in (config.get("architectures") or ())

    def traits(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Traits:
        return told(config, stored)

    def families(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Family, ...]:
        d = dimensions(config)
        return as_stored((*outside(d), *self.layers(d), *multi_token_prediction(d)), d.num_hidden_layers, traits)

    def layers(self, d: Dimensions) -> list[Family]:
        main = tuple(range(d.num_hidden_layers))
        families = attention(d, main, False) * bool(main)
        dense = d.dense_layers
        families += gated(_MLP, d.hidden_size, d.intermediate_size, "dense mlp", layers=dense) * bool(dense)
        families += experts(d, d.moe_layers, False, bias=True) * bool(d.moe_layers)
        if d.mtp_layers:
            families += attention(d, d.mtp_layers, True) + experts(d, d.mtp_layers, True, bias=True)
        return families

    def contradictions(
        self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec], traits: Traits
    ) -> Iterable[Contradiction]:
        return ()

    def published(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> Mapping[str, Published]:
        if traits.rotary and traits.bias and not config.get("quantization_config"):
            return dict.fromkeys(QUANTIZED, Published("bf16", "deepseek", "float32", "as Moonlight stores them"))
        return fp8_blocks("float32", "as V3 and R1 store them; --scale-fmt ue8m0 for V3.1 and later")

    def units(self, config: Mapping[str, Any]) -> tuple[Unit, ...]:
        return counted(config, "num_attention_heads", "heads")

    def attention(self, config: Mapping[str, Any]) -> Sizes | None:
        fields = ("num_hidden_layers", "num_attention_heads", "kv_lora_rank", "qk_rope_head_dim")
        sizes = whole_numbers(config, *fields)
        if sizes is None:
            return None
        layers, heads, latent, rotary = sizes
        found, indexed = Latent(layers, heads, latent, rotary), self.indexed(config)
        chosen = whole_numbers(config, "index_n_heads", "index_head_dim", "index_topk") if indexed else None
        if chosen is None:
            return found
        return replace(found, indexed=indexed, index_heads=chosen[0], index_size=chosen[1], topk=chosen[2])

    def indexed(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """The main layers that have their own indexer."""
        return ()

    def restored(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return dict(config)

    def drafter(self, config: Mapping[str, Any]) -> Drafter:
        return drafter_of(self.families(config), MTP)

    def stored_drafter(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Drafter:
        return stored_drafter(config, stored)

    def without_mtp(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return without_mtp(config)

    def with_mtp(self, config: Mapping[str, Any], other: Mapping[str, Any], traits: Traits) -> dict[str, Any]:
        return with_mtp(config, other)

    def sliced(self, config: Mapping[str, Any], layers: Sequence[int], experts: Sequence[int]) -> dict[str, Any]:
        return sliced(config, layers, experts)

    def pruned(self, config: Mapping[str, Any], experts: int, drafter: int) -> dict[str, Any]:
        return pruned(config, experts, drafter)

    def expert_groups(self, config: Mapping[str, Any]) -> ExpertGroups:
        return expert_groups(config)

    def kept_rows(
        self, config: Mapping[str, Any], small: Mapping[str, Any], source: Param, param: Param
    ) -> Iterable[tuple[int, int]] | None:
        return None

    def tiny(self, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        return shrunk(config, sizes)
