"""DeepSeek V2, V2-Lite, V2.5: MLA and MoE, but no router bias, MTP layer or FP8.

Names and shapes: modeling_deepseek.py of the deepseek-ai/DeepSeek-V2 and DeepSeek-V2-Lite model repositories.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsctl.core.params import PLAIN_TRAITS, Family, Published, Traits
from dsctl.models.deepseek_v3 import (
    DeepseekV3,
    attention,
    dimensions,
    experts,
    gated,
    outside,
)


class DeepseekV2(DeepseekV3):
    """V2, V2-Lite (no query compression), V2.5 and their chat versions."""

    name = "deepseek_v2"
    architecture = "DeepseekV2ForCausalLM"

    def families(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Family, ...]:
        d = dimensions(config)
        families = outside(d) + attention(d, tuple(range(d.num_hidden_layers)), False)
        if d.dense_layers:
            mlp = "model.layers.{layer}.mlp."
            families += gated(mlp, d.hidden_size, d.intermediate_size, "dense mlp", layers=d.dense_layers)
        if d.moe_layers:
            families += experts(d, d.moe_layers, False, bias=False)
        return tuple(families)

    def published(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> Mapping[str, Published]:
        return {}
