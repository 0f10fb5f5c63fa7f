"""Kill the real process at random moments: the same command ends with the same bytes."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deltas.conftest import States
from tests.support import changed
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.forks import Launcher
from tests.support.raw_tensors import bytes_of

KILLS = 5
NAMES = ("make", "apply", "in place", "fold")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> States:
    """Larger ones, so that a run takes some time."""
    folder = tmp_path_factory.mktemp("large")
    first = Path(shutil.copytree(tiny(tmp_path_factory), folder / "first"))
    second = changed.side_files(changed.make(first, folder / "second", changed.last_bits(0.02)))
    third = changed.make(second, folder / "third", changed.last_bits(0.03), seed=1)
    return States(first, second, third, ())


def line_of(name: str, large: States, folder: Path, target: Path) -> list[object]:
    if name == "make":
        return ["delta", "make", large.first, large.second, target]
    if name == "apply":
        return ["delta", "apply", large.first, folder / "d1", target]
    if name == "in place":
        return ["delta", "apply", target, folder / "d1", "--in-place"]
    return ["delta", "fold", folder / "d1", folder / "d2", target]


def without_times(found: dict[str, bytes]) -> dict[str, bytes]:
    """What does not name the folder."""
    return {name: data for name, data in found.items() if name != "dsctl.json"}


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    large: States, tmp_path: Path, name: str, launcher: Launcher
) -> None:
    dsctl("delta", "make", large.first, large.second, tmp_path / "d1", "-q")
    dsctl("delta", "make", large.second, large.third, tmp_path / "d2", "--version", "2", "-q")
    whole, target = tmp_path / "whole", tmp_path / "target"
    for place in (whole, target) if name == "in place" else ():
        shutil.copytree(large.first, place)
    seconds = launcher.good(*line_of(name, large, tmp_path, whole)).seconds
    chance = random.Random(name)
    for _ in range(int(os.environ.get("DSCTL_TEST_KILLS", KILLS))):
        running = launcher.start(*line_of(name, large, tmp_path, target))
        time.sleep(chance.uniform(0.05, 1.0) * seconds)
        running.kill("driver")
        running.wait()
        if name == "in place":
            old, new, now = (bytes_of_files(one) for one in (large.first, large.second, target))
            assert all(now[file] in (old[file], new[file]) for file in old)
            assert (target / "config.json").exists() == (not (target / ".dsctl" / "delta.json").exists()) or new == now
    dsctl(*line_of(name, large, tmp_path, target))
    assert without_times(contents(target)) == without_times(contents(whole))
    assert not (target / ".dsctl").exists()


def bytes_of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_a_delta_half_applied_in_place_is_no_checkpoint(
    large: States, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsctl("delta", "make", large.first, large.second, tmp_path / "d1", "-q")
    dsctl("delta", "make", large.first, large.third, tmp_path / "other", "-q")
    place = Path(shutil.copytree(large.first, tmp_path / "place"))
    stop_after(monkeypatch, 2)
    assert call("delta", "apply", place, tmp_path / "d1", "--in-place").returncode == 41
    monkeypatch.undo()
    assert not (place / "config.json").exists() and not (place / "dsctl.json").exists()
    now, old, new = (bytes_of_files(one) for one in (place, large.first, large.second))
    assert 0 < sum(now[name] == new[name] != old[name] for name in now) < len(now)
    refused = call("verify", place)
    assert refused.returncode == 50 and "unfinished" in refused.stdout
    for line in (("apply", place, tmp_path / "d1", tmp_path / "out"), ("make", place, large.second, tmp_path / "out")):
        done = call("delta", *line)
        assert done.returncode == 20 and "a delta is being applied here in place" in done.stderr, done.stderr
    done = call("delta", "apply", place, tmp_path / "other", "--in-place")
    assert done.returncode == 40 and "another delta is applied here" in done.stderr
    dsctl("delta", "apply", place, tmp_path / "d1", "--in-place")
    assert bytes_of(place) == bytes_of(large.second) and (place / "config.json").exists()


def stop_after(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the renames of weight files fail after some of them."""
    rename: Callable[..., None] = os.replace
    left = [number]

    def replace(source: str | Path, target: str | Path, **more: int) -> None:
        if str(target).endswith(".safetensors"):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(5, "Input/output error")
        rename(source, target, **more)

    monkeypatch.setattr(os, "replace", replace)


def test_a_full_disk_ends_in_one_line_and_the_same_command_goes_on(
    large: States, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(monkeypatch, 1)
    done = call("delta", "make", large.first, large.second, tmp_path / "delta")
    assert done.returncode == 41 and "Input/output error" in done.stderr, done.stderr
    monkeypatch.undo()
    dsctl("delta", "make", large.first, large.second, tmp_path / "delta")
    dsctl("delta", "make", large.first, large.second, tmp_path / "again")
    assert without_times(contents(tmp_path / "delta")) == without_times(contents(tmp_path / "again"))
