"""What a target folder holds: only what dsctl made is gone on with or removed, and only where it is still true."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dsctl.core.errors import WorkError
from dsctl.plan import jobs as planning
from dsctl.run.journal import Journal
from tests.flows.test_resume import contents
from tests.support.checkpoints import tiny
from tests.support.command import Done, call, dsctl, reports

SIZES = {
    "layers": 2, "experts": 2, "hidden": 256, "vocab": 64, "intermediate": 256, "moe_intermediate": 128, "heads": 1,
    "shards": 2,
}  # fmt: skip
FIRST = "model-00001-of-000002.safetensors"


@pytest.fixture
def source(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny(tmp_path_factory, "v3.2", **SIZES), tmp_path / "source"))


@pytest.fixture(autouse=True)
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "JOB_BYTES", 300_000)


def convert(source: Path, target: Path, *more: Any) -> Done:
    return call("convert", source, target, "--bf16", "--workers", "1", *more)


def stopped(source: Path, target: Path, records: int, *more: Any) -> list[dict[str, Any]]:
    """Begin a conversion, end it after so many records of the journal, and give them."""
    real = Journal.append

    def append(journal: Journal, record: Any) -> None:
        real(journal, record)
        if journal.path.read_bytes().count(b"\n") >= records:
            raise WorkError("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", append)
        assert convert(source, target, *more).returncode == 41
    return [json.loads(line) for line in (target / ".dsctl" / "journal.jsonl").read_bytes().splitlines()]


def told(done: Done, code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert len(reports(done.stderr)) == 1 and "Traceback" not in done.stderr and "internal" not in done.stderr


@pytest.mark.parametrize("records", [3, 9, 13])
@pytest.mark.parametrize("how", ["lost", "cut", "a link"])
def test_work_in_a_file_that_is_lost_is_done_again(source: Path, tmp_path: Path, records: int, how: str) -> None:
    target = tmp_path / "out"
    stopped(source, target, records)
    parts = sorted(target.glob("*.part"))
    for part in parts[: 1 if how == "lost" else None]:
        size = part.stat().st_size
        part.unlink()
        if how == "cut":
            part.write_bytes(b"cut")
        elif how == "a link":
            (tmp_path / part.name).write_bytes(bytes(size))
            part.symlink_to(tmp_path / part.name)
    assert parts and convert(source, target).returncode == 0
    assert convert(source, tmp_path / "whole").returncode == 0
    assert contents(target) == contents(tmp_path / "whole")


def test_a_finished_file_is_made_again_where_a_lost_one_shares_its_jobs(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    finished: list[str] = []
    for records in range(1, 100):
        journal = stopped(source, target, records)
        finished = [record["file"] for record in journal if "file" in record]
        if finished:
            break
        shutil.rmtree(target)
    (target / "original.dsctl.part").unlink()
    done = convert(source, target, "--verbose")
    assert done.returncode == 0 and f"finished {finished[0]}" in done.stderr
    assert convert(source, tmp_path / "whole").returncode == 0
    assert contents(target) == contents(tmp_path / "whole")


def test_work_that_is_lost_with_its_source_is_told(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    stopped(source, target, 15, "--consume", "--consume")
    assert not (source / FIRST).exists()
    (target / "original.dsctl.part").unlink()
    told(convert(source, target, "--consume", "--consume"), 40, "original.dsctl", f"{FIRST}, which is needed")


def test_jobs_of_another_size_are_not_gone_on_with(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out"
    stopped(source, target, 5)
    monkeypatch.setattr(planning, "JOB_BYTES", 500_000)
    told(convert(source, target), 40, "divides the work differently", "--force")
    assert convert(source, target, "--force").returncode == 0


@pytest.mark.parametrize("record", ['{"joy": 1}', '{"job": 999, "counts": {}}', '{"job": 9}', "7", '{"file": "x"}'])
def test_a_journal_of_something_else_is_refused(source: Path, tmp_path: Path, record: str) -> None:
    target = tmp_path / "out"
    stopped(source, target, 2)
    with open(target / ".dsctl" / "journal.jsonl", "a") as journal:
        journal.write(record + "\n")
    told(convert(source, target), 40, "a line is not valid", "--force")
    assert convert(source, target, "--force").returncode == 0


def mine(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "thesis.txt").write_text("years")
    return folder


def test_a_folder_that_only_looks_like_dsctl_s_is_left_alone(source: Path, tmp_path: Path) -> None:
    (mine(tmp_path / "empty") / ".dsctl").mkdir()
    (mine(tmp_path / "signed") / "dsctl.json").write_text('{"fingerprint": "x"}')
    (mine(tmp_path / "torn") / "dsctl.json").write_text('{"fingerprint": "x", "fi')
    forged = {"fingerprint": "x", "files": {"../other/thesis.txt": {}}}
    (mine(tmp_path / "forged") / "dsctl.json").write_text(json.dumps(forged))
    mine(tmp_path / "other")
    for name in ("empty", "signed", "torn", "forged"):
        before = contents(tmp_path / name)
        for more in ((), ("--force",), ("--force", "--dry-run")):
            done = convert(source, tmp_path / name, *more)
            told(done, 40 if name == "forged" and not more else 30)
        assert contents(tmp_path / name) == before
    assert (tmp_path / "other" / "thesis.txt").exists()


@pytest.mark.parametrize("complete", [True, False])
def test_force_removes_what_dsctl_made_and_nothing_else(source: Path, tmp_path: Path, complete: bool) -> None:
    target = tmp_path / "out"
    assert not complete or convert(source, target, "--shard-size", "1MB").returncode == 0
    if not complete:
        stopped(source, target, 9)
    (target / "notes").mkdir()
    (target / "notes" / "mine.txt").write_text("years")
    (target / "model.part").write_text("mine too")
    before = contents(target)
    told(convert(source, target, "--force"), 30, "2 files were not made", "notes/mine.txt", "model.part", "hint: ")
    assert contents(target) == before
    shutil.rmtree(target / "notes")
    (target / "model.part").unlink()
    assert convert(source, target, "--force").returncode == 0
    assert convert(source, tmp_path / "whole").returncode == 0
    assert contents(target) == contents(tmp_path / "whole")


def test_what_others_put_into_the_working_folder_stays(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / ".dsctl" / "mine").mkdir(parents=True)
    (tmp_path / "out" / ".dsctl" / "mine" / "thesis.txt").write_text("years")
    told(convert(source, tmp_path / "out"), 30)
    stopped(source, tmp_path / "two", 5)
    (tmp_path / "two" / ".dsctl" / "mine").mkdir()
    assert convert(source, tmp_path / "two", "--force").returncode == 0
    assert (tmp_path / "two" / ".dsctl" / "mine").is_dir()


def test_killed_while_it_empties_a_folder_the_next_run_goes_on(source: Path, tmp_path: Path) -> None:
    target, count = tmp_path / "out", 0
    assert convert(source, target, "--shard-size", "1MB").returncode == 0
    assert convert(source, tmp_path / "whole").returncode == 0
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        nonlocal count
        count += path.is_relative_to(target)
        if count > 3:
            raise OSError(5, "stopped")
        real(path, missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        told(convert(source, target, "--force"), 41)
    assert not (target / "dsctl.json").exists()
    assert convert(source, target).returncode == 0
    assert contents(target) == contents(tmp_path / "whole")


def change(source: Path) -> None:
    """Other weights under the same header, in place: a reader never sees a shorter file."""
    with open(source / FIRST, "r+b") as file:
        file.seek(-40, os.SEEK_END)
        last = file.read()
        file.seek(-40, os.SEEK_END)
        file.write(bytes(byte ^ 1 for byte in last))


def test_weights_that_changed_are_noticed(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    stopped(source, target, 11)
    change(source)
    assert convert(source, target).returncode == 0
    assert convert(source, tmp_path / "whole").returncode == 0
    assert contents(target) == contents(tmp_path / "whole")
    assert "already complete" in convert(source, target).stdout
    change(source)
    told(convert(source, target), 40, FIRST, "changed", "--force")
    assert convert(source, target, "--force").returncode == 0


def test_a_copy_of_the_source_is_the_same_source(source: Path, tmp_path: Path) -> None:
    stopped(source, tmp_path / "out", 5)
    copy = Path(shutil.copytree(source, tmp_path / "copy"))
    for path in copy.iterdir():
        os.utime(path, (1, 1))
    done = convert(copy, tmp_path / "out")
    assert done.returncode == 0 and "resumed: 5 of" in done.stderr
    assert "already complete" in convert(source, tmp_path / "out").stdout


def test_weights_that_change_under_way_are_not_signed(source: Path, tmp_path: Path) -> None:
    from dsctl.run import dispatch

    real = dispatch._rename

    def rename(target: Path, file: str) -> None:
        real(target, file)
        change(source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_rename", rename)
        told(convert(source, tmp_path / "out"), 41, FIRST, "same command")
    assert not (tmp_path / "out" / "dsctl.json").exists()
    assert convert(source, tmp_path / "out").returncode == 0
    assert convert(source, tmp_path / "whole").returncode == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("request", float("inf"), "Infinity is not JSON"),
        ("notes", {}, "notes or dropped"),
        ("files", {"x": 1}, "files"),
    ],
)
def test_a_finished_target_whose_audit_is_not_valid_is_refused(
    source: Path, tmp_path: Path, name: str, value: Any, why: str
) -> None:
    target = tmp_path / "out"
    assert convert(source, target).returncode == 0
    signed = json.loads((target / "dsctl.json").read_text())
    (target / "dsctl.json").write_text(json.dumps(signed | {name: value}))
    told(convert(source, target, "--json"), 40, str(target / "dsctl.json"), why, "--force")


@pytest.mark.parametrize(("number", "code"), [(errno.EIO, 41), (errno.EACCES, 30)])
def test_a_target_that_cannot_be_listed_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    (target := tmp_path / "out").mkdir()
    real = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder == target:
            raise OSError(number, os.strerror(number), str(target))
        return real(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    told(convert(source, target), code, str(target), os.strerror(number))


def test_a_target_is_told_for_what_it_is(source: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    told(convert(source, tmp_path / "link"), 30, "is a link", str(tmp_path / "folder"))
    dsctl("convert", source, tmp_path / "out", "--bf16", "--workers", "1")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "note": 1}))
    told(convert(source, tmp_path / "out"), 40, "before it changed")
