"""Adapters that cannot be merged: one line that names the fault, a hint, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.checkpoints import smaller
from tests.support.command import call
from tests.support.factors import USUAL, handmade, pair

O_PROJ = "model.layers.1.self_attn.o_proj"
A, B = f"base_model.model.{O_PROJ}.lora_A.weight", f"base_model.model.{O_PROJ}.lora_B.weight"
EXPERTS = "model.layers.1.mlp.experts"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smaller(tmp_path_factory, "v3")


def refused(base: Path, adapter: Path, *more: object) -> str:
    """What is said, in two lines: the error and the hint."""
    target = adapter.parent / "out"
    done = call("convert", base, target, "--lora", adapter, *more)
    assert done.returncode in (2, 10, 20, 30), done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1 and not done.stdout and not target.exists()
    return done.stderr


def factors() -> dict[str, torch.Tensor]:
    return pair(O_PROJ, 256, 512)


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not supported"),
    ({"peft_type": None}, "peft_type None"),
    ({"r": 0}, "r 0 is not valid"),
    ({"r": -4}, "r -4 is not valid"),
    ({"r": True}, "r True is not valid"),
    ({"r": 4.0}, "r 4.0 is not valid"),
    ({"r": "4"}, "r '4' is not valid"),
    ({"r": 1 << 40}, "is not valid"),
    ({"r": 8}, "r 8 and"),
    ({"lora_alpha": None}, "lora_alpha None is not valid"),
    ({"lora_alpha": 0}, "lora_alpha 0 is not valid"),
    ({"lora_alpha": [8]}, "lora_alpha [8] is not valid"),
    ({"lora_alpha": 1 << 70}, "is not valid"),
    ({"use_rslora": "yes"}, "use_rslora 'yes' is not true or false"),
    ({"use_dora": True}, "has no lora_magnitude_vector"),
    ({"bias": "all"}, "bias 'all' is not supported"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out True is not supported"),
    ({"lora_bias": True}, "lora_bias True is not supported"),
    ({"use_qalora": True}, "use_qalora True is not supported"),
    ({"layer_replication": [[0, 2]]}, "layer_replication [[0, 2]] is not supported"),
    ({"trainable_token_indices": [1]}, "trainable_token_indices [1] is not supported"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens [1] is not supported"),
    ({"arrow_config": {"top_k": 3}}, "arrow_config"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa': training began from a changed base model"),
    ({"init_lora_weights": "pissa_niter_16"}, "training began from a changed base model"),
    ({"init_lora_weights": "olora"}, "training began from a changed base model"),
    ({"init_lora_weights": "corda"}, "training began from a changed base model"),
    ({"init_lora_weights": "loftq"}, "training began from a changed base model"),
    ({"init_lora_weights": ["x"]}, "init_lora_weights"),
    ({"rank_pattern": {"o_proj": 3}}, "r 3 and"),
    ({"rank_pattern": {"o_proj": 2.5}}, "rank_pattern 'o_proj' 2.5 is not valid"),
    ({"rank_pattern": ["o_proj"]}, "rank_pattern ['o_proj'] is not an object"),
    ({"rank_pattern": {"(a+)+b": 4}}, "could take too long"),
    ({"rank_pattern": {"a" * 600: 4}}, "could take too long"),
    ({"rank_pattern": {".*.*.*x": 4}}, "could take too long"),
    ({"rank_pattern": {f".*{number}": 4 for number in range(9)}}, "more than 8 patterns with repetitions"),
    ({"alpha_pattern": {"(": 4}}, "is not a pattern"),
    ({"alpha_pattern": {"o_proj": "x"}}, "is not valid"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save lm_head has no tensor"),
    ({"modules_to_save": "lm_head"}, "modules_to_save 'lm_head' is not a list of names"),
]


@pytest.mark.parametrize(("config", "words"), SETTINGS, ids=[words for _, words in SETTINGS])
def test_settings(base: Path, tmp_path: Path, config: dict[str, Any], words: str) -> None:
    assert words in refused(base, handmade(tmp_path / "adapter", factors(), **config))


def without(*names: str) -> dict[str, torch.Tensor]:
    return {name: one for name, one in factors().items() if name not in names}


def nan(name: str, value: float) -> dict[str, torch.Tensor]:
    held = factors()
    held[name][3, 2] = value
    return held


def of_experts(rows: int, columns: int, inner: str = "") -> dict[str, torch.Tensor]:
    name = f"base_model.model.{EXPERTS}{inner}"
    return {f"{name}.lora_A.weight": torch.ones(rows, 256), f"{name}.lora_B.weight": torch.ones(256, columns)}


TENSORS: list[tuple[Callable[[], dict[str, torch.Tensor]], dict[str, Any], str]] = [
    (dict, {}, "changes no matrix"),
    (lambda: without(B), {}, "has lora_A, but not lora_B"),
    (lambda: without(A), {}, "has lora_B, but not lora_A"),
    (lambda: factors() | {A: torch.ones(4, 511)}, {}, "factors of shapes [4, 511] and [256, 4]"),
    (lambda: factors() | {B: torch.ones(255, 4)}, {}, "but r 4 and model.layers.1.self_attn.o_proj.weight need"),
    (lambda: factors() | {A: torch.ones(4)}, {}, "of shape [4] is not a matrix"),
    (lambda: factors() | {A: torch.ones(0, 512)}, {}, "is not a matrix"),
    (lambda: factors() | {A: torch.ones(4, 512, dtype=torch.int32)}, {}, "has dtype I32"),
    (lambda: factors() | {A: torch.ones(4, 512, dtype=torch.float64)}, {}, "has dtype F64"),
    (lambda: nan(A, float("nan")), {}, f"the change of {O_PROJ}.weight holds NaN or infinity"),
    (lambda: nan(B, float("-inf")), {}, "holds NaN or infinity"),
    (lambda: {name: one.bfloat16() for name, one in nan(B, float("inf")).items()}, {}, "holds NaN or infinity"),
    (lambda: pair("model.layers.9.self_attn.o_proj", 256, 512), {}, "layers.9.self_attn.o_proj: not in this model"),
    (lambda: pair("model.layers.1.self_attn.q_norm", 256, 512), {}, "q_norm: not in this model"),
    (lambda: factors() | {"base_model.model.score.weight": torch.ones(2, 256)}, {}, "score.weight: not in this model"),
    (lambda: factors() | {"base_model.model.lm_head.weight": torch.ones(513, 256)}, {}, "the model's is [512, 256]"),
    (lambda: factors() | {f"base_model.model.{O_PROJ}.lora_B.bias": torch.ones(256)}, {}, "lora_B.bias"),
    (lambda: factors() | {f"base_model.model.{O_PROJ}.lora_magnitude_vector": torch.ones(256)}, {}, "is not set"),
    (
        lambda: factors() | {f"base_model.model.{O_PROJ}.lora_magnitude_vector": torch.ones(9)},
        {"use_dora": True},
        "of shape [9], needs [256]",
    ),
    (lambda: factors() | {f"{O_PROJ}.lora_A.weight": torch.ones(4, 512)}, {}, "is there under two names"),
    (
        lambda: factors() | pair("layers.1.self_attn.o_proj", 256, 512),
        {},
        f"changes {O_PROJ}.weight twice, under two names",
    ),
    (lambda: of_experts(32, 32), {}, "has 1 pair of factors, but target_parameters names 0"),
    (
        lambda: of_experts(32, 32),
        {"target_parameters": ["mlp.experts.down_proj", "gate_up_proj"]},
        "has 1 pair of factors, but target_parameters names 2",
    ),
    (lambda: of_experts(31, 32), {"target_parameters": ["down_proj"]}, "factors of shapes [31, 256] and [256, 32]"),
    (lambda: of_experts(32, 32), {"target_parameters": ["down_proj"]}, "the same shape for both orders"),
    (
        lambda: of_experts(32, 32),
        {"target_parameters": ["down_proj"], "use_dora": True},
        "DoRA of stacked experts is not supported",
    ),
]


@pytest.mark.parametrize(("made", "config", "words"), TENSORS, ids=[words for _, _, words in TENSORS])
def test_tensors(
    base: Path, tmp_path: Path, made: Callable[[], dict[str, torch.Tensor]], config: dict[str, Any], words: str
) -> None:
    assert words in refused(base, handmade(tmp_path / "adapter", made(), **config))


def broken(adapter: Path, how: str) -> str:
    """Break an adapter's folder; the words that name the fault."""
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    if how == "no folder":
        adapter.rename(adapter.with_name("moved"))
        return "no such file or folder"
    if how == "no config":
        config.unlink()
        return "has no adapter_config.json"
    if how == "config is text":
        config.write_text("r = 4")
        return "adapter_config.json: not valid JSON"
    if how == "config is a list":
        config.write_text("[]")
        return "adapter_config.json: expected a JSON object"
    if how == "a key twice":
        config.write_text('{"r": 4, "r": 8}')
        return "key 'r' appears twice"
    if how == "NaN":
        config.write_text(json.dumps(USUAL | {"lora_alpha": float("nan")}))
        return "NaN is not JSON"
    if how == "no weights":
        weights.unlink()
        return "has no adapter_model.safetensors"
    if how == "pickled":
        weights.rename(adapter / "adapter_model.bin")
        return "adapter_model.bin is pickled, which can run code"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-8])
        return "--lora: adapter_model.safetensors: file is truncated"
    assert how == "a link out"
    weights.rename(adapter.parent / "elsewhere.safetensors")
    weights.symlink_to(adapter.parent / "elsewhere.safetensors")
    return "is a link out of the folder"


