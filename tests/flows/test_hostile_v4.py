"""Hostile DeepSeek V4: one mutation of a good checkpoint each, one clear line with a hint, and nothing written.

Scales that are kept for the way back and are not what they were never make another value.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dsctl.run import checks
from tests.flows.planted import Folder, changed, drop
from tests.flows.planted_v4 import BASE, BLOCKS, EXPERT, FLASH, HYPER, PLANTED_V4, TABLE, TARGETS, scale_of
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.folders import contents

SMALL = {"layers": 3, "experts": 4, "hidden": 256, "heads": 2, "vocab": 32, "moe_intermediate": 128, "shards": 2}
ODD = "odd-scales.dsctl"
SCALES = scale_of(EXPERT)
FORMAT = 20

Entries = dict[str, tuple[str, list[int], bytes]]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {release: tiny(tmp_path_factory, release, **SMALL) for release in (FLASH, BASE, BLOCKS)}
    small = {**SMALL, "intermediate": 256}
    return folders | {"v3": tiny(tmp_path_factory, "v3", **small)}


def config_of(release: str) -> Callable[[Folder, dict[str, Path]], object]:
    return lambda folder, clean: shutil.copy(clean[release] / "config.json", folder.path)


def planted(name: str) -> Callable[[Folder, dict[str, Path]], object]:
    return lambda folder, clean: PLANTED_V4[name].plant(folder)


def field(name: str, value: Any) -> Callable[[Folder, dict[str, Path]], object]:
    return lambda folder, clean: changed(name, value)(folder)


def cut_short(folder: Folder, clean: dict[str, Path]) -> None:
    os.truncate(folder.first(), folder.first().stat().st_size - 1)


# By name: the checkpoint, what is done to it, and what the error line must say.
CASES: dict[str, tuple[str, Callable[[Folder, dict[str, Path]], object], str]] = {
    "scales of an expert missing": (FLASH, planted("scales of an expert missing"), "FP4 without a scale"),
    "a scale grid turned": (FLASH, planted("a scale grid turned"), "[8, 128]: [128, 8] would; the grid of"),
    "an FP8 scale grid turned": (FLASH, planted("an FP8 scale grid turned"), "[2, 8]: [8, 2] would; the grid of"),
    "the byte 255": (FLASH, planted("the byte 255 among scales"), "block [0, 7] is nan (the byte 255)"),
    "scales swapped": (FLASH, planted("the scales of two matrices swapped"), "F8_E8M0 [256, 4]: [128, 8] would"),
    "scales as numbers": (FLASH, planted("FP8 scales as numbers"), "instead of 2^-"),
    "a base's scales as numbers": (BASE, planted("a base's scales as numbers"), "instead of 2^-"),
    "four-bit scales as numbers": (FLASH, planted("FP4 scales as numbers"), f"{scale_of(EXPERT)} are F32"),
    "codes not packed": (FLASH, planted("codes that are not packed"), "packed two per byte"),
    "the grid of blocks": (FLASH, planted("four-bit codes with the grid of eight-bit ones"), "are those of FP8"),
    "the grid of groups": (BASE, planted("eight-bit codes with the grid of four-bit ones"), "are those of FP4"),
    "a file cut short": (FLASH, cut_short, "truncated"),
    "a stage lost": (BLOCKS, planted("a stage lost"), "missing: mtp.2"),
    "hyper-connections lost": (FLASH, lambda folder, clean: drop(folder, HYPER), f"{HYPER}: missing"),
    "a table lost": (FLASH, lambda folder, clean: drop(folder, TABLE), f"{TABLE}: missing"),
    "the config of V3": (FLASH, config_of("v3"), "parameters that it describes are missing"),
    "V4's config over V3": ("v3", config_of(FLASH), "parameters that it describes are missing"),
    "the preview's config over 0731": (BLOCKS, config_of(FLASH), "3 stages (mtp.0 to mtp.2)"),
    "0731's config over the preview": (FLASH, config_of(BLOCKS), "the stored drafter is MTP, 1 layer (mtp.0)"),
    "no ratio for a stage": (BLOCKS, planted("ratios for two stages too few"), "4 entries, 6 are needed"),
    "no ratio for a layer": (FLASH, planted("ratios for layers too few"), "the kind of some layers is unknown"),
    "ten thousand ratios": (FLASH, field("compress_ratios", [0] * 10_000), "no drafter has more than 64"),
    "ratios of text": (FLASH, field("compress_ratios", ["a"] * 4), "compress_ratios[0]"),
    "a negative ratio": (FLASH, field("compress_ratios", [0, 0, -4, 0]), "compress_ratios[2]"),
    "a ratio of 65536": (FLASH, field("compress_ratios", [0, 0, 65_536, 0]), "65536 for layer 2, allowed: 0, 4, 128"),
    "a target layer that is not there": (BLOCKS, field(TARGETS, [0, 1, 40]), "numbered from 0"),
    "no target layer": (BLOCKS, field(TARGETS, []), "are not all among the 3 layers"),
    "a negative target layer": (BLOCKS, field(TARGETS, [-1, 1, 2]), "dspark_target_layer_ids[0]"),
    "too many target layers": (BLOCKS, field(TARGETS, [0] * 60_000), "names 60000 layers"),
    "groups that do not divide": (FLASH, field("o_groups", 3), "o_groups 3 does not divide"),
    "more hash layers than layers": (FLASH, field("num_hash_layers", 4), "num_hash_layers 4 is more than"),
    "no hash layers": (FLASH, field("num_hash_layers", 0), "num_hash_layers is 0, but the files hold 2"),
    "more streams": (FLASH, field("hc_mult", 8), "hc_mult is 8, but the files hold 4"),
    "other blocks": (
        FLASH,
        lambda folder, clean: folder.config(lambda c: c["quantization_config"].update(weight_block_size=[32, 32])),
        "weight_block_size is [32, 32], scales are stored for [128, 128]",
    ),
}  # fmt: skip


EVERY_VERB = ("a scale grid turned", "the byte 255", "a stage lost", "the config of V3", "ten thousand ratios")


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_checkpoint_is_refused_in_a_line(name: str, clean: dict[str, Path], tmp_path: Path) -> None:
    release, mutate, says = CASES[name]
    folder = Path(shutil.copytree(clean[release], tmp_path / "source"))
    mutate(Folder(folder), clean)
    out = tmp_path / "out"
    verbs = [["convert", folder, out, "--bf16"], ["shard", folder, out, "--ep", 2], ["merge", folder, out]]
    for verb in verbs if name in EVERY_VERB else verbs[:1]:
        done = call(*verb)
        lines = done.stderr.splitlines()
        assert done.returncode == FORMAT, done.stderr
        assert lines[0].startswith("error: ") and says in lines[0], done.stderr
        assert sum(line.startswith("error: ") for line in lines) == 1 and not done.stdout
        assert any(line.startswith("hint: ") for line in lines) or "in all " in lines[0], done.stderr
        assert not out.exists()


@pytest.mark.parametrize(
    ("release", "verb"),
    [
        (FLASH, ["convert", "--bf16"]),
        (FLASH, ["convert", "--fp8"]),
        (FLASH, ["convert", "--recipe", "nvfp4-modelopt-experts"]),
        (FLASH, ["convert", "--to", "int4-group-32"]),
        (FLASH, ["shard", "--ep", 2]),
        (FLASH, ["shard", "--layout", "deepseek", "--tp", 2]),
        (BASE, ["convert", "--bf16"]),
    ],
)
def test_scales_too_many_to_be_looked_at_before_are_refused_when_read(
    release: str, verb: list[Any], clean: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = Path(shutil.copytree(clean[release], tmp_path / "source")), tmp_path / "out"
    spoiled = Folder(folder)
    bad, told = (b"\xff", "is nan (the byte 255)") if release == FLASH else (b"\x00\x00\xc0\x7f", "is nan")
    spoiled.poke(SCALES, 0, bad)
    convert = [verb[0], folder, out, *verb[1:], "--workers", 1, "-q"]
    before = call(*convert)
    assert before.returncode == FORMAT and f"{SCALES}: scale of block [0, 0] {told}" in before.stderr
    assert not out.exists()
    monkeypatch.setattr(checks, "_scales", lambda plan: {})
    while_read = call(*convert)
    assert (while_read.returncode, while_read.stderr) == (FORMAT, before.stderr)
    assert out.exists() and not any(out.rglob("dsctl.json"))
    shutil.copy(clean[release] / spoiled.file(SCALES).name, folder)
    dsctl(*convert)
    dsctl(verb[0], folder, tmp_path / "afresh", *verb[1:], "-q")
    assert contents(out) == contents(tmp_path / "afresh")


@pytest.fixture(scope="module")
def odd(clean: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of which the values do not tell some scales, and what was made of it."""
    root = tmp_path_factory.mktemp("odd")
    folder = Path(shutil.copytree(clean[FLASH], root / "source"))

    def spoil(held: dict[str, torch.Tensor]) -> None:
        held[EXPERT].view(torch.uint8)[:20] &= 0x33
        held[scale_of(EXPERT)].view(torch.uint8)[:20] += 1

    Folder(folder).tensors(EXPERT, spoil)
    for name, options in (("bf16", ["--bf16"]), ("fp8", ["--fp8"])):
        dsctl("convert", folder, root / name, *options, "--workers", 1, "-q")
    return {"source": folder, "bf16": root / "bf16", "fp8": root / "fp8"}


