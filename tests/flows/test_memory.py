"""Memory is bounded by the machine, not by the tensor, and the plan says how much."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dsctl.codecs import CODECS
from dsctl.core.header import TensorSpec, build
from dsctl.run.resources import WORKER_BYTES
from tests.support.command import dsctl, dsctl_fails


@pytest.fixture(scope="module")
def huge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A V3 whose embedding alone has 256 MB, in a file that takes no room on the disk."""
    folder = tmp_path_factory.mktemp("huge")
    dsctl("tiny", "v3", folder / "seed", "--layers", 2, "--experts", 2, "--shards", 1, "--bf16")
    config = json.loads((folder / "seed" / "config.json").read_text())
    config |= {"vocab_size": 1 << 19, "hidden_size": 256}
    spec = TensorSpec("BF16", (1 << 19, 256))
    header, _ = build({"model.embed_tokens.weight": spec})
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(config))
    with open(checkpoint / "model.safetensors", "wb") as file:
        file.write(header)
        file.truncate(len(header) + spec.nbytes)
    return checkpoint


# A child's account begins with the size of the process that started it, so a small one starts it.
STARTER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
"""


# Pages of libraries' files that a process with torch usually has mapped, and how many one has here.
MAPPED = 80 << 20
TORCH = """
import torch
print(next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("RssFile")))
"""


@cache
def beyond() -> int:
    """The bytes of libraries' files that are mapped here beyond what is usual.

    A kernel maps along what it holds of a file in one piece, which depends on how that was written, and takes it back
    when it wants the memory: no process needs it.
    """
    done = subprocess.run([sys.executable, "-c", TORCH], capture_output=True, text=True, check=True)
    return max(0, int(done.stdout) - MAPPED)


def peak(*arguments: object) -> int:
    """The resident bytes of a conversion at its largest, one worker in its own process."""
    command = [sys.executable, "-m", "dsctl", "convert", *map(str, arguments), "--workers", "1", "--quiet"]
    done = subprocess.run([sys.executable, "-c", STARTER, *command], capture_output=True, text=True, check=True)
    return int(done.stdout) - beyond()


def test_a_large_tensor_needs_no_more_than_planned(huge: Path, tmp_path: Path) -> None:
    arguments = (huge, tmp_path / "out", "--to", "f32", "--allow-missing")
    planned = json.loads(dsctl("convert", *arguments, "--workers", 1, "--dry-run", "--json"))["peak_bytes"]
    measured = peak(*arguments)
    # The tensor alone has 256 MB, what becomes of it 512 MB.
    assert measured < 512 << 20
    assert abs(measured - planned) / planned < 0.1, (measured, planned)


def test_a_budget_sets_workers_and_bands_and_too_little_is_refused(huge: Path, tmp_path: Path) -> None:
    arguments = (huge, tmp_path / "out", "--to", "f32", "--allow-missing")
    small = json.loads(dsctl("convert", *arguments, "--max-memory", "260MiB", "--dry-run", "--json"))
    assert small["workers"] == 1 and small["peak_bytes"] <= 260 << 20
    assert dsctl_fails("convert", *arguments, "--max-memory", "64MB") == 30
    assert dsctl_fails("convert", *arguments, "--max-memory", "lots") == 2
    measured = peak(*arguments, "--max-memory", "260MiB")
    assert measured < 1.1 * (260 << 20)


def rollups(pid: int) -> Iterator[dict[str, int]]:
    """What a process and all that it started have in memory, bytes by kind, one process after another."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return
    yield {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines}
    for child in children:
        yield from rollups(int(child))


def share(pid: int) -> int:
    """What a process and all that it started have in memory, bytes: pages that several of them share count once.

    Pages of libraries that other programs have mapped too count in part as PSS; those of one process count whole.
    """
    if not (held := [one for one in rollups(pid) if one]):
        return 0
    own = sum(one["Pss"] - one["Pss_File"] for one in held)
    return max(sum(one["Pss"] for one in held), own + max(one["Rss"] - one["Anonymous"] for one in held))


@pytest.mark.parametrize("words", [("--memory", "300MB"), ("--workers", "2")])
def test_all_processes_together_take_no_more_than_planned(huge: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    arguments = ("convert", str(huge), str(tmp_path / "out"), "--to", "f32", "--allow-missing", *words)
    planned = json.loads(dsctl(*arguments, "--dry-run", "--json"))["peak_bytes"]
    process = subprocess.Popen([sys.executable, "-m", "dsctl", *arguments, "--quiet"])
    most = 0
    while process.poll() is None:
        most = max(most, share(process.pid))
        time.sleep(0.02)
    assert process.returncode == 0
    assert planned * 0.7 < most - beyond() < planned * 1.1, (most, planned)


def growths(*shapes: str) -> list[dict[str, Any]]:
    """What every format takes for these shapes, and what was planned."""
    command = [sys.executable, "-m", "tests.flows.growth", *shapes]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def far(one: dict[str, Any]) -> bool:
    """Whether a worker takes a tenth more or less than planned."""
    planned = WORKER_BYTES + one["planned"]
    return abs(one["grown"] - one["planned"]) > planned / 10


def test_every_format_takes_what_is_planned_in_both_directions_whatever_the_shape() -> None:
    found = growths("512x7168", "128x18432", "1x1048576", "8192x256")
    assert {one["format"] for one in found} >= CODECS.keys() - {"bf16"}
    assert not [one for one in found if far(one)]
    assert not [one for one in found if WORKER_BYTES + one["planned"] > 300e6]
