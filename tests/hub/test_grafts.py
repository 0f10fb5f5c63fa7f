"""`graft` and `convert --lora` with a repository as base and as source, over a hub that fails now and then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.hub.conftest import REPOSITORY, Run
from tests.hub.server import Hub, one_in
from tests.support.command import dsctl
from tests.support.folders import contents, tensors

BASE = "acme/trained"


@pytest.fixture
def lost(hub: Hub, source: Path, tmp_path: Path) -> Path:
    """The small checkpoint without its MTP layer, also on the hub."""
    dsctl("convert", source, tmp_path / "lost", "--layout", "published", "--mtp", "drop", "-q")
    hub.publish(BASE, tmp_path / "lost")
    return tmp_path / "lost"


@pytest.mark.parametrize("remote", ["source", "base", "both"])
def test_a_lost_mtp_layer_comes_from_a_repository(
    hub: Hub, source: Path, lost: Path, command: Run, tmp_path: Path, remote: str
) -> None:
    hub.fault = one_in(11, "503", "cut", "reset")
    base = f"hf://{BASE}" if remote in ("base", "both") else str(lost)
    other = f"hf://{REPOSITORY}" if remote in ("source", "both") else str(source)
    done = command("graft", base, tmp_path / "made", "--from", other, "mtp")
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "made") == contents(source)
    (graft,) = json.loads((tmp_path / "made" / "dsctl.json").read_text())["grafts"]
    assert graft["revision"] == (hub.branches[REPOSITORY, "main"] if remote != "base" else "")
    read = sum(
        request.sent for request in hub.log if request.path.endswith(".safetensors") and REPOSITORY in request.path
    )
    assert read < sum(path.stat().st_size for path in source.glob("*.safetensors")) / 1.5


def test_an_adapter_is_merged_into_a_repository(hub: Hub, source: Path, command: Run, tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.o_proj"
    shape, chance = tensors(source)[f"{name}.weight"].shape, torch.Generator().manual_seed(1)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    factors = {
        "lora_A": torch.randn(4, shape[1], generator=chance),
        "lora_B": torch.randn(shape[0], 4, generator=chance),
    }
    save_file(
        {f"base_model.model.{name}.{one}.weight": value for one, value in factors.items()},
        adapter / "adapter_model.safetensors",
    )
    said = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["o_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(said))
    hub.fault = one_in(11, "503", "cut", "reset")
    done = command("convert", f"hf://{REPOSITORY}", tmp_path / "far", "--bf16", "--lora", adapter)
    assert done.returncode == 0, done.stderr
    dsctl("convert", source, tmp_path / "near", "--bf16", "--lora", adapter, "-q")
    assert contents(tmp_path / "far") == contents(tmp_path / "near")
