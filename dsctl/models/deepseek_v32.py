"""DeepSeek V3.2: V3 plus the lightning indexer of its sparse attention.

Names and shapes: deepseek-ai/DeepSeek-V3.2-Exp inference/model.py (Indexer) and inference/config_671B_v3.2.json;
`weights_proj` is stored in BF16 (sgl-project/sglang pull 17205).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from dsctl.core.errors import FormatError
from dsctl.core.params import PLAIN_TRAITS, Family, Published, Traits
from dsctl.models.deepseek_v3 import (
    DeepseekV3,
    Dimensions,
    dimensions,
    fp8_blocks,
    multi_token_prediction,
    outside,
    shrunk,
)

_INDEXER = "model.layers.{layer}.self_attn.indexer."


def indexer(d: Dimensions, layers: tuple[int, ...], mtp: bool) -> list[Family]:
    """The five parameters that choose which tokens a query attends to; every rank holds them whole."""
    heads, size, query = d.index_n_heads, d.index_head_dim, d.q_lora_rank
    if heads is None or size is None or query is None:
        raise FormatError("config.json: index_n_heads, index_head_dim and q_lora_rank are needed for the indexer")
    where: dict[str, Any] = {"layers": layers, "mtp": mtp}
    return [
        Family(f"{_INDEXER}wq_b.weight", (heads * size, query), "indexer", True, **where),
        Family(f"{_INDEXER}wk.weight", (size, d.hidden_size), "indexer", True, **where),
        Family(f"{_INDEXER}k_norm.weight", (size,), "indexer", **where),
        Family(f"{_INDEXER}k_norm.bias", (size,), "indexer", **where),
        Family(f"{_INDEXER}weights_proj.weight", (heads, d.hidden_size), "indexer", **where),
    ]


def stored_norms(families: Iterable[Family]) -> Iterator[Family]:
    """V3.2 stores its norms in float32, the indexer's included (its published tensor listing)."""
    for family in families:
        yield replace(family, dtype="F32") if family.role == "norm" or ".k_norm." in family.template else family


class DeepseekV32(DeepseekV3):
    """V3.2-Exp, V3.2, V3.2-Speciale."""

    name = "deepseek_v32"
    architecture = "DeepseekV32ForCausalLM"

    def families(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Family, ...]:
        d = dimensions(config)
        added = indexer(d, tuple(range(d.num_hidden_layers)), False)
        if d.mtp_layers:
            added += indexer(d, d.mtp_layers, True)
        return tuple(stored_norms([*outside(d), *self.layers(d), *added, *multi_token_prediction(d)]))

    def published(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> Mapping[str, Published]:
        return fp8_blocks("ue8m0", "as V3.1 and later releases store them")

    def indexed(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        return tuple(range(config["num_hidden_layers"]))

    def tiny(self, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        small = shrunk(config, sizes)
        return small | {"index_n_heads": sizes["heads"], "index_topk": min(config["index_topk"], 64)}
