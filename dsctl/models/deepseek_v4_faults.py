"""What a `config.json` of DeepSeek V4 says that cannot be, or that the stored tensors contradict. Pure.

What loaders make of each field: deepseek-ai/DeepSeek-V4-Flash-0731, inference/model.py; transformers 5.24,
models/deepseek_v4 (kinds of layers by `compress_ratios`); vllm-project/vllm issues 41791 (`scale_fmt`), 52111 and 52165
(a block drafter taken for a classic one).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dsctl.core.header import TensorSpec
from dsctl.core.params import Traits
from dsctl.models.deepseek_v4_config import DSPARK, MTP, expected, speaks_of_blocks
from dsctl.models.model import Contradiction

# How many tokens layers compress into one: none, a few with an indexer, many.
RATIOS = (0, 4, 128)
MAIN_PROJECTION = "mtp.0.main_proj.weight"


def contradictions(
    config: Mapping[str, Any], stored: Mapping[str, TensorSpec], traits: Traits
) -> Iterator[Contradiction]:
    """All of them; `stored` are the tensors' names and what they are, `traits` what they tell."""
    yield from _ratios(config, traits.stages or 0)
    yield from _drafter(config, traits)
    yield from _targets(config, stored)
    said = config.get("quantization_config")
    if isinstance(said, dict) and said.get("quant_method") == "fp8" and "scale_fmt" not in said:
        what = 'quantization_config has no scale_fmt: vLLM stops without it ("ue8m0" in every release)'
        yield Contradiction("scale-fmt-missing", what)


def _ratios(config: Mapping[str, Any], stored: int) -> Iterator[Contradiction]:
    """Entries are for layers first, then for stages, which compress nothing."""
    ratios, layers = list(config["compress_ratios"]), config["num_hidden_layers"]
    wanted = layers + stored
    if len(ratios) < wanted:
        what = f"compress_ratios has {len(ratios)} entries, {wanted} are needed: {layers} layers, {_stages(stored)}"
        yield Contradiction("compress-ratios", what)
    elif stored and len(ratios) > wanted:
        what = f"compress_ratios speaks of {len(ratios) - layers} stages of a drafter, stored: {_stages(stored)}"
        yield Contradiction("drafter-stages", what)
    for layer, ratio in enumerate(ratios):
        known = RATIOS if layer < layers else (0,)
        if ratio not in known:
            where = f"layer {layer}" if layer < layers else f"stage {layer - layers} of the drafter"
            what = f"compress_ratios has {ratio} for {where}: {', '.join(map(str, known))} can be"
            yield Contradiction("compress-ratios", what)
            return


def _stages(number: int) -> str:
    if number < 2:
        return "1 stage (mtp.0)" if number else "no stage of a drafter"
    return f"{number} stages (mtp.0 to mtp.{number - 1})"


def _drafter(config: Mapping[str, Any], traits: Traits) -> Iterator[Contradiction]:
    """Which kind of drafter config and tensors speak of; stages that are not there are missing parameters."""
    blocks, stages = speaks_of_blocks(config), traits.stages or 0
    if stages and traits.drafter == DSPARK and not blocks:
        what = "has no dspark_ field, a block drafter is stored: loaders take its stages for classic MTP layers"
        yield Contradiction("drafter-config", what)
    elif stages and traits.drafter == MTP and blocks:
        yield Contradiction("drafter-config", "has dspark_ fields, what is stored is a classic MTP layer")
    elif not stages and blocks and not expected(config)[1]:
        yield Contradiction("drafter-stages", "has dspark_ fields, no stage of a drafter is stored")


def _targets(config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Iterator[Contradiction]:
    """The layers that a block drafter looks at: as many as its first matrix takes, and all of them there."""
    targets, matrix = config.get("dspark_target_layer_ids"), stored.get(MAIN_PROJECTION)
    if targets is None or matrix is None:
        return
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    if not targets or max(targets) >= layers:
        what = f"dspark_target_layer_ids {list(targets)} are not some of the {layers} layers, numbered from 0"
        yield Contradiction("drafter-targets", what)
    elif len(matrix.shape) == 2 and matrix.shape[1] % hidden == 0 and matrix.shape[1] != len(targets) * hidden:
        what = (
            f"dspark_target_layer_ids names {len(targets)} layers, {MAIN_PROJECTION} takes {matrix.shape[1] // hidden}"
        )
        yield Contradiction("drafter-targets", what)
