"""The room of a staging folder: what a plan needs, what may be taken, and when a run waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsctl.checkpoint.opening import open_checkpoint, source_at
from dsctl.core.errors import PlanError
from dsctl.plan.plan import OutFile, Plan
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.run.staging import Needs, Room, batches, budget, job_bytes, needs
from tests.support.checkpoints import smaller
from tests.support.full_size import hollow


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    checkpoint = open_checkpoint(source_at(str(smaller(tmp_path_factory))))
    return make_plan(checkpoint, Request(to="bf16", shard_size=2 << 20))


def test_a_budget_is_what_was_asked_for_or_what_is_usual(tmp_path: Path) -> None:
    need = Needs(10, 100, 1000)
    assert budget(need, tmp_path, None) == budget(need, tmp_path, 5000) == 1000
    assert budget(need, tmp_path, 100) == 100
    assert budget(Needs(10, 100, 10**15), tmp_path, None) <= 30 * 10**9
    assert budget(Needs(10, 10**14, 10**15), tmp_path, None) == 10**14
    with pytest.raises(PlanError, match=r"--staging: 99 B is too little.*take 100 B"):
        budget(need, tmp_path, 99)


def test_room_that_is_taken_comes_back_with_files(plan: Plan) -> None:
    need, freed = needs(plan), list(plan.files)

    def make() -> bool:
        if not done:
            return False
        room.free([done.pop().name])
        return True

    done: list[OutFile] = []
    room = Room(plan, need.least, need.always, make, lambda: None)
    room.begin((), ())
    left = {file.name: {job.number for job in plan.jobs if file.name in job.files} for file in plan.files}
    for job in plan.jobs:
        room.wait(job)
        assert room.taken <= need.least
        for file in freed:
            left[file.name].discard(job.number)
        done += [file for file in freed if not left[file.name]]
        freed = [file for file in freed if left[file.name]]
    while make():
        pass
    assert not freed and room.taken == need.always
    room.begin([job.number for job in plan.jobs], [file.name for file in plan.files])
    assert room.taken == need.always


def test_a_run_without_room_ends(plan: Plan) -> None:
    need = needs(plan)
    room = Room(plan, need.always + job_bytes(plan.jobs[0]) - 1, need.always, lambda: False, lambda: None)
    room.begin((), ())
    assert not room.take(plan.jobs[0])
    with pytest.raises(PlanError, match="the staging folder needs more"):
        room.wait(plan.jobs[0])


def test_batches(plan: Plan) -> None:
    files = len(plan.files)
    assert batches(plan, 1, 1 << 60) == batches(plan, 50, 0) == files
    assert batches(plan, files, 1 << 60) == 1 and batches(plan, 3, 1 << 60) == files // 3


def test_v32_is_converted_on_30_gb(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(source_at(str(hollow(tmp_path / "full", "v3.2"))))
    plan = make_plan(checkpoint, Request(to="bf16"))
    need = needs(plan)
    # The full-size stand-in has a file for each layer, so files of 27 GB; the release's own have less than 9 GB.
    assert plan.bytes_out > 1.3e12 and need.least <= 30 * 10**9
    assert need.whole >= plan.bytes_out
