"""Hand-made adapters of any names and shapes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.support.folders import tensors

USUAL: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["o_proj"]}


def handmade(target: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """A folder with these tensors and settings."""
    target.mkdir(parents=True, exist_ok=True)
    save_file({name: one.contiguous() for name, one in tensors.items()}, target / "adapter_model.safetensors")
    (target / "adapter_config.json").write_text(json.dumps(USUAL | config))
    return target


def pair(module: str, rows: int, columns: int, r: int = 4, scale: float = 0.02) -> dict[str, torch.Tensor]:
    """Random factors of one module, in PEFT's names."""
    torch.manual_seed(rows + columns)
    prefix = f"base_model.model.{module}"
    a, b = torch.randn(r, columns) * 0.3, torch.randn(rows, r) * scale
    return {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}


def fitting(source: Path, target: Path, modules: Iterable[str], scale: float = 0.02) -> Path:
    """An adapter of these modules of a checkpoint, with random factors."""
    known = {name: tuple(one.shape) for name, one in tensors(source).items()}
    made = [pair(module, *known[f"{module}.weight"], scale=scale) for module in modules]
    return handmade(target, {name: one for held in made for name, one in held.items()})