def entries(*pairs: tuple[int, int]) -> tuple[str, list[int], bytes]:
    raw = b"".join(struct.pack("<IB", *pair) for pair in pairs)
    return "U8", [len(pairs), 5], raw


COUNT, GRID = 128 * 8, [128, 8]
KEPT: dict[str, Entries] = {
    "places beyond the grid": {SCALES: entries((COUNT, 120), (2**32 - 1, 5), (3, 7))},
    "other exponents": {SCALES: entries(*((place, place % 254) for place in range(200)))},
    "the byte 255": {SCALES: entries(*((place, 255) for place in range(200)))},
    "a place twice": {SCALES: entries((1, 110), (1, 3), (1, 254))},
    "no entry": {SCALES: entries()},
    "all at random": {SCALES: ("F8_E8M0", GRID, random.Random(1).randbytes(COUNT))},
    "all 255": {SCALES: ("F8_E8M0", GRID, b"\xff" * COUNT)},
    "names of others": {"x": entries((0, 1)), "layers.0.attn.wq_a.scale": entries((0, 1))},
}
REFUSED: dict[str, Entries] = {
    "entries of four bytes": {SCALES: ("U8", [4, 4], bytes(16))},
    "more entries than scales": {SCALES: ("U8", [COUNT, 5], bytes(5 * COUNT))},
    "turned": {SCALES: ("F8_E8M0", GRID[::-1], bytes(COUNT))},
    "another dtype": {SCALES: ("F32", GRID, bytes(4 * COUNT))},
}


