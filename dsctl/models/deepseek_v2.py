"""DeepSeek V2, V2-Lite, V2.5: MLA and MoE without the router bias, the MTP layer and FP8.

Names and shapes: modeling_deepseek.py of the deepseek-ai/DeepSeek-V2 and DeepSeek-V2-Lite model repositories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dsctl.core.params import Family, Published
from dsctl.models.deepseek_v3 import (
    attention,
    dimensions,
    experts,
    gated,
    heads,
    outside,
    shrunk,
    sliced,
    without_mtp,
)


class DeepseekV2:
    """V2, V2-Lite (no query compression), V2.5 and their chat versions."""

    name = "deepseek_v2"

    def matches(self, config: Mapping[str, Any]) -> bool:
        if config.get("model_type") == self.name:
            return True
        return "DeepseekV2ForCausalLM" in (config.get("architectures") or ())

    def families(self, config: Mapping[str, Any]) -> tuple[Family, ...]:
        d = dimensions(config)
        families = outside(d) + attention(d, tuple(range(d.num_hidden_layers)), False)
        if d.dense_layers:
            mlp = "model.layers.{layer}.mlp."
            families += gated(mlp, d.hidden_size, d.intermediate_size, "dense mlp", layers=d.dense_layers)
        if d.moe_layers:
            families += experts(d, d.moe_layers, False, bias=False)
        return tuple(families)

    def published(self, config: Mapping[str, Any]) -> Mapping[str, Published]:
        return {}

    def heads(self, config: Mapping[str, Any]) -> int | None:
        return heads(config)

    def without_mtp(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return without_mtp(config)

    def sliced(self, config: Mapping[str, Any], layers: Sequence[int], experts: Sequence[int]) -> dict[str, Any]:
        return sliced(config, layers, experts)

    def tiny(self, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        return shrunk(config, sizes)
