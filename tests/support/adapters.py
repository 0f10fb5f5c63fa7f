"""Adapters that PEFT makes and saves, of a model that transformers loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel


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
