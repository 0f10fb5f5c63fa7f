"""Adapters for tests: PEFT's own of a model that transformers loaded, and hand-made ones of any names and shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

USUAL: dict[str, Any] = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["o_proj"]}


def loaded(folder: Path, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """A model as transformers loads it, complete."""
    model, told = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not told["missing_keys"] and not told["mismatched_keys"] and not told["unexpected_keys"]
    return model


def trained(folder: Path, target: Path, dtype: torch.dtype = torch.bfloat16, **config: Any) -> PeftModel:
    """An adapter with random values, saved by PEFT; the model in `dtype` with it."""
    torch.manual_seed(1)
    model = get_peft_model(loaded(folder, dtype), LoraConfig(**config))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_A" in name or "lora_embedding_A" in name:
                value.normal_(0, 0.3)
            elif "lora_B" in name or "lora_embedding_B" in name:
                value.normal_(0, 0.02)
            elif "magnitude" in name:
                value.mul_(1 + 0.1 * torch.randn_like(value))
            elif "modules_to_save" in name and value.is_floating_point():
                value.add_(0.01 * torch.randn_like(value))
    model.save_pretrained(str(target))
    return model


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
