"""Kimi K2: DeepSeek V3's architecture with different dimensions and a stored rotary buffer.

moonshotai/Kimi-K2-Instruct: its published tensor listing holds `rotary_emb.inv_freq` for every layer. Kimi-K2-Thinking
stores routed experts in INT4, in the form that Kimi-K2.5's config.json and README describe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dsctl.core.header import TensorSpec
from dsctl.core.params import PLAIN_TRAITS, Family, Published, Traits
from dsctl.models.deepseek_v3 import DeepseekV3, dimensions, fp8_blocks

_INT4 = {"num_bits": 4, "type": "int", "group_size": 32, "symmetric": True}


class KimiK2(DeepseekV3):
    """Kimi K2 and its fine-tunes."""

    name = "kimi_k2"
    architecture = None

    def traits(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Traits:
        # Every release stores router biases in float32: narrower ones lost precision.
        return replace(super().traits(config, stored), bias="")

    def families(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Family, ...]:
        if traits.rotary is None:
            d = dimensions(config)
            # Half of the hidden size per head, as in the plain Llama rotary embedding; [56] in Kimi-K2-Instruct.
            usual = TensorSpec("BF16", (d.hidden_size // d.num_attention_heads // 2,))
            traits = replace(traits, rotary=usual)
        return super().families(config, traits)

    def published(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> Mapping[str, Published]:
        if not declares_int4_experts(config.get("quantization_config")):
            return fp8_blocks("float32", "as Kimi K2 stores them")
        why, shape = "as Kimi K2 Thinking stores them", (("shape_dtype", "I32"),)
        return {"routed experts": Published("int4-group-32", "compressed-tensors-packed", None, why, dtypes=shape)}


def declares_int4_experts(quantization: object) -> bool:
    """Whether a `quantization_config` of compressed-tensors declares INT4 in groups of 32, but not for attention.

    Kimi K2 Thinking quantizes only routed experts; a checkpoint whose attention is INT4 too is not one of its releases.
    """
    if not isinstance(quantization, Mapping) or quantization.get("quant_method") != "compressed-tensors":
        return False
    groups, ignored = quantization.get("config_groups"), quantization.get("ignore")
    members = groups.values() if isinstance(groups, Mapping) else ()
    weights = [one.get("weights") for one in members if isinstance(one, Mapping)]
    alike = [isinstance(one, Mapping) and all(one.get(key) == value for key, value in _INT4.items()) for one in weights]
    spared = isinstance(ignored, list) and any("self_attn" in entry for entry in ignored if isinstance(entry, str))
    return bool(alike) and all(alike) and spared
