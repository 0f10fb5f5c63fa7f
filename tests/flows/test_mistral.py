"""Mistral Large 3: folders with `params.json` are read, and those with its fields in `config.json` are written too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.folders import contents, tensors

SMALL: dict[str, Any] = {"layers": 3, "experts": 4, "hidden": 256, "heads": 4, "vocab": 256, "moe_intermediate": 256}
INDEX = "model.safetensors.index.json"


def made(factory: pytest.TempPathFactory) -> Path:
    return tiny(factory, "mistral-large-3", **SMALL)


def config(folder: Path, name: str = "config.json") -> Any:
    return json.loads((folder / name).read_text())


@pytest.fixture
def native(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint with the names of files that the release has."""
    folder = Path(shutil.copytree(made(tmp_path_factory), tmp_path / "native"))
    for file in folder.glob("model-*.safetensors"):
        file.rename(folder / file.name.replace("model-", "consolidated-"))
    index = (folder / INDEX).read_text().replace("model-", "consolidated-")
    (folder / "consolidated.safetensors.index.json").write_text(index)
    (folder / INDEX).unlink()
    (folder / "config.json").rename(folder / "params.json")
    return folder


def test_a_small_one_is_stored_as_the_release(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = made(tmp_path_factory)
    assert call("verify", folder, "--deep").returncode == 0
    stored, at = tensors(folder), "layers.1.attention."
    assert stored[f"{at}wq_b.weight"].dtype == torch.float8_e4m3fn and f"{at}wq_b.weight_scale" in stored
    assert stored[f"{at}wq_a.weight"].dtype == torch.bfloat16 and f"{at}wq_a.weight_scale" not in stored
    assert not any("e_score" in name for name in stored)


def test_decoded_weights_are_codes_times_the_scales_of_their_blocks(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = made(tmp_path_factory)
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--workers", 1)
    before, after = tensors(source), tensors(tmp_path / "bf16")
    scaled = [name for name in before if f"{name}_scale" in before]
    assert len(scaled) == 3 * 3 + 3 + 2 * 3 + 2 * 4 * 3
    for name in scaled:
        codes = before.pop(name).float()
        scales = before.pop(f"{name}_scale").float()
        wide = scales.repeat_interleave(128, 0)[: len(codes)].repeat_interleave(128, 1)[:, : codes.shape[1]]
        assert torch.equal(after.pop(name), (codes * wide).bfloat16()), name
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    said = config(source)
    del said["quantization_config"]
    assert config(tmp_path / "bf16") == said


def test_the_way_back_has_the_released_form(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = made(tmp_path_factory)
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--workers", 1)
    dsctl("convert", tmp_path / "bf16", tmp_path / "back", "--to", "published", "--workers", 1)
    assert config(tmp_path / "back") == config(source)
    assert tensors(tmp_path / "back").keys() == tensors(source).keys()
    assert call("verify", tmp_path / "back").returncode == 0


def test_ranks_and_back(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = made(tmp_path_factory)
    dsctl("shard", source, tmp_path / "ranks", "--tp", 2, "--workers", 1)
    assert call("verify", tmp_path / "ranks").returncode == 0
    dsctl("merge", tmp_path / "ranks", tmp_path / "whole", "--workers", 1)
    assert contents(tmp_path / "whole") == contents(source)


def test_a_slice_keeps_exceptions_in_a_loader_s_names(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = made(tmp_path_factory)
    dsctl("slice", source, tmp_path / "small", "--layers", "0,2", "--experts", "1,3", "--workers", 1)
    ignored = config(tmp_path / "small")["quantization_config"]["ignore"]
    assert {"re:.*q_a_proj$", "re:.*kv_a_proj_with_mqa$", "lm_head"} <= set(ignored)
    assert call("verify", tmp_path / "small", "--deep").returncode == 0


@pytest.mark.parametrize("layout", ["vllm", "deepseek", "fused", "stacked"])
def test_layouts_without_names_for_it_refuse_it(
    layout: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    said = call("shard", made(tmp_path_factory), tmp_path / "ranks", "--tp", 2, "--layout", layout)
    assert said.returncode == 30 and f"layout {layout}:" in said.stderr


def test_a_folder_with_params_json_is_read(native: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert call("verify", native, "--deep").returncode == 0
    facts = json.loads(dsctl("inspect", native, "--json"))
    assert (facts["architecture"], facts["parameters"]) == ("mistral_large_3", 89)
    assert "No difference" in dsctl("diff", made(tmp_path_factory), native)
    assert "all identical" in dsctl("compare", made(tmp_path_factory), native)


def test_a_folder_with_params_json_is_not_written(native: Path, tmp_path: Path) -> None:
    said = call("convert", native, tmp_path / "bf16", "--bf16")
    assert said.returncode == 30 and "dsctl reads such a folder, but does not write one" in said.stderr
    shutil.copy(native / "params.json", native / "config.json")
    shutil.copy(native / "consolidated.safetensors.index.json", native / INDEX)
    dsctl("convert", native, tmp_path / "bf16", "--bf16", "--workers", 1)
    assert (tmp_path / "bf16" / "consolidated-00001-of-000004.safetensors").exists()
    assert call("verify", tmp_path / "bf16").returncode == 0


def test_config_json_counts_if_both_are_there(native: Path) -> None:
    (native / "config.json").write_text(json.dumps({"model_type": "another"}))
    assert "unknown architecture" in call("verify", native).stdout + call("verify", native).stderr
