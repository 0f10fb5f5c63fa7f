"""A checkpoint of an unknown architecture: its parameters come from the headers, and convert exactly and back.

Every expected value is computed in numpy, from the stored bytes alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.command import dsctl
from tests.support.lantern import CONFIG, E2M1, FP8, Tensors, bits_of, decoded, held, rounded, verified, write

# Names with numbers, points and endings that parts of other dialects have.
MODULES = (
    "trunk.0.mix", "trunk.0.bank.11.up", "trunk.10.bank.2.down", "a.b.c.1.2.3", "weight.weight", "x_scale",
    "gate_packed", "0", "head", "q.scale.k", "_", "deep_shape",
)  # fmt: skip
PLAIN = (
    ("stem.table.weight", (50, 36), torch.bfloat16), ("trunk.0.norm.weight", (36,), torch.float32),
    ("temperature", (), torch.float32), ("steps", (), torch.int64), ("conv.weight", (3, 4, 5), torch.bfloat16),
    ("trunk.0.mix.bias", (7,), torch.bfloat16), ("mask", (9,), torch.bool), ("empty", (0, 4), torch.bfloat16),
    ("logit_scale", (1,), torch.float32), ("norm.scale", (12,), torch.bfloat16),
    ("layer.weight_g", (3, 1), torch.float32),
)  # fmt: skip


@st.composite
def checkpoints(draw: st.DrawFn) -> dict[str, Any]:
    """An invented architecture in FP8 blocks of some size: odd shapes, tensors spread over files by chance."""
    block = draw(st.sampled_from([(128, 128), (64, 64), (32, 16), (1, 128), (48, 20)]))
    dialect = draw(st.sampled_from(["weight_scale_inv", "scale"]))
    seed = draw(st.integers(0, 1 << 30))
    random = np.random.default_rng(seed)
    sizes = st.integers(1, 300)
    tensors: Tensors = {}
    matrices: dict[str, tuple[str, str]] = {}
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    for module in draw(st.lists(st.sampled_from(MODULES), min_size=1, max_size=5, unique=True)):
        rows, columns = draw(sizes), draw(sizes)
        codes = random.integers(0, 256, (rows, columns), np.uint8)
        codes[(codes & 0x7F) == 0x7F] = 0x7E
        grid = -(-rows // block[0]), -(-columns // block[1])
        scales = random.uniform(1e-4, 3, grid).astype(np.float32)
        name, scale = f"{module}.weight", f"{module}.{dialect}"
        tensors[name] = torch.from_numpy(codes).view(torch.float8_e4m3fn)
        tensors[scale] = torch.from_numpy(scales).to(dtype)
        matrices[name] = name, scale
    for name, shape, kind in draw(st.lists(st.sampled_from(PLAIN), max_size=6, unique_by=lambda one: one[0])):
        values = torch.from_numpy(random.standard_normal(shape).astype(np.float32).reshape(shape))
        tensors[name] = values.to(kind)
    names = sorted(tensors)
    files: dict[str, Tensors] = {}
    for name in names:
        files.setdefault(f"model-{draw(st.integers(1, 3))}.safetensors", {})[name] = tensors[name]
    config = CONFIG | {"quantization_config": FP8 | {"weight_block_size": list(block)}}
    if draw(st.booleans()):
        config["quantization_config"]["modules_to_not_convert"] = ["stem.table", "head.none"]
    if draw(st.booleans()):
        config = {"text_config": config, "model_type": "lantern-vision"}
    return {"files": files, "config": config, "matrices": matrices, "block": block, "total": draw(st.booleans())}


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(checkpoints())
def test_an_invented_architecture_converts_exactly_and_back_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, made: dict[str, Any]
) -> None:
    place = tmp_path_factory.mktemp("lantern")
    source = write(place / "src", made["files"], made["config"], made["total"])
    tensors = {name: tensor for file in made["files"].values() for name, tensor in file.items()}
    assert [code for code, _ in verified(source) if code not in ("odd-scale", "scale-too-large", "zero-part")] == []
    dsctl("convert", source, place / "bf16", "--bf16", "-q", "--workers", 1)
    found = held(place / "bf16")
    scales = {scale for _, scale in made["matrices"].values()}
    assert found.keys() == tensors.keys() - scales
    for name, tensor in found.items():
        if name in made["matrices"]:
            expected = decoded(tensors[name], tensors[made["matrices"][name][1]], made["block"])
            assert tensor.dtype == torch.bfloat16
            assert (tensor.view(torch.int16).numpy().view(np.uint16) == expected).all(), name
        else:
            assert tensor.dtype == tensors[name].dtype and (bits_of(tensor) == bits_of(tensors[name])).all(), name
    config = json.loads((place / "bf16" / "config.json").read_text())
    assert "quantization_config" not in config and "quantization_config" not in config.get("text_config", {})
    for number, words in enumerate((("--to", "published"), ("--fp8",))):
        back = place / f"back{number}"
        dsctl("convert", place / "bf16", back, *words, "-q", "--workers", 1)
        for file in source.iterdir():
            assert (back / file.name).read_bytes() == file.read_bytes(), (words, file.name)


def test_groups_of_four_bits_come_back_byte_for_byte(tmp_path: Path) -> None:
    """The names of V4: two E2M1 codes in a byte and E8M0 scales, in any exponents, beside FP8 blocks."""
    random = np.random.default_rng(3)
    codes = random.integers(0, 256, (70, 48), np.uint8)
    powers = random.integers(90, 160, (70, 3), np.uint8)
    blocks = random.integers(0, 127, (40, 200), np.uint8)
    tensors = {
        "a.up.weight": torch.from_numpy(codes).view(torch.int8),
        "a.up.scale": torch.from_numpy(powers).view(torch.float8_e8m0fnu),
        "a.mix.weight": torch.from_numpy(blocks).view(torch.float8_e4m3fn),
        "a.mix.scale": torch.full((1, 2), 2.0**-9).to(torch.float8_e8m0fnu),
        "a.gate.weight": torch.ones(3, 8).bfloat16(),
    }
    config = CONFIG | {"quantization_config": FP8 | {"weight_block_size": [128, 128], "scale_fmt": "ue8m0"}}
    source = write(tmp_path / "src", {"model.safetensors": tensors}, config)
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "-q", "--workers", 1)
    nibbles = np.stack([codes & 15, codes >> 4], -1).reshape(70, 96)
    expected = rounded(E2M1[nibbles] * np.exp2(powers.repeat(32, 1).astype(np.float32) - 127))
    found = held(tmp_path / "bf16")["a.up.weight"].view(torch.int16).numpy().view(np.uint16)
    assert (found == expected).all()
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published", "-q", "--workers", 1)
    for file in source.iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes(), file.name
