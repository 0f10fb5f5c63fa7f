"""DeepSeek V4 on a hub: downloaded with its subfolders, looked at and converted from there, and sliced."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.hub.conftest import REPOSITORY, Run
from tests.hub.server import Hub, one_in
from tests.support.command import dsctl
from tests.support.folders import contents
from tests.support.unusual import same_files, unusual


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub holds."""
    return unusual(tmp_path_factory, "v4-flash-0731")


def test_a_download_is_the_repository_with_its_folders(hub: Hub, source: Path, command: Run, tmp_path: Path) -> None:
    hub.fault = one_in(6, "reset", "503", "cut")
    done = command("download", REPOSITORY, tmp_path / "copy", "--json")
    assert done.returncode == 0, done.stderr
    same_files(source, tmp_path / "copy")
    assert "inference/model.py" in json.loads(done.stdout)["verified"]


@pytest.mark.parametrize("way", ["--bf16", "--fp8"])
def test_a_conversion_from_a_hub_gives_the_folder_s_bytes(
    hub: Hub, source: Path, command: Run, way: str, tmp_path: Path
) -> None:
    done = command("convert", f"hf://{REPOSITORY}", tmp_path / "there", way, "--workers", 1)
    assert done.returncode == 0, done.stderr
    dsctl("convert", source, tmp_path / "here", way, "--workers", 1)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    stated = json.loads((tmp_path / "there" / "dsctl.json").read_text())["source"]["sha256"]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.glob("*.safetensors")}
    assert stated == digests


def test_what_looks_reads_no_weights(hub: Hub, command: Run) -> None:
    for verb in (("inspect",), ("verify",), ("diff", "v4-flash-0731"), ("plan", "--tp", 2)):
        done = command(verb[0], f"hf://{REPOSITORY}", *verb[1:])
        assert done.returncode in (0, 1), done.stderr
        assert not done.stderr.count("error: "), done.stderr
    assert hub.sent(".safetensors") < 4_000_000


def test_a_slice_is_fetched_without_the_rest(hub: Hub, source: Path, command: Run, tmp_path: Path) -> None:
    done = command("slice", f"hf://{REPOSITORY}", tmp_path / "slice", "--layers", "0-3,mtp", "--experts", 2)
    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "slice" / "config.json").read_text())
    assert (said["num_hidden_layers"], said["n_routed_experts"]) == (4, 2)
    assert "no problems found" in dsctl("verify", tmp_path / "slice")
    weights = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert hub.sent(".safetensors") < 0.9 * weights
