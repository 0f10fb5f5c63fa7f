"""--consume: source files go when what was made of them is safe, and never otherwise."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from dsctl.checkpoint.opening import open_checkpoint
from dsctl.core.errors import PlanError, ResumeError, WorkError
from dsctl.core.progress import Advance
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.run.consume import remembered, room
from dsctl.run.driver import run
from dsctl.run.how import How
from dsctl.stores.local import LocalFolder
from dsctl.work.executors.serial import Serial
from dsctl.work.tasks import Context, Receipt
from tests.support.command import dsctl
from tests.support.command import run as command


class Stopping(Serial):
    """Ends with an error instead of its third receipt."""

    given = 0

    def next(self, progress: Advance) -> Receipt:
        if self.given == 2:
            raise WorkError("stopped")
        self.given += 1
        return super().next(progress)


@pytest.fixture
def doomed(source: Path, tmp_path: Path) -> Path:
    shutil.copytree(source, tmp_path / "doomed")
    return tmp_path / "doomed"


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))}


def convert(folder: Path, target: Path, executor: type[Serial], force: bool = False) -> None:
    store = remembered(LocalFolder.at(folder), target, force)
    plan = make_plan(open_checkpoint(store), Request(to="bf16"))
    run(plan, store, target, lambda: executor(Context(store, str(target))), how=How(consume=True))


def test_the_source_goes_and_the_result_is_the_same(source: Path, doomed: Path, tmp_path: Path) -> None:
    dsctl("convert", doomed, tmp_path / "out", "--bf16", "--consume", "--consume")
    dsctl("convert", source, tmp_path / "expected", "--bf16")
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")
    assert not list(doomed.glob("*.safetensors")) and (doomed / "config.json").exists()


def test_a_run_that_stopped_is_resumed_without_what_is_gone(source: Path, doomed: Path, tmp_path: Path) -> None:
    with pytest.raises(WorkError):
        convert(doomed, tmp_path / "out", Stopping)
    left = len(list(doomed.glob("*.safetensors")))
    assert 0 < left < 4
    with pytest.raises(ResumeError):
        convert(doomed, tmp_path / "out", Serial, force=True)
    convert(doomed, tmp_path / "out", Serial)
    dsctl("convert", source, tmp_path / "expected", "--bf16")
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")
    assert not list(doomed.glob("*.safetensors"))


VERBS = [("convert", "--bf16"), ("shard", "--tp", "2"), ("merge",)]


@pytest.mark.parametrize("options", VERBS, ids=lambda options: options[0])
def test_the_same_command_finds_its_work_complete(doomed: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    if options[0] == "merge":
        dsctl("shard", doomed, tmp_path / "spread", "--tp", "2")
        doomed = tmp_path / "spread"
    verb, *more = options
    line = (verb, doomed, tmp_path / "out", *more, "--consume", "--consume")
    dsctl(*line)
    assert not list(doomed.rglob("*.safetensors"))
    before = digests(tmp_path / "out")
    assert "is already complete" in dsctl(*line)
    assert digests(tmp_path / "out") == before
    assert "no problems found" in dsctl("verify", tmp_path / "out", "--deep")
    refused = command(*line, "--force")
    assert refused.returncode == 40 and "holds the only data" in refused.stderr
    assert digests(tmp_path / "out") == before


def test_a_source_that_was_kept_is_not_consumed_by_a_run_with_nothing_to_do(doomed: Path, tmp_path: Path) -> None:
    line = ("convert", doomed, tmp_path / "out", "--bf16")
    dsctl(*line)
    before = digests(doomed)
    again = command(*line, "--consume", "--consume")
    assert again.returncode == 0 and "is already complete" in again.stdout
    assert "--consume deleted nothing" in again.stderr
    assert digests(doomed) == before


def test_a_kill_after_the_last_file_is_resumed(doomed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("dsctl.run.driver.retire", _killed)
        convert(doomed, tmp_path / "out", Serial)
    assert (tmp_path / "out" / "dsctl.json").exists() and not list(doomed.glob("*.safetensors"))
    convert(doomed, tmp_path / "out", Serial)
    assert "no problems found" in dsctl("verify", tmp_path / "out", "--deep")


def _killed(*rest: object, **more: object) -> None:
    raise KeyboardInterrupt


def test_ranks_that_are_left_out_are_not_lost(doomed: Path, tmp_path: Path) -> None:
    line = ("shard", doomed, tmp_path / "out", "--tp", "2", "--rank", "0", "--consume", "--consume")
    refused = command(*line)
    assert refused.returncode == 30 and "--consume would lose them" in refused.stderr
    assert len(list(doomed.glob("*.safetensors"))) == 4


def test_a_folder_by_a_link_is_not_consumed(doomed: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(doomed)
    refused = command("convert", tmp_path / "link", tmp_path / "out", "--bf16", "--consume", "--consume")
    assert refused.returncode == 30 and "is a link" in refused.stderr
    assert len(list(doomed.glob("*.safetensors"))) == 4


def test_a_folder_is_no_cache_for_its_name_alone(doomed: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshots-of-mine").mkdir()
    folder = doomed.rename(tmp_path / "snapshots-of-mine" / "models--mine")
    dsctl("convert", folder, tmp_path / "out", "--bf16", "--consume", "--consume")
    assert not list(folder.glob("*.safetensors"))


def test_what_goes_makes_room(doomed: Path, tmp_path: Path) -> None:
    store = LocalFolder.at(doomed)
    plan = make_plan(open_checkpoint(store), Request(to="bf16"))
    sources = sum(path.stat().st_size for path in doomed.glob("*.safetensors"))
    written = sum(step.written_bytes for step in plan.steps)
    assert written - sources < room(plan, store, tmp_path) <= plan.bytes_out
    plan.jobs = [
        job._replace(number=number, steps=(step,))
        for number, (job, step) in enumerate((job, step) for job in plan.jobs for step in job.steps)
    ]
    assert written - sources < room(plan, store, tmp_path) < plan.bytes_out


def test_once_is_not_enough(doomed: Path, tmp_path: Path) -> None:
    assert command("convert", doomed, tmp_path / "out", "--bf16", "--consume").returncode == 2
    assert len(list(doomed.glob("*.safetensors"))) == 4


@pytest.mark.parametrize("why", ["link", "hard link", "cache", "left out"])
def test_what_is_not_its_own_is_never_consumed(doomed: Path, tmp_path: Path, why: str) -> None:
    file = min(doomed.glob("*.safetensors"))
    request = Request(to="bf16", mtp="drop" if why == "left out" else "keep")
    if why == "link":
        file.rename(doomed / "elsewhere")
        file.symlink_to("elsewhere")
    elif why == "hard link":
        os.link(file, tmp_path / "other-name")
    elif why == "cache":
        cache = tmp_path / "models--acme--small" / "snapshots"
        cache.mkdir(parents=True)
        doomed = doomed.rename(cache / "abc")
    store, before = LocalFolder.at(doomed), digests(doomed)
    plan = make_plan(open_checkpoint(store), request)
    with pytest.raises(PlanError):
        run(plan, store, tmp_path / "out", lambda: Serial(Context(store, str(tmp_path / "out"))), how=How(consume=True))
    assert digests(doomed) == before
