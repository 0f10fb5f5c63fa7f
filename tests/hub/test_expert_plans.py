"""A plan of experts on a hub: rows of routers are fetched in any order, and other weights only if they are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub.conftest import REPOSITORY, Run
from tests.hub.server import Hub, one_in
from tests.support.command import dsctl
from tests.support.folders import contents
from tests.support.pruned import pruned, stored
from tests.support.unusual import unusual


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub holds."""
    return unusual(tmp_path_factory, "v4-flash-0731")


def test_a_prune_from_a_hub_gives_the_folder_s_bytes(hub: Hub, source: Path, command: Run, tmp_path: Path) -> None:
    hub.fault = one_in(9, "reset", "503", "cut")
    said = json.loads((source / "config.json").read_text())
    layers = [*map(str, range(said["num_hidden_layers"])), *(f"mtp.{stage}" for stage in range(3))]
    kept = [*range(said["n_routed_experts"])][1 + said["n_routed_experts"] // 8 :][::-1]
    (tmp_path / "plan.json").write_text(json.dumps({"layers": dict.fromkeys(layers, kept)}))
    options = ["--experts", tmp_path / "plan.json", "--workers", 1]
    done = command("slice", f"hf://{REPOSITORY}", tmp_path / "there", *options)
    assert done.returncode == 0, done.stderr
    dsctl("slice", source, tmp_path / "here", *options)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert stored(tmp_path / "there") == pruned(stored(source), dict.fromkeys(layers, kept))
