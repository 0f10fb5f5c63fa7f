"""Parts of DeepSeek V4.1 from a hub: only the bytes of the tensors that are named, and of what a slice keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub.conftest import REPOSITORY, Run
from tests.hub.server import Hub
from tests.support.command import dsctl
from tests.support.folders import tensors
from tests.support.unusual import unusual

TABLE = "layers.1.engram.embed"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub holds."""
    return unusual(tmp_path_factory, "v4.1-flash")


def test_a_table_is_downloaded_by_range(hub: Hub, source: Path, command: Run, tmp_path: Path) -> None:
    done = command("download", REPOSITORY, tmp_path / "part", "--only", f"{TABLE}.*")
    assert done.returncode == 0, done.stderr
    found, whole = tensors(tmp_path / "part"), tensors(source)
    assert found.keys() == {f"{TABLE}.weight", f"{TABLE}.scale"}
    for name, tensor in found.items():
        assert tensor.dtype == whole[name].dtype
        assert bytes(tensor.view(-1).untyped_storage()) == bytes(whole[name].contiguous().view(-1).untyped_storage())
    size = sum(tensor.numel() for tensor in found.values())
    headers = sum(int.from_bytes(path.read_bytes()[:8], "little") for path in source.glob("*.safetensors"))
    # Headers are read ahead in pieces of a megabyte.
    assert hub.sent(".safetensors") < size + headers + 6_000_000


def test_a_slice_has_only_its_layers_and_their_tables(hub: Hub, command: Run, tmp_path: Path) -> None:
    done = command("slice", f"hf://{REPOSITORY}", tmp_path / "slice", "--layers", "0,1", "--experts", 2)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "slice" / "config.json").read_text())["text_config"]
    assert (said["num_hidden_layers"], said["engram_layer_ids"], said["kv_source_layer_ids"]) == (2, [1], [])
    assert "no problems found" in dsctl("verify", tmp_path / "slice")
