"""Kimi K3: MXFP4 experts decoded as their format says, and what dsctl does not know about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.folders import contents, tensors

SMALL: dict[str, Any] = {"layers": 5, "experts": 4, "hidden": 256, "heads": 4, "vocab": 256, "moe_intermediate": 128}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def made(factory: pytest.TempPathFactory) -> Path:
    return tiny(factory, "kimi-k3", **SMALL)


def config(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


def decoded(packed: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
    """The values of a packed matrix: the low half of a byte is the even column."""
    codes = np.stack([packed.numpy() & 15, packed.numpy() >> 4], axis=2).reshape(packed.shape[0], -1)
    values = E2M1[codes & 7] * np.where(codes & 8, np.float32(-1), np.float32(1))
    powers = np.exp2(scale.numpy().astype(np.float32) - 127)
    return (values.reshape(*scale.shape, 32) * powers[:, :, None]).reshape(values.shape)


def test_a_small_one_has_all_kinds_of_layers(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = made(tmp_path_factory)
    assert call("verify", folder, "--deep").returncode == 0
    at, stored = "language_model.model.layers.", tensors(folder)
    assert f"{at}0.mlp.up_proj.weight" in stored and f"{at}0.self_attn.A_log" in stored
    assert f"{at}3.self_attn.kv_b_proj.weight" in stored and f"{at}3.self_attn.A_log" not in stored
    assert stored[f"{at}1.block_sparse_moe.experts.0.w1.weight_packed"].dtype == torch.uint8
    assert stored[f"{at}1.block_sparse_moe.experts.0.w1.weight_scale"].shape == (128, 4)
    assert stored[f"{at}1.self_attn.q_conv1d.weight"].shape == (512, 1, 4)


def test_decoded_experts_are_what_the_format_says(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = made(tmp_path_factory)
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--workers", 1)
    before, after = tensors(source), tensors(tmp_path / "bf16")
    experts = [name.removesuffix("_packed") for name in before if name.endswith("_packed")]
    assert len(experts) == 4 * 4 * 3
    for name in experts:
        values = decoded(before.pop(f"{name}_packed"), before.pop(f"{name}_scale"))
        assert np.array_equal(after.pop(name).float().numpy(), values), name
    assert before.keys() == after.keys()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )
    said = config(source)
    del said["text_config"]["quantization_config"]
    assert config(tmp_path / "bf16") == said


def test_the_way_back_gives_the_same_files(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = made(tmp_path_factory)
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--workers", 1)
    said = dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published", "--workers", 1)
    assert "mxfp4: original scales are reused if they still fit" in said
    assert contents(tmp_path / "back") == contents(source)
    assert call("verify", tmp_path / "back", "--deep").returncode == 0


@pytest.mark.parametrize("ranks", ["--tp 4", "--tp 2 --ep 2 --pp 5"])
def test_ranks_and_back(ranks: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = made(tmp_path_factory)
    dsctl("shard", source, tmp_path / "ranks", *ranks.split(), "--workers", 1)
    assert call("verify", tmp_path / "ranks").returncode == 0
    dsctl("merge", tmp_path / "ranks", tmp_path / "whole", "--workers", 1)
    assert contents(tmp_path / "whole") == contents(source)


def test_ranks_have_their_heads_and_all_of_a_log(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = made(tmp_path_factory)
    dsctl("shard", source, tmp_path / "ranks", "--tp", 2, "--workers", 1)
    at, whole = "language_model.model.layers.0.self_attn.", tensors(source)
    for rank, place in enumerate(sorted((tmp_path / "ranks").glob("*/config.json"))):
        held = tensors(place.parent)
        assert torch.equal(held[f"{at}A_log"], whole[f"{at}A_log"])
        for name in ("q_proj.weight", "b_proj.weight", "dt_bias", "v_conv1d.weight", "g_proj.weight"):
            assert torch.equal(held[at + name], whole[at + name].chunk(2)[rank])
        assert torch.equal(held[f"{at}o_proj.weight"], whole[f"{at}o_proj.weight"].chunk(2, 1)[rank])


def test_a_slice_is_a_smaller_model(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = made(tmp_path_factory)
    dsctl("slice", source, tmp_path / "small", "--layers", "0,3,4", "--experts", "1,3", "--workers", 1)
    said = config(tmp_path / "small")["text_config"]
    assert said["linear_attn_config"]["full_attn_layers"] == [2, 3] and said["num_experts"] == 2
    assert call("verify", tmp_path / "small", "--deep").returncode == 0


@pytest.mark.parametrize(
    ("layout", "what"),
    [
        ("vllm", "names for the parts that read images"),
        ("deepseek", "reference model has no language_model."),
        ("fused", "no loader reads joined tensors under this model's own names"),
        ("stacked", "no loader reads joined tensors under this model's own names"),
        ("transformers", "no loader reads joined tensors under this model's own names"),
    ],
)
def test_layouts_without_names_for_it_say_so(
    layout: str, what: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    verb = ("convert", "--bf16") if layout == "transformers" else ("shard", "--tp", 2)
    said = call(verb[0], made(tmp_path_factory), tmp_path / "out", *verb[1:], "--layout", layout)
    assert said.returncode == 30 and what in said.stderr


def test_what_caches_cost_is_not_known() -> None:
    said = dsctl("plan", "kimi-k3", "--tp", 16)
    assert "weights and no cache" in said and "tokens" not in said
    assert "Cache   dsctl does not know the cache costs of this architecture: no figure includes them" in said
    assert json.loads(dsctl("plan", "kimi-k3", "--json"))["cache"] is None


def test_differences_to_a_model_with_caches() -> None:
    said = dsctl("diff", "kimi-k2.7-code", "kimi-k3")
    assert "69 of 93 layers keep a state per sequence" in " ".join(said.split())
    assert "Routed experts per layer: 384 → 896; active per token: 8 → 16." in " ".join(said.split())
    assert "Attention heads" not in said
