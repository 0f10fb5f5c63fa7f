"""A checkpoint of an unknown architecture: its parameters come from the headers, and convert exactly and back.

Every expected value is computed here, in numpy or by compressed-tensors, from the stored bytes alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.support.command import call, dsctl

Tensors = dict[str, torch.Tensor]
INDEX = "model.safetensors.index.json"
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "float8_e4m3fn"}
CONFIG = {"architectures": ["LanternForCausalLM"], "model_type": "lantern", "torch_dtype": "bfloat16"}


def e4m3_values() -> np.ndarray:
    """The values of E4M3's 256 codes: sign, four bits of exponent with bias 7, three of mantissa, no infinity."""
    values = []
    for code in range(256):
        exponent, mantissa = (code >> 3) & 15, code & 7
        size = mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        values.append(math.nan if (exponent, mantissa) == (15, 7) else size * (-1) ** (code >> 7))
    return np.array(values, np.float32)


E4M3 = e4m3_values()
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def rounded(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values rounded to BF16, to nearest even."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.reshape(-1).view(torch.uint8).numpy()


def decoded(codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> np.ndarray:
    """FP8 codes times the scale of their block, element by element, as the bits of BF16."""
    rows, columns = np.indices(codes.shape)
    factors = scales.float().numpy()[rows // block[0], columns // block[1]]
    return rounded(E4M3[codes.view(torch.uint8).numpy()] * factors)


def write(folder: Path, files: Mapping[str, Tensors], config: Mapping[str, Any] | None, total: bool = True) -> Path:
    folder.mkdir(parents=True)
    for file, tensors in files.items():
        save_file(tensors, folder / file, {"format": "pt"})
    names = {name: file for file, tensors in files.items() for name in tensors}
    size = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
    metadata = {"total_size": size} if total else {}
    if len(files) > 1:
        (folder / INDEX).write_text(json.dumps({"metadata": metadata, "weight_map": names}, indent=1))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config, indent=4))
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def held(folder: Path) -> Tensors:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def verified(folder: Path, *options: str) -> list[tuple[str, str]]:
    """The codes and places of a check's findings, without what says only that the architecture is unknown."""
    report = json.loads(call("verify", folder, "--deep", "--json", *options).stdout)
    assert report["checked"]["architecture"] is None
    usual = {"unknown-architecture", "no-tokenizer", "total-size"}
    return [(one["code"], one["where"]) for one in report["findings"] if one["code"] not in usual]


def said(folder: Path) -> dict[str, Any] | None:
    return json.loads((folder / "config.json").read_text()).get("quantization_config")


# Names with numbers, points and endings that parts of other dialects have.
MODULES = (
    "trunk.0.mix", "trunk.0.bank.11.up", "trunk.10.bank.2.down", "a.b.c.1.2.3", "weight.weight", "x_scale", "gate_packed",
    "0", "head", "q.scale.k", "_", "deep_shape",
)  # fmt: skip
PLAIN = (
    ("stem.table.weight", (50, 36), torch.bfloat16), ("trunk.0.norm.weight", (36,), torch.float32),
    ("temperature", (), torch.float32), ("steps", (), torch.int64), ("conv.weight", (3, 4, 5), torch.bfloat16),
    ("trunk.0.mix.bias", (7,), torch.bfloat16), ("mask", (9,), torch.bool), ("empty", (0, 4), torch.bfloat16),
    ("logit_scale", (1,), torch.float32), ("norm.scale", (12,), torch.bfloat16), ("layer.weight_g", (3, 1), torch.float32),
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
