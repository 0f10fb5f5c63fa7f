"""The processes and threads that make a small checkpoint: the same bytes, progress, refusals and interrupts."""

from __future__ import annotations

import hashlib
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dsctl.core.errors import WorkError
from dsctl.tiny import make, workers
from dsctl.tiny.blueprint import TinyRecipe, blueprint
from tests.support.command import run
from tests.support.forks import children, cmdline

SMALL = {"layers": 2, "experts": 2, "hidden": 256, "vocab": 512, "intermediate": 384, "moe_intermediate": 128}
ODD = {"hidden": 301, "vocab": 3701, "intermediate": 333, "moe_intermediate": 77}
# Digests of the weight files that dsctl wrote when it drew each value by numpy's `Generator.integers`.
WRITTEN: list[tuple[str, dict[str, Any], str]] = [
    ("v2-lite", {}, "663d652cb31a2329"),
    ("v3", {}, "b3b3c64184c4e00a"),
    ("v3", ODD, "297750f5b7280288"),
    ("v3", {"hidden": 130, "vocab": 64, "intermediate": 9000, "heads": 1}, "78af0ab5e6ac1b06"),
    ("v3.1", {}, "628ea9bccffc4777"),
    ("v3.2", {**ODD, "bf16": True, "seed": 9}, "2113970e2b029751"),
    ("v3.2", {"hidden": 1152, "vocab": 2048, "seed": 4}, "db9bbb5a97385f06"),
    ("kimi-k2", {}, "a7ab068f907097c1"),
    ("v4-flash", {}, "f8fc1d78d52d39e8"),
    ("v4-flash", {"bf16": True}, "f4f0b3ffbe01a020"),
    ("v4-flash", {"hidden": 1024, "vocab": 1500, "moe_intermediate": 768, "seed": 5}, "e8b349eca7c2a234"),
]
# More than one process finishes before others have started.
LARGE = ("--size", "400MB")


def command(*words: Any) -> list[str]:
    return [sys.executable, "-m", "dsctl", *map(str, words)]


def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes make small checkpoints too."""
    monkeypatch.setattr(workers, "SMALL_BYTES", 0)
    monkeypatch.setattr("dsctl.tiny.draws.TASK_VALUES", 1 << 16)


def digest(folder: Path) -> str:
    weights = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        weights.update(path.read_bytes())
    return weights.hexdigest()[:16]


@pytest.mark.parametrize(("alias", "sizes", "expected"), WRITTEN)
def test_bytes_stay_those_of_earlier_versions(alias: str, sizes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    advanced: list[int] = []
    made = make(alias, tmp_path / "out", TinyRecipe(**SMALL | sizes), advanced.append)
    assert digest(tmp_path / "out") == expected
    assert sum(advanced) == made.nbytes


@pytest.mark.parametrize(("alias", "sizes", "expected"), [WRITTEN[1], WRITTEN[5], WRITTEN[8]])
def test_processes_write_what_threads_write(
    alias: str, sizes: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    always(monkeypatch)
    advanced: list[int] = []
    made = make(alias, tmp_path / "out", TinyRecipe(**SMALL | sizes), advanced.append, workers=3)
    assert digest(tmp_path / "out") == expected
    assert sum(advanced) == made.nbytes and len(advanced) > 3
    again: list[int] = []
    assert make(alias, tmp_path / "out", TinyRecipe(**SMALL | sizes), again.append, workers=3).present
    assert sum(again) == made.nbytes


def test_the_end_of_a_process_is_an_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always(monkeypatch)
    server = workers.prepare()

    def ending(**options: Any) -> Any:
        return server.Process(target=os._exit, args=(1,), daemon=True)

    monkeypatch.setattr(workers, "prepare", lambda: SimpleNamespace(Pipe=server.Pipe, Process=ending))
    with pytest.raises(WorkError, match="a process that makes values has ended"):
        make("v3", tmp_path / "out", TinyRecipe(**SMALL), workers=2)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_under_processes_leaves_nothing(tmp_path: Path) -> None:
    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 20, 16 << 20))

    done = run("tiny", "v3", tmp_path / "out", *LARGE, preexec_fn=no_large_files)
    assert done.returncode == 41 and done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_an_interrupt_of_the_terminal_ends_all_processes_and_leaves_nothing(tmp_path: Path) -> None:
    parts = tmp_path / "out" / ".unfinished"
    running = subprocess.Popen(
        command("tiny", "v3", tmp_path / "out", *LARGE),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while running.poll() is None and not any(path.stat().st_blocks > 1 << 12 for path in parts.glob("*.part")):
        time.sleep(0.005)
    servers = [pid for pid in children(running.pid) if b"forkserver" in cmdline(pid)]
    makers = [pid for server in servers for pid in children(server)]
    os.killpg(running.pid, signal.SIGINT)
    printed, said = running.communicate(timeout=20)
    assert running.returncode == 130 and not printed, said
    assert said.count("error: ") == 1 and "Traceback" not in said, said
    assert not list(tmp_path.iterdir())
    assert not any(b"forkserver" in cmdline(pid) for pid in (*servers, *makers))


def on_a_terminal(*words: Any, kind: str = "xterm") -> tuple[str, str]:
    """Stdout of a pipe, and stderr as a terminal of its own receives it."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": kind}
    running = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=theirs, text=True, env=env)
    os.close(theirs)
    seen = b""
    try:
        while read := os.read(ours, 1 << 16):
            seen += read
    except OSError:  # Linux's answer when the last writer has closed the terminal
        pass
    os.close(ours)
    printed = running.communicate(timeout=60)[0]
    assert running.returncode == 0, seen
    return printed, seen.decode()


def test_a_terminal_shows_a_bar_and_the_speed_and_a_pipe_neither(tmp_path: Path) -> None:
    line = ("tiny", "v3", tmp_path / "out", "--layers", 2, "--experts", 2, "--hidden", 256)
    nbytes = blueprint("v3", TinyRecipe(layers=2, experts=2, hidden=256)).nbytes
    printed, seen = on_a_terminal(*line)
    assert printed.startswith("made: tiny DeepSeek-V3 with ") and printed.count("\n") == 1
    assert "making" in seen and f"wrote {nbytes / 1e6:.1f} MB in " in seen and "MB/s" in seen
    printed, seen = on_a_terminal(*line)
    assert printed.startswith("already made: ") and "wrote" not in seen
    assert on_a_terminal(*line[:2], tmp_path / "quiet", *line[3:], "--quiet") == ("", "")
    _, seen = on_a_terminal(*line[:2], tmp_path / "dumb", *line[3:], kind="dumb")
    assert seen.startswith("wrote ")
    done = run(*line[:2], tmp_path / "piped", *line[3:])
    assert done.stdout.startswith("made: ") and done.stdout.count("\n") == 1 and not done.stderr