def put(path: Path, held: Entries) -> None:
    at, header = 0, {}
    for name, (dtype, shape, raw) in held.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(raw for _, _, raw in held.values()))


def values(folder: Path) -> torch.Tensor:
    """What the expert holds (float64 [rows, columns])."""
    held: dict[str, torch.Tensor] = {}
    for path in folder.glob("model-*.safetensors"):
        held |= load_file(path)
    e2m1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=torch.float64)
    codes = held[EXPERT].view(torch.uint8).to(torch.int32)
    scales = torch.exp2(held[SCALES].view(torch.uint8).double() - 127)
    return torch.stack((e2m1[codes & 15], e2m1[codes >> 4]), 2).flatten(1) * scales.repeat_interleave(32, 1)


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "bf16") for name in KEPT), ("other exponents", "fp8"), ("all at random", "fp8")]
)
def test_kept_scales_that_are_others_make_no_other_value(
    name: str, kind: str, odd: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(odd[kind], tmp_path / "source"))
    put(folder / ODD, KEPT[name])
    dsctl("convert", folder, tmp_path / "out", "--to", "published", "--workers", 1, "-q", "--only", "layers.1.ffn.*")
    assert torch.equal(values(tmp_path / "out"), values(odd["source"]))
    assert call("verify", folder).returncode == 50


@pytest.mark.parametrize("name", REFUSED)
def test_kept_scales_that_cannot_be_some_are_refused(name: str, odd: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(odd["bf16"], tmp_path / "source"))
    put(folder / ODD, REFUSED[name])
    done = call("convert", folder, tmp_path / "out", "--to", "published")
    assert done.returncode == FORMAT and f"error: {ODD}: {SCALES} is" in done.stderr and "hint: " in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, 5, 100])
def test_kept_scales_that_are_cut_short_are_found(size: int, odd: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(odd["bf16"], tmp_path / "source"))
    os.truncate(folder / ODD, size)
    done = call("convert", folder, tmp_path / "out", "--to", "published")
    assert done.returncode == FORMAT and f"error: {ODD}: " in done.stderr
    found = json.loads(call("verify", folder, "--json").stdout)["findings"]
    assert {(one["code"], one["where"]) for one in found} >= {("signed-size", ODD), ("wrong-size", ODD)}
