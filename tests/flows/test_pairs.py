"""Two runs on one target or one source, and strange things in the places of dsctl's own files: no byte is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from dsctl.core.errors import ResumeError
from dsctl.run import driver
from dsctl.run.locks import Lock
from tests.flows.test_claim import FIRST, SIZES, convert, small_jobs, stopped, told
from tests.flows.test_resume import contents
from tests.support.checkpoints import tiny
from tests.support.command import Done, at_most, call
from tests.unit.core.test_files import folder, link, pipe, second_name

__all__ = ["small_jobs"]
CONSUME = ("--consume", "--consume")


@pytest.fixture
def source(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny(tmp_path_factory, "v3.2", **SIZES), tmp_path / "source"))


@pytest.fixture
def whole(source: Path, tmp_path: Path) -> dict[str, str]:
    assert convert(Path(shutil.copytree(source, tmp_path / "copy")), tmp_path / "whole").returncode == 0
    return weights(tmp_path / "whole")


def weights(place: Path) -> dict[str, str]:
    return {name: digest for name, digest in contents(place).items() if name.endswith((".safetensors", ".dsctl"))}


def between(monkeypatch: pytest.MonkeyPatch, first: Callable[[], Any]) -> None:
    """Let another run begin and end after a run's first look at the target, before it has the lock."""

    class Late(Lock):
        def __init__(self, place: Path, *rest: Any) -> None:
            monkeypatch.setattr(driver, "Lock", Lock)
            first()
            super().__init__(place, *rest)

    monkeypatch.setattr(driver, "Lock", Late)


@pytest.mark.parametrize("consume", [(), CONSUME])
@pytest.mark.parametrize("more", [(), ("--force",)])
def test_a_run_that_ended_meanwhile_is_not_undone(
    source: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    consume: tuple[str, ...], more: tuple[str, ...],
) -> None:  # fmt: skip
    target = tmp_path / "out"
    ended: list[Done] = []
    between(monkeypatch, lambda: ended.append(convert(source, target, *consume)))
    late = convert(source, target, *consume, *more)
    assert ended[0].returncode == 0
    if consume or more:
        told(late, 40, "in the meantime")
    else:
        assert late.returncode == 0
    assert weights(target) == whole and not (target / ".dsctl").exists()
    assert bool(consume) != (source / FIRST).exists()


def test_work_of_another_request_that_began_meanwhile_is_left_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    between(monkeypatch, lambda: stopped(source, target, 5))
    told(call("convert", source, target, "--to", "f32", "--workers", "1"), 40, "a different request")
    assert len((target / ".dsctl" / "journal.jsonl").read_bytes().splitlines()) == 5
    assert convert(source, target).returncode == 0


def test_started_at_once_one_works_and_the_other_is_refused(
    source: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    line = [sys.executable, "-m", "dsctl", "convert", str(source), str(tmp_path / "out"), "--bf16", *CONSUME]
    runs = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [(run.communicate(timeout=120)[1], run.returncode) for run in runs]
    assert sorted({code for _, code in ends}) in ([0], [0, 40]), ends
    assert not [said for said, _ in ends if "internal" in said or "Traceback" in said]
    assert weights(tmp_path / "out") == whole


def test_a_folder_is_consumed_by_one_run_at_a_time(source: Path, tmp_path: Path) -> None:
    """Two targets would each hold a part of what neither has whole."""
    descriptor = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)
        told(convert(source, tmp_path / "out", *CONSUME), 40, "another dsctl is changing files in this folder")
    finally:
        os.close(descriptor)
    assert (source / FIRST).exists()
    assert convert(source, tmp_path / "out", *CONSUME).returncode == 0


def test_a_file_that_changed_since_it_was_read_is_not_consumed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsctl.run.journal import Journal

    real = Journal.append

    def append(journal: Journal, record: Any) -> None:
        os.utime(source / FIRST)
        real(journal, record)

    monkeypatch.setattr(Journal, "append", append)
    told(convert(source, tmp_path / "out", *CONSUME), 41, FIRST, "was changed while it was read")
    assert (source / FIRST).exists()


