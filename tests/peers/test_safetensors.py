"""The safetensors library opens every file we write, and would have written the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import smaller
from tests.support.command import dsctl

COMMANDS = {
    "bf16": ["--bf16"],
    "f32": ["--to", "f32"],
    "fp8": ["--fp8", "--scale-fmt", "float32"],
    "grouped": ["--bf16", "--shard-size", "8MB"],
}


@pytest.fixture(scope="module", params=["tiny", *COMMANDS])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = smaller(tmp_path_factory, "v3.2")
    if request.param == "tiny":
        return source
    target = tmp_path_factory.mktemp("written") / request.param
    dsctl("convert", source, target, *COMMANDS[request.param])
    return target


def test_every_file_opens_and_every_indexed_tensor_is_there(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    found: dict[str, str] = {}
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118  it is no dict
                tensor = file.get_tensor(name)
                total += tensor.numel() * tensor.element_size()
                found[name] = path.name
    assert found == index["weight_map"] and total == index["metadata"]["total_size"]


def test_save_file_would_have_written_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("*.safetensors"):
        save_file(load_file(path), tmp_path / path.name, metadata={"format": "pt"})
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_file_of_kept_scales_opens_too(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = smaller(tmp_path_factory, "v3.2")
    dsctl("convert", source, tmp_path / "out", "--bf16")
    with safe_open(tmp_path / "out" / "original.dsctl", framework="pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for path in source.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            assert not name.endswith("_scale_inv") or torch.equal(kept[name], tensor), name
