"""`dsctl doctor`: what it measures is measured, what it tells follows from that, and nothing is left behind."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from dsctl.core import extras
from dsctl.run.doctor import Disk, Machine, Processor
from tests.support.command import dsctl, dsctl_fails
from tests.support.schemas import faults


def machine(disk: tuple[float, float], processor: tuple[float, float, float], cores: int) -> Machine:
    return Machine("3", "any", {}, cores, 1, (), Processor(*processor, 1.0), Disk("x", 1, *disk), None)


def test_it_tells_what_is_here(tmp_path: Path) -> None:
    found = json.loads(dsctl("doctor", tmp_path, "--no-hub", "--json"))
    assert found["packages"]["torch"] == version("torch")
    assert found["hub"] is None and found["cores"] >= 1 and found["devices"] == []
    speeds = [*found["core_bytes_per_second"].values(), found["disk"]["write_bytes_per_second"]]
    assert all(1e6 < speed < 1e12 for speed in speeds)
    assert list(tmp_path.iterdir()) == []
    said = dsctl("doctor", tmp_path, "--no-hub")
    assert "FP8 to BF16" in said and "for DeepSeek-V3.2" in said and "hub" not in said.split()


def test_what_an_hour_converts_is_what_the_slower_of_disk_and_processor_does() -> None:
    slow_disk = machine((100.0, 100.0), (1e9, 1e9, 1e9), 4)
    # A byte of FP8 is read once and written twice; a byte of BF16 is read once and half of one written.
    assert slow_disk.per_hour(True) == (pytest.approx(3600 * 100 / 3), "disk")
    assert slow_disk.per_hour(False) == (pytest.approx(3600 * 100 / 1.5), "disk")
    slow_core = machine((1e12, 1e12), (100.0, 50.0, 100.0), 4)
    assert slow_core.per_hour(True) == (pytest.approx(4 * 3600 / (1 / 100 + 2 / 100)), "processor")
    assert slow_core.per_hour(False) == (pytest.approx(4 * 3600 / (1 / 50 + 0.5 / 100)), "processor")


def test_without_torch_the_codecs_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    found = json.loads(dsctl("doctor", tmp_path, "--no-hub", "--json"))
    assert not faults("doctor", found)
    assert found["core_bytes_per_second"].keys() == {"decode", "encode", "blake3", "sha256"}
    assert found["core_bytes_per_second"]["decode"] is None and found["core_bytes_per_second"]["sha256"] > 1e6
    assert set(found["source_bytes_per_hour"].values()) == set(found["held_by"].values()) == {None}
    said = dsctl("doctor", tmp_path, "--no-hub")
    assert "pip install 'dsctl[torch]'" in " ".join(said.split()) and "FP8" not in said and "CUDA" not in said


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    assert dsctl_fails("doctor", tmp_path / "nowhere") == 10
