"""Faults to plant in a small DeepSeek V4.1, one at a time, and what a check must say of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.flows.planted import Folder, Planted, cut, drop
from tests.flows.planted_v4 import scale_of, stage_lost, stored

V41 = "v4.1-flash"
TABLE, EXPERT, MATRIX = "layers.1.engram.embed.weight", "layers.1.ffn.experts.2.w1.weight", "layers.0.attn.wq_b.weight"
BIAS = "layers.2.ffn.gate.bias_vl"


def text(field: str, value: Any) -> Callable[[Folder], None]:
    return lambda folder: folder.config(lambda config: config["text_config"].__setitem__(field, value))


def of_text(change: Callable[[dict[str, Any]], Any]) -> Callable[[Folder], None]:
    return lambda folder: folder.config(lambda config: change(config["text_config"]))


def quantization(**fields: Any) -> Callable[[Folder], None]:
    return lambda folder: folder.config(lambda config: config["quantization_config"].update(fields))


def architecture(folder: Folder) -> None:
    folder.config(lambda config: config.update(architectures=["DeepseekV3ForCausalLM"]))


def tower(folder: Folder) -> None:
    folder.config(lambda config: config["vision_config"].update(intermediate_size=512))


def hole(folder: Folder) -> None:
    stored(folder, TABLE, torch.zeros_like)


PLANTED_V41: dict[str, Planted] = {
    # tables
    "a table's scales missing": Planted("missing-scale", TABLE, lambda f: drop(f, scale_of(TABLE)), V41),
    "a table's row that is no number": Planted(
        "not-finite", TABLE, lambda f: f.poke(TABLE, 1000, b"\x7f"), V41, deep=True
    ),
    "a table of zeros": Planted("all-zero", TABLE, hole, V41, deep=True),
    "the byte 255 among a table's scales": Planted(
        "bad-scale", scale_of(TABLE), lambda f: f.poke(scale_of(TABLE), 9, b"\xff"), V41
    ),
    "a table's scales in blocks": Planted(
        "wrong-scale", TABLE,
        lambda f: stored(f, scale_of(TABLE), lambda scale: scale.view(torch.uint8)[::32].view(scale.dtype)), V41,
    ),
    "rows that no primes give": Planted(
        "engram-tables", "config.json", text("engram_vocab_size", 60), V41
    ),
    # caches
    "a cache without an owner": Planted(
        "cache-sources", "config.json", text("kv_source_layer_ids", [4]), V41, also=("extra-tensor",)
    ),
    "a choice of entries that nobody makes": Planted(
        "cache-sources", "config.json", text("index_source_layer_ids", [4, 6]), V41, also=("extra-tensor",)
    ),
    "candidates of a layer that chooses nothing": Planted(
        "cache-sources", "config.json", text("candidate_source_layer_id", 5), V41
    ),
    "candidates of no layer": Planted(
        "cache-sources", "config.json", text("candidate_source_layer_id", "x"), V41
    ),
    "an owner that is not there": Planted("bad-config", "config.json", text("kv_source_layer_ids", [2, 40]), V41),
    "a ratio that loaders do not know": Planted(
        "compress-ratios", "config.json", of_text(lambda c: c["compress_ratios"].__setitem__(3, 8)), V41,
        also=("cache-sources",),
    ),
    # drafter
    "a stage lost": Planted("drafter-stages", "config.json", stage_lost, V41),
    "stages miscounted": Planted("drafter-stages", "config.json", text("num_nextn_predict_layers", 1), V41),
    "two target layers said of three": Planted(
        "drafter-targets", "config.json", text("dspark_target_layer_ids", [6, 7]), V41, also=("wrong-shape",)
    ),
    # config
    "fp8 over four bits": Planted(
        "expert-dtype", "quantization_config.expert_dtype", quantization(expert_dtype="fp8"), V41
    ),
    "blocks of another size": Planted("block-size", "config.json", quantization(weight_block_size=[128, 128]), V41),
    "no scale_fmt": Planted(
        "scale-fmt-missing", "config.json",
        lambda f: f.config(lambda config: config["quantization_config"].pop("scale_fmt")), V41,
    ),
    "another model type": Planted(
        "odd-config", "architectures", architecture, V41
    ),
    "a tower of another width": Planted(
        "wrong-shape", "vision.", tower, V41
    ),
    # narrowed
    "a bias for images in BF16": Planted("router-bias-narrowed", BIAS, lambda f: cut(f, BIAS, torch.bfloat16), V41),
    "an FP8 scale grid turned": Planted(
        "wrong-scale", MATRIX, lambda f: f.entry(scale_of(MATRIX), shape=f.shape(scale_of(MATRIX))[::-1]), V41
    ),
    "scales of an expert missing": Planted("missing-scale", EXPERT, lambda f: drop(f, scale_of(EXPERT)), V41),
}  # fmt: skip
