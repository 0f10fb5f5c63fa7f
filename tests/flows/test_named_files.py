"""Files that a person names: a device, a pipe or a huge file in their place is refused, and costs no memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkpoints import smaller
from tests.support.command import dsctl_fails, run

GIGABYTE = 1 << 30


def bounded() -> None:
    """No more address space than a run needs that reads no such file whole."""
    resource.setrlimit(resource.RLIMIT_AS, (4 * GIGABYTE, 4 * GIGABYTE))


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "huge"])
@pytest.mark.parametrize("verb", ["convert", "shard"])
def test_what_is_not_a_small_file_is_refused(
    verb: str, kind: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = Path("/dev/zero") if kind == "device" else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "huge":
        with open(place, "wb") as file:
            file.truncate(64 * GIGABYTE)
    words = {"convert": ["--recipe", place], "shard": ["--tp", 1, "--ep", 2, "--expert-map", place]}[verb]
    done = run(verb, smaller(tmp_path_factory, "v3"), tmp_path / "out", *words, "--dry-run", preexec_fn=bounded)
    assert done.returncode in (2, 10, 20), done.stderr
    assert done.stderr.startswith("error: ") and str(place) in done.stderr and "internal" not in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(("device", "code"), [("nonsense", 2), ("cuda:x", 2), ("cuda:99", 30)])
def test_a_dry_run_refuses_the_devices_that_a_run_refuses(
    device: str, code: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    line = ("convert", smaller(tmp_path_factory, "v3"), tmp_path / "out", "--bf16", "--device", device)
    assert dsctl_fails(*line, "--dry-run") == dsctl_fails(*line) == code
    assert not (tmp_path / "out").exists()


KILLED = """
import os, signal, sys, threading
from multiprocessing import forkserver
from dsctl.core.errors import WorkError
from dsctl.work.executors.processes import Processes, prepare
from dsctl.stores.local import LocalFolder
from dsctl.work.tasks import Context

prepare()
threading.Timer(0.1, os.kill, (forkserver._forkserver._forkserver_pid, signal.SIGKILL)).start()
try:
    Processes(Context(LocalFolder("."), "."), 2)
except WorkError as error:
    print(error.exit_code, error.message, error.hint)
"""


def test_the_process_that_starts_workers_may_be_killed() -> None:
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("41 ") and "same command resumes" in done.stdout, done
