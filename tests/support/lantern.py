"""An invented architecture, the lantern: files of it, and what their bytes mean, computed here in numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.support.command import call

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


def lantern(folder: Path) -> Path:
    """Matrices in FP8 blocks, of shapes that every format can hold, with plain ones beside them."""
    random = torch.Generator().manual_seed(7)
    tensors: Tensors = {}
    for layer in range(3):
        for name, shape in (("mix", (192, 256)), ("bank.0.up", (100, 128)), ("bank.1.up", (100, 128))):
            codes = torch.randint(0, 127, shape, generator=random, dtype=torch.uint8)
            codes[::128, ::128] = 0x7E
            grid = -(-shape[0] // 128), -(-shape[1] // 128)
            tensors[f"trunk.{layer}.{name}.weight"] = codes.view(torch.float8_e4m3fn)
            scales = torch.rand(*grid, generator=random) * 1e-3 + 1e-4
            tensors[f"trunk.{layer}.{name}.weight_scale_inv"] = scales
        tensors[f"trunk.{layer}.gate.weight"] = torch.randn(4, 256, generator=random).bfloat16()
        tensors[f"trunk.{layer}.norm.weight"] = torch.randn(256, generator=random)
    tensors["head.weight"] = torch.randn(60, 256, generator=random).bfloat16()
    said = FP8 | {"weight_block_size": [128, 128], "modules_to_not_convert": ["gate", "head"]}
    names = sorted(tensors)
    files = {f"model-{n}.safetensors": {name: tensors[name] for name in names[n::2]} for n in range(2)}
    return write(folder, files, CONFIG | {"quantization_config": said})