FAULTS = (
    "no folder", "no config", "config is text", "config is a list", "a key twice", "NaN", "no weights", "pickled",
    "truncated", "a link out",
)  # fmt: skip


@pytest.mark.parametrize("how", FAULTS)
def test_folders(base: Path, tmp_path: Path, how: str) -> None:
    adapter = handmade(tmp_path / "adapter", factors())
    words = broken(adapter, how)
    assert words in refused(base, adapter)


def test_a_file_is_not_a_folder(base: Path, tmp_path: Path) -> None:
    adapter = handmade(tmp_path / "adapter", factors())
    assert "is not a folder" in refused(base, adapter / "adapter_model.safetensors")


def test_a_selection_without_what_the_adapter_changes(base: Path, tmp_path: Path) -> None:
    said = refused(base, handmade(tmp_path / "adapter", factors()), "--only", "model.layers.0.*")
    assert "changes no parameter of the target" in said and "check --only and --skip" in said


def test_several_adapters_and_a_source_that_is_deleted(base: Path, tmp_path: Path) -> None:
    adapter = handmade(tmp_path / "adapter", factors())
    assert "--lora: several adapters" in refused(base, adapter, "--lora", adapter)
    assert "--consume and --lora exclude each other" in refused(base, adapter, "--consume", "--consume")


def test_a_checkpoint_of_unknown_architecture(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    save_file({f"{O_PROJ}.weight": torch.ones(256, 512)}, tmp_path / "other" / "model.safetensors")
    (tmp_path / "other" / "config.json").write_text('{"model_type": "other"}')
    said = refused(tmp_path / "other", handmade(tmp_path / "adapter", factors()))
    assert "the architecture is unknown" in said


def test_a_change_beyond_float32_stops_the_run(base: Path, tmp_path: Path) -> None:
    held = {name: one * 1e25 for name, one in factors().items()}
    adapter = handmade(tmp_path / "adapter", held)
    done = call("convert", base, tmp_path / "out", "--bf16", "--lora", adapter)
    assert done.returncode == 41 and f"{O_PROJ}.weight: a merged value is not finite" in done.stderr
    assert not (tmp_path / "out" / "dsctl.json").exists()
