"""Faults to plant in a small DeepSeek V4, one at a time, and what a check must say of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tests.flows.planted import Folder, Planted, changed, cut, drop

EXPERT = "layers.1.ffn.experts.2.w1.weight"
OTHER = "layers.1.ffn.experts.2.w2.weight"
MATRIX = "layers.0.attn.wq_b.weight"
HYPER, SINK, APE = "layers.0.hc_attn_fn", "layers.0.attn.attn_sink", "layers.2.attn.compressor.ape"
TABLE, BIAS = "layers.0.ffn.gate.tid2eid", "layers.2.ffn.gate.bias"
TARGETS = "dspark_target_layer_ids"
FLASH, BASE, BLOCKS = "v4-flash", "v4-flash-base", "v4-flash-0731"

Tensors = dict[str, torch.Tensor]


def scale_of(weight: str) -> str:
    return weight.removesuffix("weight") + "scale"


def stored(folder: Folder, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """One tensor, made another."""
    folder.tensors(name, lambda held: held.update({name: change(held[name]).contiguous()}))


def as_numbers(folder: Folder, weight: str) -> None:
    """The bytes of scales as float32 numbers."""
    stored(folder, scale_of(weight), lambda scale: scale.view(torch.uint8).float())


def bytes_of_powers(folder: Folder) -> None:
    """The same of scales that were float32 before: 120.0 where 2^-7 was."""
    stored(folder, scale_of(EXPERT), lambda scale: torch.frexp(scale).exponent.float() + 126)


def as_bytes(folder: Folder, weight: str) -> None:
    folder.entry(scale_of(weight), dtype="U8")


def unpacked(folder: Folder) -> None:
    """A byte for each code."""
    stored(folder, EXPERT, lambda codes: torch.stack((codes & 15, (codes >> 4) & 15), 2).flatten(1))


def grid_of_blocks(folder: Folder) -> None:
    stored(folder, scale_of(EXPERT), lambda scale: scale.view(torch.uint8)[::128, ::4].view(scale.dtype))


def grid_of_groups(folder: Folder) -> None:
    wide = 128, 4
    stored(
        folder,
        scale_of(EXPERT),
        lambda scale: scale.repeat_interleave(wide[0], 0).repeat_interleave(wide[1], 1),
    )


def swapped(folder: Folder) -> None:
    """The scales of two matrices of an expert, in each other's place."""

    def change(held: Tensors) -> None:
        one, other = scale_of(EXPERT), scale_of(OTHER)
        held[one], held[other] = held[other], held[one]

    folder.tensors(EXPERT, change)


def routed(folder: Folder, row: int, experts: list[int]) -> None:
    def change(held: Tensors) -> None:
        held[TABLE][row] = torch.tensor(experts)

    folder.tensors(TABLE, change)


def ratios(change: Callable[[list[int]], Any]) -> Callable[[Folder], None]:
    return lambda folder: folder.config(lambda config: change(config["compress_ratios"]))


def without(*fields: str) -> Callable[[Folder], None]:
    return lambda folder: folder.config(lambda config: [config.pop(field) for field in fields])


def stage_lost(folder: Folder) -> None:
    """Nothing is left of the last stage of a drafter."""
    names = [name for path in folder.path.glob("*.safetensors") for name in folder.header(path)]
    for file in {folder.file(name) for name in names if name.startswith("mtp.2.")}:
        first = next(name for name in folder.header(file) if name.startswith("mtp.2."))

        def change(held: Tensors) -> None:
            for name in [name for name in held if name.startswith("mtp.2.")]:
                del held[name]

        folder.tensors(first, change)


def no_fmt(folder: Folder) -> None:
    folder.config(lambda config: config["quantization_config"].pop("scale_fmt"))


DSPARK = ("dspark_block_size", "dspark_noise_token_id", TARGETS, "dspark_markov_rank")

