"""Impossible fields of DeepSeek V4's `config.json`, and fields that the stored tensors contradict. Pure.

How loaders use each field: deepseek-ai/DeepSeek-V4-Flash-0731, inference/model.py; transformers 5.24,
models/deepseek_v4 (kinds of layers by `compress_ratios`); vllm-project/vllm issues 41791 (`scale_fmt`), 52111 and 52165
(a block drafter taken for a classic one).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dsctl.core.header import TensorSpec
from dsctl.core.params import DSPARK, MTP, Traits
from dsctl.models.deepseek_v4_config import expected, speaks_of_blocks
from dsctl.models.model import Contradiction

# The compression ratios of layers: none, small with an indexer, large.
RATIOS = (0, 4, 128)
MAIN_PROJECTION = "mtp.0.main_proj.weight"


def contradictions(
    config: Mapping[str, Any], stored: Mapping[str, TensorSpec], traits: Traits
) -> Iterator[Contradiction]:
    """All contradictions; `stored` are the tensors' specs by name, `traits` the facts that they show."""
    yield from _ratios(config, traits.stages or 0)
    yield from _drafter(config, traits)
    yield from _targets(config, stored)
    said = config.get("quantization_config")
    if isinstance(said, dict) and said.get("quant_method") == "fp8" and "scale_fmt" not in said:
        what = 'quantization_config has no scale_fmt: vLLM stops without it ("ue8m0" in every release)'
        yield Contradiction("scale-fmt-missing", what)


def _ratios(config: Mapping[str, Any], stored: int) -> Iterator[Contradiction]:
    """Entries belong to layers first, then to stages, which do not compress."""
    ratios, layers = list(config["compress_ratios"]), config["num_hidden_layers"]
    wanted = layers + stored
    if len(ratios) < wanted:
        what = f"compress_ratios has {len(ratios)} entries, {wanted} are needed: {layers} layers, {_stages(stored)}"
        yield Contradiction("compress-ratios", what)
    elif stored and len(ratios) > wanted:
        what = f"compress_ratios has entries for {len(ratios) - layers} drafter stages, stored: {_stages(stored)}"
        yield Contradiction("drafter-stages", what)
    for layer, ratio in enumerate(ratios):
        known = RATIOS if layer < layers else (0,)
        if ratio not in known:
            where = f"layer {layer}" if layer < layers else f"drafter stage {layer - layers}"
            what = f"compress_ratios has {ratio} for {where}, allowed: {', '.join(map(str, known))}"
            yield Contradiction("compress-ratios", what)
            return


def _stages(number: int) -> str:
    if number < 2:
        return "1 stage (mtp.0)" if number else "no drafter stage"
    return f"{number} stages (mtp.0 to mtp.{number - 1})"


def _drafter(config: Mapping[str, Any], traits: Traits) -> Iterator[Contradiction]:
    """Compare the kinds of drafter in config and tensors; absent stages count as missing parameters."""
    blocks, stages = speaks_of_blocks(config), traits.stages or 0
    if stages and traits.drafter == DSPARK and not blocks:
        what = "has no dspark_ field, but a block drafter is stored: loaders would load its stages as MTP layers"
        yield Contradiction("drafter-config", what)
    elif stages and traits.drafter == MTP and blocks:
        yield Contradiction("drafter-config", "has dspark_ fields, but the stored drafter is an MTP layer")
    elif not stages and blocks and not expected(config)[1]:
        yield Contradiction("drafter-stages", "has dspark_ fields, but no drafter stage is stored")


def _targets(config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Iterator[Contradiction]:
    """The layers that a block drafter reads: they must exist, and match its first matrix in number."""
    targets, matrix = config.get("dspark_target_layer_ids"), stored.get(MAIN_PROJECTION)
    if targets is None or matrix is None:
        return
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    if not targets or max(targets) >= layers:
        what = f"dspark_target_layer_ids {list(targets)} are not all among the {layers} layers (numbered from 0)"
        yield Contradiction("drafter-targets", what)
    elif len(matrix.shape) == 2 and matrix.shape[1] % hidden == 0 and matrix.shape[1] != len(targets) * hidden:
        what = (
            f"dspark_target_layer_ids names {len(targets)} layers, {MAIN_PROJECTION} takes {matrix.shape[1] // hidden}"
        )
        yield Contradiction("drafter-targets", what)
