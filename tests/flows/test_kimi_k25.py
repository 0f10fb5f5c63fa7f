"""Kimi K2.5 to K2.7-Code: INT4 experts decoded as their format says, and everything else moved as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.folders import contents, tensors

SMALL: dict[str, Any] = {"layers": 3, "experts": 4, "hidden": 256, "heads": 4, "vocab": 256, "moe_intermediate": 128}
EXPERT = "language_model.model.layers.1.mlp.experts."


def made(factory: pytest.TempPathFactory, release: str = "kimi-k2.5") -> Path:
    return tiny(factory, release, **SMALL)


def config(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


def decoded(packed: torch.Tensor, scale: torch.Tensor, shape: torch.Tensor) -> np.ndarray:
    """The values of a packed matrix as float32, before they are rounded to BF16."""
    words = packed.numpy().view(np.uint32)
    rows, columns = shape.tolist()
    codes = (words[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15
    values = codes.reshape(rows, columns).astype(np.float32) - 8
    factors: np.ndarray = scale.float().numpy()
    return (values.reshape(rows, columns // 32, 32) * factors[:, :, None]).reshape(rows, columns)


@pytest.mark.parametrize("release", ["kimi-k2.5", "kimi-k2.6", "kimi-k2.7-code"])
def test_a_small_one_is_as_untidy_as_the_release(release: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = made(tmp_path_factory, release)
    stored = tensors(folder)
    assert call("verify", folder, "--deep").returncode == 0
    assert stored[f"{EXPERT}0.up_proj.weight_shape"].dtype == torch.int32
    assert stored[f"{EXPERT}0.up_proj.weight_shape"].tolist() == [128, 256]
    assert stored[f"{EXPERT}0.up_proj.weight_packed"].shape == (128, 32)
    assert {stored[name].dtype for name in stored if "experts" not in name} == {torch.bfloat16, torch.float32}
    said = config(folder)
    assert "quantization_config" not in said and said["text_config"]["quantization_config"]["ignore"]
    assert stored["vision_tower.patch_embed.proj.weight"].shape == (64, 3, 14, 14)
    assert not any("inv_freq" in name for name in stored)


def test_decoded_experts_are_what_the_format_says(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = made(tmp_path_factory)
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--workers", 1)
    before, after = tensors(source), tensors(tmp_path / "bf16")
    experts = [name.removesuffix("_packed") for name in before if name.endswith("_packed")]
    assert len(experts) == 2 * 4 * 3
    for name in experts:
        values = decoded(*(before.pop(f"{name}_{part}") for part in ("packed", "scale", "shape")))
        assert torch.equal(after.pop(name), torch.from_numpy(values).bfloat16()), name
    assert before.keys() == after.keys()
    assert all(
        torch.equal(after[name], tensor) and after[name].dtype == tensor.dtype for name, tensor in before.items()
    )


def test_the_config_says_what_is_stored(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = made(tmp_path_factory)
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--workers", 1)
    before, after = config(source), config(tmp_path / "bf16")
    del before["text_config"]["quantization_config"]
    assert after == before
    assert call("verify", tmp_path / "bf16", "--deep").returncode == 0


def test_the_way_back_gives_the_same_files(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = made(tmp_path_factory)
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--workers", 1)
    said = call("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published", "--workers", 1)
    assert "int4-group-32: original scales are reused if they still fit" in said.stdout
    assert "groups with their kept scale" in said.stdout and "follows from" not in said.stdout
    assert contents(tmp_path / "back") == contents(source)
    assert call("verify", tmp_path / "back").returncode == 0
    assert "100.00%" in dsctl("compare", source, tmp_path / "bf16")


def test_without_kept_scales_groups_get_new_ones(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A side file that an earlier version wrote has headers and texts alone."""
    source = made(tmp_path_factory)
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--workers", 1)
    side = tmp_path / "bf16" / "original.dsctl"
    texts = {name: tensor for name, tensor in load_file(side).items() if not name.endswith("_scale")}
    save_file(texts, side)
    said = call("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published", "--workers", 1)
    assert "the released codes do not come back exactly" in said.stdout
    before, after = tensors(source), tensors(tmp_path / "back")
    assert {name: (one.shape, one.dtype) for name, one in before.items()} == {
        name: (one.shape, one.dtype) for name, one in after.items()
    }
    assert contents(tmp_path / "back")["config.json"] == contents(source)["config.json"]
    moved = [name for name in before if not name.endswith(("_packed", "_scale"))]
    assert all(torch.equal(before[name], after[name]) for name in moved)
    dsctl("convert", tmp_path / "bf16", tmp_path / "full", "--to", "published", "--original", source, "--workers", 1)
    assert contents(tmp_path / "full") == contents(source)


@pytest.mark.parametrize("ranks", ["--tp 2", "--tp 4 --ep 4", "--tp 2 --ep 2 --pp 3"])
def test_ranks_and_back(ranks: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = made(tmp_path_factory)
    dsctl("shard", source, tmp_path / "ranks", *ranks.split(), "--workers", 1)
    assert call("verify", tmp_path / "ranks").returncode == 0
    dsctl("merge", tmp_path / "ranks", tmp_path / "whole", "--workers", 1)
    assert contents(tmp_path / "whole") == contents(source)


def test_every_rank_has_all_parts_that_read_images(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = made(tmp_path_factory)
    dsctl("shard", source, tmp_path / "ranks", "--tp", 4, "--workers", 1)
    whole = {name: tensor for name, tensor in tensors(source).items() if not name.startswith("language_model.")}
    for rank in sorted((tmp_path / "ranks").glob("*/config.json")):
        held = tensors(rank.parent)
        assert all(torch.equal(held[name], tensor) for name, tensor in whole.items())


def test_a_slice_keeps_the_nesting(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = made(tmp_path_factory)
    dsctl("slice", source, tmp_path / "small", "--layers", "0,2", "--experts", "1,3", "--workers", 1)
    said = config(tmp_path / "small")
    assert said["text_config"]["num_hidden_layers"] == said["text_config"]["n_routed_experts"] == 2
    assert "quantization_config" in said["text_config"] and "quantization_config" not in said
    assert call("verify", tmp_path / "small", "--deep").returncode == 0
    before, after = tensors(source), tensors(tmp_path / "small")
    kept = "gate_proj.weight_packed"
    assert torch.equal(after[f"{EXPERT}1.{kept}"], before[f"language_model.model.layers.2.mlp.experts.3.{kept}"])


@pytest.mark.parametrize(
    ("layout", "what"),
    [("vllm", "names for the parts that read images"), ("deepseek", "reference model has no language_model.")],
)
def test_layouts_without_names_for_it_say_so(
    layout: str, what: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    said = call("shard", made(tmp_path_factory), tmp_path / "ranks", "--tp", 2, "--layout", layout)
    assert said.returncode == 30 and what in said.stderr


def test_a_difference_pairs_names_without_the_prefix() -> None:
    facts = json.loads(dsctl("diff", "kimi-k2-thinking", "kimi-k2.5", "--json"))
    added, removed = facts["templates"]["added"], facts["templates"]["removed"]
    assert {one["role"] for one in added} == {"vision"}
    assert [one["template"] for one in removed] == ["model.layers.{layer}.self_attn.rotary_emb.inv_freq"]
    said = " ".join(dsctl("diff", "kimi-k2.5", "kimi-k2-thinking").split())
    assert "no longer begin with language_model." in said and "second bias" not in said
