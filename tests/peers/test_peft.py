"""PEFT's own merge of an adapter, on the CPU, and `dsctl convert --lora` give the same checkpoint.

The base is BF16. PEFT adds the float32 change to a linear module's weight and rounds once, as dsctl does; its sums
may have a different order. For stacked experts and embeddings it rounds the change to the weight's dtype first: there
the reference is PEFT on a float32 model, rounded at the end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from tests.support.adapters import loaded, trained
from tests.support.checkpoints import smaller
from tests.support.command import dsctl

ATTENTION = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
# For these PEFT trains the stacked tensors of the routed experts, gate and up together at twice the rank.
GATED = ["gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smaller(tmp_path_factory, "v3", bf16=True, mtp=False, moe_intermediate=192)


def compared(ours: Path, merged: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> tuple[int, int, int]:
    """The numbers of values that differ from PEFT's, of values that PEFT changed, and of parameters that it changed.

    PEFT's are rounded to BF16, in which the base stores them. No value may differ by more than one step of BF16.
    """
    found, differ, changed, touched = loaded(ours).state_dict(), 0, 0, 0
    assert found.keys() == merged.keys()
    for name, one in merged.items():
        stored = torch.float32 if name.endswith("e_score_correction_bias") else torch.bfloat16
        mine, theirs, was = (values.to(stored) for values in (found[name], one, before[name]))
        moved = int((theirs != was).sum())
        changed += moved
        touched += moved > 0
        if not moved or stored == torch.float32:
            assert torch.equal(mine, theirs), name
            continue
        differ += int((mine != theirs).sum())
        assert int((ordered(mine) - ordered(theirs)).abs().max()) <= 1, name
    return differ, changed, touched


def ordered(values: torch.Tensor) -> torch.Tensor:
    """BF16 values as numbers whose neighbours are one step apart."""
    words = values.view(torch.int16).int()
    return torch.where(words < 0, -(words & 0x7FFF), words)


@pytest.mark.parametrize(
    "config",
    [
        {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION},
        {"r": 64, "lora_alpha": 24, "use_rslora": True, "target_modules": ATTENTION},
        {"r": 8, "lora_alpha": 16, "use_dora": True, "target_modules": ATTENTION},
        {
            "r": 8,
            "lora_alpha": 16,
            "target_modules": ATTENTION,
            "rank_pattern": {r"layers\.[01]\.self_attn\.o_proj": 3, "o_proj": 5, "q_a_proj": 7},
            "alpha_pattern": {"model.layers.0.self_attn.o_proj": 11, "kv_b_proj": 1},
        },
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_a_proj"], "modules_to_save": ["lm_head", "mlp.gate"]},
    ],
    ids=["lora", "rslora", "dora", "patterns", "saved"],
)
def test_modules_are_merged_as_by_peft(base: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    before = loaded(base).state_dict()
    merged = trained(base, tmp_path / "adapter", **config).merge_and_unload().state_dict()
    dsctl("convert", base, tmp_path / "out", "--lora", tmp_path / "adapter")
    differ, changed, touched = compared(tmp_path / "out", merged, before)
    assert touched > 2 and changed > 10_000
    # Sums in a different order round differently in about one value of ten thousand.
    assert differ <= 2e-4 * changed, (differ, changed)


@pytest.mark.parametrize(
    "config",
    [
        {"target_parameters": EXPERTS, "target_modules": ["o_proj"]},
        {"target_parameters": EXPERTS[:1], "target_modules": ["o_proj"], "use_rslora": True},
        {"target_parameters": EXPERTS[1:], "target_modules": ["o_proj"]},
        {"target_modules": [*ATTENTION, *GATED]},
        {"target_modules": ["embed_tokens", "lm_head", "o_proj"]},
    ],
    ids=["experts", "gate_up", "down", "gated", "embedding"],
)
def test_experts_and_embeddings_are_merged_as_by_peft_in_float32(
    base: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    before = loaded(base).state_dict()
    model = trained(base, tmp_path / "adapter", torch.float32, r=4, lora_alpha=8, **config)
    dsctl("convert", base, tmp_path / "out", "--lora", tmp_path / "adapter")
    differ, changed, touched = compared(tmp_path / "out", model.merge_and_unload().state_dict(), before)
    assert touched > 3 and differ <= 2e-4 * changed, (differ, changed)


@pytest.fixture(scope="module")
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scales are powers of two: BF16 holds the decoded values exactly."""
    return smaller(tmp_path_factory, "v3.2", aligned=True, mtp=False)


def test_an_fp8_base_is_merged_as_its_bf16_form_by_peft(fp8: Path, tmp_path: Path) -> None:
    dsctl("convert", fp8, tmp_path / "bf16", "--bf16")
    before = loaded(tmp_path / "bf16").state_dict()
    model = trained(tmp_path / "bf16", tmp_path / "adapter", r=8, lora_alpha=16, target_modules=ATTENTION)
    dsctl("convert", fp8, tmp_path / "out", "--bf16", "--lora", tmp_path / "adapter")
    differ, changed, touched = compared(tmp_path / "out", model.merge_and_unload().state_dict(), before)
    assert touched > 5 and differ <= 2e-4 * changed, (differ, changed)


def test_transformers_loads_a_merged_fp8_checkpoint_as_we_decode_it(fp8: Path, tmp_path: Path) -> None:
    dsctl("convert", fp8, tmp_path / "bf16", "--bf16")
    trained(tmp_path / "bf16", tmp_path / "adapter", r=8, lora_alpha=16, target_modules=ATTENTION)
    dsctl("convert", fp8, tmp_path / "merged", "--lora", tmp_path / "adapter")
    dsctl("convert", tmp_path / "merged", tmp_path / "decoded", "--bf16")
    theirs, told = AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged",
        dtype=torch.bfloat16,
        output_loading_info=True,
        quantization_config=FineGrainedFP8Config(dequantize=True),
    )
    assert not told["missing_keys"] and not told["mismatched_keys"] and not told["unexpected_keys"]
    ours, held = loaded(tmp_path / "decoded").state_dict(), theirs.state_dict()
    assert ours.keys() == held.keys()
    assert not [name for name, one in ours.items() if not torch.equal(one, held[name].to(one.dtype))]
    before = loaded(tmp_path / "bf16").state_dict()
    assert sum(not torch.equal(one, before[name]) for name, one in ours.items()) > 5
