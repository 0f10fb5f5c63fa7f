"""Disks that fail, fill up or are slow, files that shrink, workers that die: told in a line, and resumed.

Killed drivers are in test_resume.py, stalling networks in tests/cloud, dying nodes in tests/ray, many faults at random
in tests/soak.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.flows.test_resume import contents
from tests.support.checkpoints import smaller
from tests.support.command import Done, call, dsctl, run
from tests.support.faults import environment, fault, met

SECOND = "model-00002-of-000004.safetensors"
EIO, FULL = os.strerror(5), os.strerror(28)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smaller(tmp_path_factory, "v3.2")


@pytest.fixture(scope="module")
def whole(original: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an undisturbed run makes."""
    target = tmp_path_factory.mktemp("whole") / "out"
    dsctl("convert", original, target, "--bf16", "--workers", "1")
    return contents(target)


def convert(source: Path, target: Path) -> tuple[Any, ...]:
    return "convert", source, target, "--bf16", "--workers", "1"


def told(done: Any, code: int, *words: str) -> None:
    """It ended as an error that dsctl foresees, in one line with these words, and printed nothing else."""
    assert done.returncode == code, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr and not done.stdout


FAULTS = {
    "reading fails": (fault("EIO", "preadv", SECOND, after=3), 10, (SECOND, EIO)),
    "reading a header fails": (fault("EIO", "pread", SECOND), 10, (SECOND, EIO)),
    "reading a tokenizer fails": (fault("EIO", "pread", "tokenizer.json"), 10, ("tokenizer.json", EIO)),
    "writing fails": (fault("EIO", "pwrite", f"{SECOND}.part", after=5), 41, (SECOND, EIO)),
    "syncing fails": (fault("EIO", "fdatasync", f"{SECOND}.part", after=1), 41, (SECOND, EIO)),
    "the disk is full": (fault("ENOSPC", "pwrite", f"{SECOND}.part", after=5), 41, (SECOND, FULL, "free some space")),
    "it is full at a header": (fault("ENOSPC", "pwrite", f"{SECOND}.part"), 41, (SECOND, FULL, "free some space")),
    "it is full at the journal": (
        fault("ENOSPC", "fdatasync", "journal.jsonl", after=2),
        41,
        ("journal.jsonl", FULL, "free some"),
    ),
    "it is full at the config": (fault("ENOSPC", "fsync", "config.json.new"), 41, ("config.json", FULL, "free some")),
    "it is full at the audit": (fault("ENOSPC", "fsync", "dsctl.json.new"), 41, ("dsctl.json", FULL)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failing_disk_is_told_and_the_run_resumes(
    original: Path, whole: dict[str, str], tmp_path: Path, name: str
) -> None:
    one, code, words = FAULTS[name]
    target = tmp_path / "out"
    with met(dict(one)):
        done: Done = call(*convert(original, target))
    told(done, code, str(original if code == 10 else target), *words)
    assert not (target / "dsctl.json").exists()
    dsctl(*convert(original, target))
    assert contents(target) == whole


def test_any_sync_may_fail(original: Path, whole: dict[str, str], tmp_path: Path) -> None:
    target, failed = tmp_path / "out", 0
    for spared in range(0, 16, 2):
        with met(fault("EIO", "fsync", "out", after=spared), fault("EIO", "fdatasync", "out", after=spared)):
            done = call(*convert(original, target))
        if not done.returncode:
            break
        told(done, 41, EIO)
        failed += 1
    dsctl(*convert(original, target))
    assert failed > 3 and contents(target) == whole


def test_a_file_that_shrinks_while_it_is_read_is_told(whole: dict[str, str], original: Path, tmp_path: Path) -> None:
    source, target, kept = Path(shutil.copytree(original, tmp_path / "in")), tmp_path / "out", (original / SECOND)
    size = kept.stat().st_size // 2
    with met(fault("shrink", "preadv", SECOND, after=4, size=size)):
        told(call(*convert(source, target)), 10, SECOND, f"file ends at byte {size:,}")
    told(call(*convert(source, target)), 20, SECOND)
    shutil.copy2(kept, source / SECOND)
    dsctl(*convert(source, target))
    # The audit names another place and other times.
    assert {**contents(target), "dsctl.json": ""} == {**whole, "dsctl.json": ""}


def test_a_slow_disk_costs_time_only(original: Path, whole: dict[str, str], tmp_path: Path) -> None:
    slow = (fault("wait", "preadv", seconds=0.002), fault("wait", "pwrite", seconds=0.002))
    with met(*slow, fault("wait", "fdatasync", seconds=0.02)):
        dsctl(*convert(original, tmp_path / "out"))
    assert contents(tmp_path / "out") == whole


def test_a_worker_that_is_killed_is_told_by_the_driver(original: Path, whole: dict[str, str], tmp_path: Path) -> None:
    target, one = tmp_path / "out", fault("kill", "pwrite", "3-of-000004.safetensors.part", after=4)
    done = run("convert", original, target, "--bf16", "--workers", "2", env=environment(one))
    told(done, 41, "worker process", "SIGKILL")
    dsctl(*convert(original, target))
    assert contents(target) == whole
