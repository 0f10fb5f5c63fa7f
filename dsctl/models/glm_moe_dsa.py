"""GLM-5: DeepSeek V3.2's attention and experts with different dimensions; later releases share indexers between layers.

zai-org/GLM-5; the published tensor listings of GLM-5.1 and GLM-5.2. The MTP layer has no embedding and head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsctl.core.errors import FormatError
from dsctl.core.params import PLAIN_TRAITS, Family, Published, Traits
from dsctl.models.deepseek_v3 import (
    QUANTIZED,
    DeepseekV3,
    dimensions,
    fp8_blocks,
    multi_token_prediction,
    outside,
    shrunk,
)
from dsctl.models.deepseek_v32 import indexer


class GlmMoeDsa(DeepseekV3):
    """GLM-5, GLM-5.1, GLM-5.2."""

    name = "glm_moe_dsa"
    architecture = "GlmMoeDsaForCausalLM"

    def families(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Family, ...]:
        d = dimensions(config)
        added = indexer(d, indexed_layers(config, d.num_hidden_layers), False)
        if d.mtp_layers:
            added += indexer(d, d.mtp_layers, True)
        return (*outside(d), *self.layers(d), *added, *multi_token_prediction(d, twins=False))

    def published(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> Mapping[str, Published]:
        why = "as GLM-5-FP8 stores them"
        if config.get("quantization_config"):
            return fp8_blocks("float32", why)
        return dict.fromkeys(QUANTIZED, Published("bf16", "deepseek", "float32", why))

    def indexed(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        return indexed_layers(config, config["num_hidden_layers"])

    def tiny(self, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        small = shrunk(config, sizes)
        small |= {"index_n_heads": sizes["heads"], "index_topk": min(config["index_topk"], 64)}
        for field in ("indexer_types", "mlp_layer_types"):
            if field in config:
                small[field] = list(config[field][: sizes["layers"]])
        if "mlp_layer_types" in config:
            dense = small["first_k_dense_replace"]
            small["mlp_layer_types"] = ["dense"] * dense + ["sparse"] * (sizes["layers"] - dense)
        return small


def indexed_layers(config: Mapping[str, Any], layers: int) -> tuple[int, ...]:
    """The layers with their own indexer: all, or those whose `indexer_types` entry is `full`.

    Raises:
        FormatError: `indexer_types` does not have `full` or `shared` for every layer.
    """
    types = config.get("indexer_types")
    if types is None:
        return tuple(range(layers))
    if not isinstance(types, list) or len(types) != layers or any(kind not in ("full", "shared") for kind in types):
        raise FormatError(f"config.json: indexer_types must have full or shared for each of {layers} layers")
    return tuple(layer for layer, kind in enumerate(types) if kind == "full")
