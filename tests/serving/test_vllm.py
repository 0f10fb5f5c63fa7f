"""vLLM, on a CPU, serves what dsctl writes: `VLLM_PYTHON=... pytest tests/serving -m serving` (docs/loaders.md)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.checkpoints import tiny
from tests.support.command import dsctl

ENGINE = Path(__file__).with_name("engine.py")
# vLLM's CPU kernels take no quantized experts, and of INT8 no kv_b_proj.
RECIPE = """
[[rule]]
role = "routed experts"
format = "bf16"

[[rule]]
match = "*.kv_b_proj.weight"
format = "bf16"

[[rule]]
role = "attention"
format = "{0}"

[[rule]]
role = "dense mlp"
format = "{0}"

[[rule]]
role = "shared experts"
format = "{0}"
"""


def served(folder: Path, dtype: str, *prompt: int) -> list[dict[str, Any]]:
    """What vLLM generates."""
    told = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    words = [os.environ["VLLM_PYTHON"], str(ENGINE), str(folder), dtype, *map(str, prompt)]
    done = subprocess.run(words, env={**os.environ, **told}, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("generated ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(lines[-1].removeprefix("generated "))  # type: ignore[no-any-return]


@pytest.fixture
def fp8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3")


@pytest.mark.serving
def test_our_bf16_is_served_and_means_what_it_means_to_transformers(fp8: Path, tmp_path: Path) -> None:
    dsctl("convert", fp8, tmp_path / "bf16", "--bf16")
    found = served(tmp_path / "bf16", "float32", 7)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "bf16", dtype=torch.float32)
    with torch.no_grad():
        expected = model(torch.tensor([[7]])).logits[0, -1].log_softmax(0)
    assert len(found) == 4
    assert found[0]["token"] == int(expected.argmax())
    for token, logprob in found[0]["best"].items():
        assert abs(float(expected[int(token)]) - logprob) < 1e-3


def quantized(source: Path, folder: Path, format_: str) -> None:
    """All matrices but the routed experts in a format."""
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(format_))
    dsctl("convert", source, folder / "stored", "--recipe", recipe)


@pytest.mark.serving
@pytest.mark.parametrize("format_", ["fp8-channel", "int8-channel"])
def test_formats_whose_activations_are_quantized_are_served(format_: str, fp8: Path, tmp_path: Path) -> None:
    quantized(fp8, tmp_path, format_)
    assert len(served(tmp_path / "stored", "bfloat16", *range(1, 33))) == 4


@pytest.mark.serving
def test_int4_is_served_as_its_own_decoding_is(fp8: Path, tmp_path: Path) -> None:
    quantized(fp8, tmp_path, "int4-group")
    dsctl("convert", tmp_path / "stored", tmp_path / "decoded", "--bf16")
    stored, decoded = (served(tmp_path / name, "bfloat16", *range(1, 33)) for name in ("stored", "decoded"))
    # Both compute in bfloat16, whose rounding differs between the kernels.
    assert [step["token"] for step in stored] == [step["token"] for step in decoded]
    for mine, other in zip(stored, decoded, strict=True):
        assert mine["best"].keys() == other["best"].keys()
        assert max(abs(mine["best"][token] - other["best"][token]) for token in mine["best"]) < 0.05
