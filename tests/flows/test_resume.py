"""Kill the real process at any moment, run the same command, get the same bytes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.forks import Launcher, Running, children, cmdline

KILLS = 6


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def command(source: Path, target: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "dsctl", "convert", str(source), str(target), *more]


def killed(running: Running, after: float) -> None:
    """Kill a command after some seconds, unless it has ended."""
    time.sleep(after)
    running.kill("driver")
    running.wait()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3.2")


@pytest.fixture(scope="module")
def undisturbed(
    source: Path, tmp_path_factory: pytest.TempPathFactory, launcher: Launcher
) -> tuple[Path, dict[str, float]]:
    """What a run makes that nothing disturbs, and the seconds that it takes by its number of workers."""
    targets = {workers: tmp_path_factory.mktemp("undisturbed") / "out" for workers in ("1", "2")}
    runs = {
        workers: launcher.good("convert", source, target, "--bf16", "--workers", workers)
        for workers, target in targets.items()
    }
    return targets["1"], {workers: done.seconds for workers, done in runs.items()}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_at_random_moments_it_resumes_to_the_same_bytes(
    source: Path, undisturbed: tuple[Path, dict[str, float]], tmp_path: Path, workers: str, launcher: Launcher
) -> None:
    whole, seconds = undisturbed
    chance, target = random.Random(int(workers)), tmp_path / "out"
    for _ in range(KILLS):
        running = launcher.start("convert", source, target, "--bf16", "--workers", workers)
        killed(running, chance.uniform(0.1, 1.0) * seconds[workers])
        if not (target / "dsctl.json").exists():
            assert not (target / "config.json").exists() or (target / ".dsctl").exists()
    dsctl("convert", source, target, "--bf16", "--workers", workers)
    assert contents(target) == contents(whole)


@pytest.mark.parametrize("point", ["prepared", "first job", "first file", "before config", "before signing"])
def test_stopped_at_every_moment(
    source: Path, undisturbed: tuple[Path, dict[str, float]], tmp_path: Path, point: str, launcher: Launcher
) -> None:
    """The process ends itself, without any clean-up, right after a named step of the driver."""
    after = {
        "prepared": "dsctl.run.dispatch._prepare",
        "first job": "dsctl.run.journal.Journal.append",
        "first file": "dsctl.run.dispatch._rename",
        "before config": "dsctl.run.dispatch.Dispatch.carry_out",
        "before signing": "dsctl.core.files.replace_file",
    }[point]
    times = {"before signing": 4}.get(point, 1)
    done = launcher.start("convert", source, tmp_path / "out", "--bf16", last=(after, times)).wait()
    assert done.code == 9, done.told()
    assert not (tmp_path / "out" / "dsctl.json").exists()
    dsctl("convert", source, tmp_path / "out", "--bf16")
    assert contents(tmp_path / "out") == contents(undisturbed[0])


def test_a_torn_last_line_of_the_journal_is_a_job_not_done(
    source: Path, undisturbed: tuple[Path, dict[str, float]], tmp_path: Path, launcher: Launcher
) -> None:
    target = tmp_path / "out"
    journal = target / ".dsctl" / "journal.jsonl"
    running = launcher.start("convert", source, target, "--bf16")
    while not running.ended and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.002)
    running.kill("driver")
    running.wait()
    if journal.exists():
        journal.write_bytes(journal.read_bytes()[:-7])
    dsctl("convert", source, target, "--bf16")
    assert contents(target) == contents(undisturbed[0])


def test_an_interrupt_ends_it_soon_with_130_and_a_hint(source: Path, tmp_path: Path) -> None:
    arguments = command(source, tmp_path / "out", "--bf16", "--workers", "2")
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while process.poll() is None and not (tmp_path / "out" / ".dsctl" / "journal.jsonl").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    process.wait(20)
    assert time.monotonic() - began < 3
    # The process that starts workers has the same stderr, and may still be importing torch.
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in said and "same command" in said and "Traceback" not in said


@pytest.mark.parametrize("after", [0.1, 0.4, 0.8])
def test_an_interrupt_of_the_terminal_while_torch_loads_shows_no_traceback(
    source: Path, tmp_path: Path, after: float
) -> None:
    arguments = command(source, tmp_path / "out", "--bf16", "--workers", "2")
    process = subprocess.Popen(
        arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    while process.poll() is None and not any(b"forkserver" in cmdline(pid) for pid in children(process.pid)):
        time.sleep(0.005)
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in said and said.count("error: ") == 1, said


def test_a_process_that_starts_workers_and_never_ends_its_imports_is_ended(source: Path, tmp_path: Path) -> None:
    """As torch does in too little memory: it spins, and would hold the output open after the driver has ended."""
    (tmp_path / "torch.py").write_text("while True:\n    pass\n")
    process = subprocess.Popen(
        command(source, tmp_path / "out", "--bf16", "--workers", "2"),
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    while process.poll() is None and not any(b"forkserver" in cmdline(pid) for pid in children(process.pid)):
        time.sleep(0.005)
    servers = [pid for pid in children(process.pid) if b"forkserver" in cmdline(pid)]
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and "interrupted" in said, said
    assert servers and not any(b"forkserver" in cmdline(pid) for pid in servers)


def test_an_interrupt_before_anything_runs_shows_no_traceback() -> None:
    script = """
import sys
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "dsctl.cli.app":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Slow())
from dsctl.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 130 and done.stderr == "error: interrupted\n"


def test_a_second_process_is_refused_while_the_first_lives(source: Path, tmp_path: Path, launcher: Launcher) -> None:
    target = tmp_path / "out"
    first = launcher.start("convert", source, target, "--bf16")
    while not first.ended and not (target / ".dsctl" / "request.json").exists():
        time.sleep(0.002)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = launcher.run("convert", source, target, "--bf16")
    finally:
        os.kill(first.pid, signal.SIGCONT)
    assert second.code == 40 and f"process {first.pid}" in second.err
    assert first.wait().code == 0


def test_a_killed_worker_is_named_and_the_rest_resumes(
    source: Path, undisturbed: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    arguments = command(source, tmp_path / "out", "--bf16", "--workers", "2")
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    workers: list[int] = []
    while process.poll() is None and not workers:
        servers = [pid for pid in children(process.pid) if b"forkserver" in cmdline(pid)]
        workers = [worker for server in servers for worker in children(server)]
        time.sleep(0.005)
    os.kill(workers[0], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 41 and "SIGKILL" in said
    dsctl("convert", source, tmp_path / "out", "--bf16")
    assert contents(tmp_path / "out") == contents(undisturbed[0])


def test_another_source_behind_the_same_name_is_not_resumed(source: Path, tmp_path: Path, launcher: Launcher) -> None:
    target = tmp_path / "out"
    killed(launcher.start("convert", source, target, "--bf16", "--workers", "2"), 0.2)
    (target / ".dsctl").mkdir(parents=True, exist_ok=True)
    (target / ".dsctl" / "request.json").write_text(json.dumps({"fingerprint": "another"}))
    (target / "dsctl.json").unlink(missing_ok=True)
    done = call("convert", source, target, "--bf16")
    assert done.returncode == 40 and "--force" in done.stderr
    dsctl("convert", source, target, "--bf16", "--force")
