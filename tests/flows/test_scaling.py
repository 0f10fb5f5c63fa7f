"""What must not grow: the driver's cost per job, and the time to read a journal. Words for workers and memory."""

from __future__ import annotations

import json
import pickle
import time
from collections import deque
from pathlib import Path

import pytest

from dsctl.checkpoint.opening import open_checkpoint
from dsctl.cli import carrying
from dsctl.core.digests import digest
from dsctl.core.progress import Advance
from dsctl.plan.plan import Job, Plan
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.plan.stretches import written
from dsctl.run import carry_out
from dsctl.run.dispatch import Dispatch, prepare_all
from dsctl.run.journal import Journal
from dsctl.run.resuming import RunState, replay
from dsctl.run.signing import as_text
from dsctl.stores.local import LocalFolder
from dsctl.work.tasks import Receipt, Seal
from tests.support.checkpoints import smaller
from tests.support.command import call, dsctl, dsctl_fails

JOBS, RECORDS = 2_000, 100_000


class Idle:
    """Does nothing but what a pipe to a worker costs."""

    capacity = 8

    def __init__(self) -> None:
        self.tasks: deque[Job | Seal] = deque()

    def submit(self, task: Job | Seal) -> None:
        self.tasks.append(pickle.loads(pickle.dumps(task)))

    def next(self, progress: Advance) -> Receipt:
        task = self.tasks.popleft()
        assert not isinstance(task, Seal)
        return Receipt(task.number, {"moved": 1}, digests=made_up(task))

    def close(self) -> None:
        pass


def made_up(job: Job) -> bytes:
    """As many digests as a job's receipt has."""
    return b"".join(digest(str(one.begin).encode()) for one in written(job))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smaller(tmp_path_factory, "v3.2")


@pytest.fixture
def plan(source: Path) -> Plan:
    """A plan of many jobs, each of as many parameters as one of the real V3.2's."""
    plan = make_plan(open_checkpoint(LocalFolder.at(source)), Request("bf16"))
    some = plan.jobs[0]
    many = [some._replace(number=number, steps=some.steps[:9]) for number in range(JOBS)]
    # Without the others, files would be finished of which nothing was written.
    plan.jobs = many + [job._replace(number=JOBS + job.number) for job in plan.jobs]
    return plan


def test_a_job_costs_the_driver_less_than_a_millisecond(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / ".dsctl").mkdir()
    prepare_all(plan, tmp_path, RunState(), plan.jobs)
    with Journal(tmp_path / ".dsctl") as journal:
        began = time.process_time()
        Dispatch(plan, tmp_path, journal, RunState()).carry_out(Idle(), deque(plan.jobs), lambda event: None)
        spent = time.process_time() - began
    assert spent / JOBS < 0.001
    assert all((tmp_path / file.name).exists() for file in plan.files)


def test_a_journal_of_a_hundred_thousand_jobs_is_read_in_two_seconds(plan: Plan, tmp_path: Path) -> None:
    some = plan.jobs[0]._replace(steps=plan.jobs[0].steps[:1])
    plan.jobs = [some._replace(number=number) for number in range(RECORDS)]
    counted = ({"blocks_restored": number} for number in range(RECORDS))
    digests = as_text(made_up(some))
    lines = [json.dumps({"job": job.number, "counts": next(counted), "digests": digests}) for job in plan.jobs]
    (tmp_path / "journal.jsonl").write_text("\n".join(lines) + "\n")
    began = time.process_time()
    with Journal(tmp_path) as journal:
        state = replay(plan, tmp_path, journal)
    assert time.process_time() - began < 2
    assert len(state.done) == RECORDS and state.counts == {"blocks_restored": RECORDS * (RECORDS - 1) // 2}


def test_auto_is_what_no_number_means_and_memory_has_two_names(source: Path, tmp_path: Path) -> None:
    words = ("convert", source, tmp_path / "out", "--bf16", "--dry-run", "--json")
    usual = json.loads(dsctl(*words))
    auto = json.loads(dsctl(*words, "--workers", "auto"))
    assert (auto["workers"], auto["peak_bytes"]) == (usual["workers"], usual["peak_bytes"])
    sizes = [json.loads(dsctl(*words, name, "300MB"))["peak_bytes"] for name in ("--memory", "--max-memory")]
    assert sizes[0] == sizes[1] <= 300_000_000
    for wrong in ("0", "many", "1025", "-1"):
        done = call(*words, "--workers", wrong)
        assert done.returncode == 2 and "--workers" in done.stderr


@pytest.mark.parametrize("word", ["cuda:", "cuda:²", "cuda:0,", "cuda:-1", "tpu"])
def test_a_device_that_is_none_is_a_mistake(source: Path, tmp_path: Path, word: str) -> None:
    assert dsctl_fails("convert", source, tmp_path / "out", "--bf16", "--device", word) == 2


@pytest.mark.parametrize(
    ("words", "least", "early"),
    [
        (("--workers", "2"), 0, True),
        (("--workers", "1"), 0, False),
        (("--workers", "2", "--dry-run"), 0, False),
        (("--workers", "2", "--device", "auto"), 0, False),
        (("--workers", "2"), 1 << 40, False),
    ],
)
def test_workers_begin_to_start_while_the_plan_is_made(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], least: int, early: bool
) -> None:
    told: list[str] = []
    planned = carrying.make_plan
    monkeypatch.setattr(carry_out, "SMALL_BYTES", least)
    monkeypatch.setattr(carry_out, "prepare", lambda: told.append("prepared"))
    monkeypatch.setattr(carrying, "make_plan", lambda *rest: (told.append("planned"), planned(*rest))[1])
    dsctl("convert", source, tmp_path / "out", "--bf16", *words)
    assert (told[0] == "prepared") == early
