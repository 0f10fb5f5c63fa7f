"""The `config.json` of Kimi K3: fields that set names and shapes, and the config of a part or of a small model. Pure.

moonshotai/Kimi-K3, config.json: the language model's fields are in `text_config`, and layers count from 1 in its lists
of kinds of attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from dsctl.core.config_fields import edited, resized, text_fields
from dsctl.core.errors import FormatError
from dsctl.models.deepseek_v3 import Count, Size, limited_tokens
from dsctl.models.kimi_k25 import shrunk_placeholder, shrunk_vision
from dsctl.models.model import ExpertGroups

_LINEAR, _FULL, _KDA = "linear_attn_config", "full_attn_layers", "kda_layers"
_LAYERS, _DENSE = "num_hidden_layers", "first_k_dense_replace"
_EXPERTS, _CHOSEN, _GROUPS, _GROUPS_CHOSEN = "num_experts", "num_experts_per_token", "num_expert_group", "topk_group"


class LinearAttention(msgspec.Struct, frozen=True):
    """The fields of `linear_attn_config`: layers by kind of attention, counted from 1, and the sizes of KDA."""

    full_attn_layers: tuple[Size, ...]
    kda_layers: tuple[Size, ...]
    head_dim: Size
    num_heads: Size
    short_conv_kernel_size: Annotated[int, msgspec.Meta(ge=1, le=256)]


class Dimensions(msgspec.Struct, frozen=True):
    """The fields of the language model that set names and shapes."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    moe_intermediate_size: Size
    num_hidden_layers: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    num_attention_heads: Size
    q_lora_rank: Size
    kv_lora_rank: Size
    qk_nope_head_dim: Size
    qk_rope_head_dim: Size
    v_head_dim: Size
    linear_attn_config: LinearAttention
    num_experts: Count = 0
    num_experts_per_token: Count = 0
    num_shared_experts: Count = 0
    routed_expert_hidden_size: Size | None = None
    latent_moe_use_norm: bool = False
    first_k_dense_replace: Count = 0
    attn_res_block_size: Size | None = None
    mla_use_output_gate: bool = False
    tie_word_embeddings: bool = False

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(range(self.num_hidden_layers))

    @property
    def kda(self) -> tuple[int, ...]:
        """The layers with KDA, counted from 0."""
        return tuple(layer - 1 for layer in self.linear_attn_config.kda_layers)

    @property
    def full(self) -> tuple[int, ...]:
        """The layers with full attention, counted from 0."""
        return tuple(layer - 1 for layer in self.linear_attn_config.full_attn_layers)

    @property
    def moe(self) -> tuple[int, ...]:
        return self.layers[self.first_k_dense_replace :] if self.num_experts else ()

    @property
    def dense(self) -> tuple[int, ...]:
        return self.layers[: self.first_k_dense_replace] if self.num_experts else self.layers

    @property
    def expert_width(self) -> int:
        """The width of what routed experts read and write."""
        return self.routed_expert_hidden_size or self.hidden_size


def dimensions(config: Mapping[str, Any]) -> Dimensions:
    """Check and type the fields that set names and shapes.

    Raises:
        FormatError: one is missing, of the wrong type or absurd, or a layer does not have one kind of attention.
    """
    try:
        found = msgspec.convert(text_fields(config), Dimensions)
    except msgspec.ValidationError as error:
        raise FormatError(f"config.json: {error}") from None
    if sorted((*found.kda, *found.full)) != list(found.layers):
        what = f"{_LINEAR}: {_KDA} and {_FULL} must have each layer once, from 1 to {_LAYERS} {found.num_hidden_layers}"
        raise FormatError(f"config.json: {what}")
    return found


def sliced(config: Mapping[str, Any], layers: Sequence[int], experts: Sequence[int]) -> dict[str, Any]:
    """The config with the fields adapted that depend on layers and experts."""
    said = text_fields(config)
    small = said | {_LAYERS: len(layers), _LINEAR: _renumbered(said[_LINEAR], layers)}
    small[_DENSE] = sum(layer < said.get(_DENSE, 0) for layer in layers)
    if experts:
        small |= {_EXPERTS: len(experts), _CHOSEN: min(said[_CHOSEN], len(experts))}
        small |= {field: 1 for field in (_GROUPS, _GROUPS_CHOSEN) if said.get(field) is not None}
    return resized(config, small)


def pruned(config: Mapping[str, Any], experts: int) -> dict[str, Any]:
    """The same config for this number of routed experts; there is no drafter."""
    return edited(config, {_EXPERTS: experts})


def expert_groups(config: Mapping[str, Any]) -> ExpertGroups:
    """The groups of experts; a router with more than one scores them as V3's does."""
    said = text_fields(config)
    number, chosen = said.get(_GROUPS), said.get(_GROUPS_CHOSEN)
    if type(number) is not int or type(chosen) is not int or number < 2 or chosen < 1:
        return ExpertGroups()
    return ExpertGroups(number, chosen, 2)


def _renumbered(said: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """The lists of layers by kind, with new numbers from 1."""
    new = {layer + 1: number for number, layer in enumerate(layers, 1)}
    return {**said, **{kind: [new[layer] for layer in said[kind] if layer in new] for kind in (_FULL, _KDA)}}


def shrunk(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """A copy of the config with small dimensions; head and latent sizes stay real.

    As in the release, every fourth layer and the last one have full attention. `sizes` may hold layers, experts,
    hidden, heads, vocab, intermediate, moe_intermediate.
    """
    said = text_fields(config)
    count, layers = sizes["experts"], range(1, sizes["layers"] + 1)
    full = [layer for layer in layers if layer % 4 == 0 or layer == sizes["layers"]]
    kinds = {_FULL: full, _KDA: [layer for layer in layers if layer not in full], "num_heads": sizes["heads"]}
    small = said | {
        "vocab_size": sizes["vocab"],
        "hidden_size": sizes["hidden"],
        "intermediate_size": sizes["intermediate"],
        "moe_intermediate_size": sizes["moe_intermediate"],
        _LAYERS: sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "q_lora_rank": min(said["q_lora_rank"], sizes["hidden"]),
        _LINEAR: said[_LINEAR] | kinds,
        _DENSE: min(said.get(_DENSE, 0), max(sizes["layers"] - 1, 0)),
        _EXPERTS: count,
        _CHOSEN: min(said[_CHOSEN], max(count // 2, 1)),
    }
    if "num_key_value_heads" in said:
        small["num_key_value_heads"] = sizes["heads"]
    if said.get("routed_expert_hidden_size"):
        small["routed_expert_hidden_size"] = sizes["hidden"] // 2
    most = {"vt_hidden_size": 64, "vt_intermediate_size": 128, "vt_num_hidden_layers": 2, "mm_hidden_size": 64}
    most |= {"qkv_hidden_size": 96, "vt_num_attention_heads": 3, "init_pos_emb_height": 8, "init_pos_emb_width": 8}
    small |= shrunk_placeholder(said, sizes["vocab"]) | shrunk_vision(config, sizes["hidden"], most)
    return resized(config, small | limited_tokens(said))
