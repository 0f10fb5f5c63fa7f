"""DeepSeek V4 in an object store: its subfolders and gathered scales go along, and a killed run loses neither."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.cloud.server import BUCKET, Objects
from tests.support.command import dsctl
from tests.support.folders import contents
from tests.support.forks import Launcher
from tests.support.unusual import same_files, unusual

# They name the source.
NAMED = ("dsctl.json", "dsctl.intoto.json")


@pytest.fixture(scope="module")
def flash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unusual(tmp_path_factory, "v4-flash")


@pytest.mark.parametrize("way", ["--bf16", "--fp8"])
def test_from_store_to_store_and_back(objects: Objects, flash: Path, way: str, tmp_path: Path) -> None:
    remote, made = objects.publish(flash, "flash"), f"s3://{BUCKET}/made{way}"
    assert "no problems found" in dsctl("verify", remote)
    dsctl("convert", remote, made, way, "--workers", 1)
    dsctl("convert", flash, tmp_path / "here", way, "--workers", 1)
    there = objects.contents(f"made{way}")
    assert {name: data for name, data in there.items() if name not in NAMED} == contents(tmp_path / "here")
    assert {"odd-scales.dsctl", "inference/model.py"} <= there.keys()
    dsctl("convert", made, tmp_path / "back", "--to", "published", "--workers", 1)
    same_files(flash, tmp_path / "back")


def test_a_killed_run_keeps_the_scales_that_it_had_gathered(
    objects: Objects, flash: Path, tmp_path: Path, launcher: Launcher, settings: dict[str, str]
) -> None:
    url = f"s3://{BUCKET}/killed-v4"

    def watch(method: str, path: str) -> None:
        if method == "PUT" and path.endswith("model-00002-of-000003.safetensors"):
            process.kill("driver")
            time.sleep(0.2)

    with objects.disturbed(watch):
        words = ("convert", flash, url, "--bf16", "--workers", "1")
        process = launcher.start(*words, environment=settings)
        assert process.wait(60).code == -signal.SIGKILL
    assert "dsctl.json" not in objects.contents("killed-v4")
    dsctl("convert", flash, url, "--bf16", "--workers", 1)
    dsctl("convert", flash, tmp_path / "here", "--bf16", "--workers", 1)
    there = objects.contents("killed-v4")
    assert there["dsctl.intoto.json"] == (tmp_path / "here" / "dsctl.intoto.json").read_bytes()
    assert {name: data for name, data in there.items() if name not in NAMED} == contents(tmp_path / "here")
