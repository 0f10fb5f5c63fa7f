"""Kimi K2: DeepSeek V3's architecture with different dimensions and a stored rotary buffer.

moonshotai/Kimi-K2-Instruct: its published tensor listing holds `rotary_emb.inv_freq` for every layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsctl.core.params import PLAIN_TRAITS, Family, Published, Traits
from dsctl.models.deepseek_v3 import DeepseekV3, dimensions, fp8_blocks


class KimiK2(DeepseekV3):
    """Kimi K2 and its fine-tunes."""

    name = "kimi_k2"
    architecture = None

    def families(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Family, ...]:
        d = dimensions(config)
        name = "model.layers.{layer}.self_attn.rotary_emb.inv_freq"
        # Half of the hidden size per head, as in the plain Llama rotary embedding; [56] in the release.
        size = d.hidden_size // d.num_attention_heads // 2
        rotary = Family(name, (size,), "attention", layers=tuple(range(d.num_hidden_layers)), derived=True)
        return (*super().families(config, traits), rotary)

    def published(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> Mapping[str, Published]:
        return fp8_blocks("float32", "as Kimi K2 stores them")