PLANTED_V4: dict[str, Planted] = {
    # scales
    "FP4 scales as numbers": Planted(
        "scale-bytes", scale_of(EXPERT), lambda f: as_numbers(f, EXPERT), FLASH, also=("wrong-scale-dtype",)
    ),
    "FP8 scales as numbers": Planted("scale-bytes", scale_of(MATRIX), lambda f: as_numbers(f, MATRIX), FLASH),
    "a base's scales as numbers": Planted("scale-bytes", scale_of(EXPERT), bytes_of_powers, BASE),
    "FP4 scales as U8": Planted("wrong-scale-dtype", EXPERT, lambda f: as_bytes(f, EXPERT), FLASH),
    "FP8 scales as U8": Planted("wrong-scale-dtype", MATRIX, lambda f: as_bytes(f, MATRIX), FLASH),
    "FP4 scales in float32": Planted(
        "wrong-scale-dtype", EXPERT, lambda f: stored(f, scale_of(EXPERT), lambda scale: scale.float()), FLASH
    ),
    "the byte 255 among scales": Planted(
        "bad-scale", scale_of(EXPERT), lambda f: f.poke(scale_of(EXPERT), 7, b"\xff"), FLASH
    ),
    "a base's scale that is no power of two": Planted(
        "not-power-of-two", scale_of(EXPERT), lambda f: f.poke(scale_of(EXPERT), 0, b"\x01\x00\x80\x3a"), BASE
    ),
    "a scale grid turned": Planted(
        "wrong-scale", EXPERT, lambda f: stored(f, scale_of(EXPERT), lambda scale: scale.T), FLASH
    ),
    "an FP8 scale grid turned": Planted(
        "wrong-scale", MATRIX, lambda f: f.entry(scale_of(MATRIX), shape=f.shape(scale_of(MATRIX))[::-1]), FLASH
    ),
    "the scales of two matrices swapped": Planted("wrong-scale", EXPERT, swapped, FLASH),
    "scales of an expert missing": Planted("missing-scale", EXPERT, lambda f: drop(f, scale_of(EXPERT)), FLASH),
    # packed and plain
    "codes that are not packed": Planted("not-packed", EXPERT, unpacked, FLASH),
    "four-bit codes with the grid of eight-bit ones": Planted("other-grid", EXPERT, grid_of_blocks, FLASH),
    "eight-bit codes with the grid of four-bit ones": Planted("other-grid", EXPERT, grid_of_groups, BASE),
    # float32
    "hyper-connections in BF16": Planted(
        "hyper-connections-narrowed", HYPER, lambda f: cut(f, HYPER, torch.bfloat16), FLASH
    ),
    "sinks in BF16": Planted("float32-narrowed", SINK, lambda f: cut(f, SINK, torch.bfloat16), FLASH),
    "places in BF16": Planted("float32-narrowed", APE, lambda f: cut(f, APE, torch.bfloat16), FLASH),
    "a router's bias in BF16": Planted("router-bias-narrowed", BIAS, lambda f: cut(f, BIAS, torch.bfloat16), FLASH),
    # experts chosen by token
    "an expert that is not there": Planted(
        "out-of-range", TABLE, lambda f: routed(f, 5, [1, 4]), FLASH, deep=True
    ),
    "a negative expert": Planted("out-of-range", TABLE, lambda f: routed(f, 0, [-1, 0]), FLASH, deep=True),
    "an expert twice in a row": Planted("repeated-expert", TABLE, lambda f: routed(f, 9, [3, 3]), FLASH, deep=True),
    "a table in I32": Planted("wrong-dtype", TABLE, lambda f: cut(f, TABLE, torch.int32), FLASH),
    "a table in BF16": Planted("odd-dtype", TABLE, lambda f: cut(f, TABLE, torch.bfloat16), FLASH),
    # config
    "fp8 over four bits": Planted("expert-dtype", "expert_dtype", changed("expert_dtype", "fp8"), FLASH),
    "fp4 over eight bits": Planted("expert-dtype", "expert_dtype", changed("expert_dtype", "fp4"), BASE),
    "nothing said of eight bits": Planted("expert-dtype-missing", "expert_dtype", without("expert_dtype"), BASE),
    "ratios for a stage too few": Planted("drafter-undeclared", "mtp.0", ratios(lambda r: r.pop()), FLASH),
    "ratios for two stages too few": Planted(
        "compress-ratios", "config.json", ratios(lambda r: [r.pop(), r.pop()]), BLOCKS
    ),
    "ratios for layers too few": Planted("bad-config", "config.json", ratios(lambda r: [r.pop(), r.pop()]), FLASH),
    "ratios for a stage too many": Planted(
        "drafter-stages", "config.json", ratios(lambda r: r.append(0)), FLASH
    ),
    "a ratio that loaders do not know": Planted(
        "compress-ratios", "config.json", ratios(lambda r: r.__setitem__(2, 64)), FLASH,
        also=("wrong-shape", "extra-tensor"),

    ),
    "a stage with a ratio": Planted("compress-ratios", "config.json", ratios(lambda r: r.__setitem__(3, 4)), FLASH),
    "ratios for a drafter that is not there": Planted(
        "drafter-stages", "config.json", ratios(lambda r: r.append(0)), BLOCKS
    ),
    "a stage lost": Planted("drafter-stages", "config.json", stage_lost, BLOCKS),
    "nothing said of a block drafter": Planted("drafter-config", "config.json", without(*DSPARK), BLOCKS),
    "a block drafter said of a classic one": Planted(
        "drafter-config", "config.json", changed(TARGETS, [0, 1, 2]), FLASH
    ),
    "two target layers said of three": Planted(
        "drafter-targets", "config.json", changed(TARGETS, [1, 2]), BLOCKS, also=("wrong-shape",)
    ),
    "a target layer that is not there": Planted("drafter-targets", "config.json", changed(TARGETS, [0, 1, 3]), BLOCKS),
    "a noise token beyond the vocabulary": Planted(
        "odd-config", "dspark_noise_token_id", changed("dspark_noise_token_id", 32), BLOCKS
    ),
    "a block of no tokens": Planted("odd-config", "dspark_block_size", changed("dspark_block_size", 0), BLOCKS),
    "another model type": Planted("odd-config", "architectures", changed("model_type", "deepseek_v3"), FLASH),
    "no scale_fmt": Planted("scale-fmt-missing", "config.json", no_fmt, FLASH),
    "no scale_fmt in a base": Planted("scale-fmt-missing", "config.json", no_fmt, BASE),
    "more hash layers than layers": Planted("bad-config", "config.json", changed("num_hash_layers", 4), FLASH),
    "groups that do not divide": Planted("bad-config", "config.json", changed("o_groups", 3), FLASH),
}  # fmt: skip