def test_a_lock_that_is_removed_ends_the_run(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsctl.run.journal import Journal

    real = Journal.append

    def append(journal: Journal, record: Any) -> None:
        real(journal, record)
        (journal.path.parent / "lock").unlink(missing_ok=True)

    monkeypatch.setattr(Journal, "append", append)
    told(convert(source, tmp_path / "out", *CONSUME), 41, "lock", "removed or replaced")
    assert (source / FIRST).exists() and not (tmp_path / "out" / "dsctl.json").exists()


FILES = (
    ".dsctl/lock", ".dsctl/journal.jsonl", ".dsctl/request.json", "dsctl.json", "dsctl.intoto.json", "original.dsctl",
)  # fmt: skip
FOLDERS = (".dsctl", ".cache", ".cache/dsctl")


@pytest.mark.parametrize(
    ("name", "place"),
    [(name, place) for name in FILES for place in (link, second_name, pipe, folder)]
    + [(name, place) for name in FOLDERS for place in (link, pipe)],
)
@pytest.mark.parametrize("begun", [False, True])
def test_nothing_is_followed_or_waited_for_in_a_target(
    source: Path, tmp_path: Path, name: str, place: Callable[[Path, Path], None], begun: bool
) -> None:
    target, treasure = tmp_path / "out", tmp_path / "treasure"
    treasure.write_bytes((source / FIRST).read_bytes())
    if begun:
        stopped(source, target, 3)
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    place(path, treasure)
    with at_most(30):
        told(convert(source, target, *CONSUME), 30)
    assert treasure.read_bytes() == (source / FIRST).read_bytes()
    assert (source / FIRST).exists()


@pytest.mark.parametrize("kind", ["a link to a folder", "a file"])
def test_the_folder_of_a_rank_is_not_followed(source: Path, tmp_path: Path, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out").mkdir()
    assert call("shard", source, tmp_path / "plain", "--ep", "2").returncode == 0
    rank = next(path.name for path in sorted((tmp_path / "plain").iterdir()) if path.is_dir())
    if kind == "a file":
        (tmp_path / "out" / rank).write_text("years")
    else:
        (tmp_path / "out" / rank).symlink_to(elsewhere)
    told(call("shard", source, tmp_path / "out", "--ep", "2"), 30, rank, "is not a folder")
    assert not list(elsewhere.iterdir())


def test_a_source_file_goes_only_when_every_folder_above_its_bytes_is_durable(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new" / "out"
    synced: set[Path] = set()
    before: list[set[Path]] = []
    real_sync, real_unlink = os.fsync, Path.unlink

    def fsync(descriptor: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real_sync(descriptor)

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.is_relative_to(source):
            before.append(set(synced))
        real_unlink(path, missing_ok)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "unlink", unlink)
    assert call("shard", source, target, "--ep", "2", "--workers", "1", *CONSUME).returncode == 0
    ranks = [path for path in target.iterdir() if path.is_dir() and path.name.startswith("rank")]
    assert len(ranks) == 2 and before
    notes = target / ".cache" / "dsctl"
    assert {tmp_path, target.parent, target, target / ".dsctl", notes.parent, notes, *ranks} <= before[0]


@pytest.mark.parametrize("records", [4, 9])
def test_a_run_that_is_resumed_makes_the_folders_durable_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: int
) -> None:
    target = tmp_path / "out"
    stopped(source, target, records, *CONSUME)
    synced: set[Path] = set()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    assert convert(source, target, *CONSUME).returncode == 0
    assert {tmp_path, target, target / ".dsctl", target / ".cache", target / ".cache" / "dsctl"} <= synced


def test_a_refusal_under_the_lock_leaves_no_lock_behind(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*rest: Any) -> None:
        raise ResumeError("refused")

    monkeypatch.setattr(driver, "refuse_consumed_since", refuse)
    told(convert(source, tmp_path / "out"), 40, "refused")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(
    "step",
    ["dsctl.checkpoint.opening.read_headers", "dsctl.cli.carrying.make_plan", "dsctl.run.carry_out.check_target"],
)
@pytest.mark.parametrize("more", [(), ("--force",)])
def test_a_source_that_another_run_consumes_meanwhile_is_refused_as_that(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, busy: bool, more: tuple[str, ...]
) -> None:
    """The second of two runs finds files gone that it has just seen; the first one may be at work, or have ended."""
    target, locks = tmp_path / "out", list[Lock]()
    holder, _, name = step.rpartition(".")
    module = import_module(holder)
    real = getattr(module, name)

    def late(*rest: Any, **options: Any) -> Any:
        monkeypatch.setattr(module, name, real)
        if busy:
            stopped(source, target, 15, *CONSUME)
            locks.append(Lock(target / ".dsctl"))
        else:
            assert convert(source, target, *CONSUME).returncode == 0
        assert not (source / FIRST).exists()
        return real(*rest, **options)

    monkeypatch.setattr(module, name, late)
    second = convert(source, target, *CONSUME, *more)
    if busy or more or step.endswith("read_headers"):
        told(second, 40)
    else:
        assert second.returncode == 0 and "already complete" in second.stdout
    for lock in locks:
        lock.release()
    assert convert(source, target, *CONSUME).returncode == 0
    assert (target / "dsctl.json").exists()
