"""The record of finished work in a repository: what it needs to go on elsewhere, and what of it is believed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsctl.checkpoint.opening import open_checkpoint, source_at
from dsctl.core import digests
from dsctl.core.errors import ResumeError
from dsctl.plan.jobs import apart, is_side
from dsctl.plan.plan import Plan
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.plan.stretches import written
from dsctl.run.journal import records_of
from dsctl.run.recorded_work import RecordedWork, Restored, Segment, numbers
from dsctl.run.signing import as_text
from tests.support.checkpoints import smaller
from tests.support.command import dsctl


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    plan = make_plan(open_checkpoint(source_at(str(smaller(tmp_path_factory)))), Request(to="bf16", shard_size=2 << 20))
    return replace(plan, jobs=list(apart(plan.jobs)))


@pytest.fixture(scope="module")
def made(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished folder."""
    folder = tmp_path_factory.mktemp("made") / "out"
    dsctl("convert", plan.source, folder, "--bf16", "--shard-size", str(2 << 20), "--workers", "1", "-q")
    return folder


@pytest.fixture(scope="module")
def records(plan: Plan, made: Path) -> list[dict[str, Any]]:
    """The journal of a run that has finished all files but the side file."""
    data = {file.name: (made / file.name).read_bytes() for file in plan.files}
    jobs = [
        {"job": job.number, "counts": {"moved": 1},
         "digests": as_text(b"".join(digests.digest(data[one.file][one.begin : one.end]) for one in written(job)))}
        for job in plan.jobs
    ]  # fmt: skip
    files = [
        {"file": file.name, "size": file.size, "sha256": hashlib.sha256(data[file.name]).hexdigest()}
        for file in plan.files
        if not is_side(file.name)
    ]
    return [*jobs, *files]


def segments(plan: Plan, made: Path, records: list[dict[str, Any]], *safe: str) -> list[Segment]:
    return list(RecordedWork(plan).segments(made, records, set(safe)))


def restored(plan: Plan, folder: Path, found: list[Segment], lost: str = "") -> tuple[list[str], list[int]]:
    """The files and the jobs that a different machine has then."""
    work = Restored(plan, folder, "hf://me/made", lambda record: record["file"] != lost)
    for one in found:
        work.take(one.lines, one.data)
    files = [note["file"] for note in work.finish()]
    journal = records_of((folder / ".dsctl" / "journal.jsonl").read_bytes(), lambda: ResumeError("no journal"))[0]
    assert [record["file"] for record in journal if "file" in record] == files
    return files, [record["job"] for record in journal if "job" in record]


def test_jobs_end_with_weight_files_so_that_one_file_needs_no_other(plan: Plan) -> None:
    assert all(len({file for file in job.files if not is_side(file)}) == 1 for job in plan.jobs)
    assert [job.number for job in plan.jobs] == list(range(len(plan.jobs)))


def test_a_finished_file_and_its_part_of_the_side_file_come_back(
    plan: Plan, made: Path, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    first = plan.files[0].name
    found = segments(plan, made, records, first)
    files, jobs = restored(plan, tmp_path, found)
    assert files == [first] and jobs == [job.number for job in plan.jobs if first in job.files]
    side = next(file for file in plan.files if is_side(file.name))
    there, whole = (tmp_path / f"{side.name}.part").read_bytes(), (made / side.name).read_bytes()
    assert len(there) == len(whole)
    for one in (one for job in plan.jobs if job.number in jobs for one in written(job) if one.file == side.name):
        assert there[one.begin : one.end] == whole[one.begin : one.end]


def test_a_file_that_the_repository_lost_is_made_again(
    plan: Plan, made: Path, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    first, second = plan.files[0].name, plan.files[1].name
    found = segments(plan, made, records, first, second)
    files, jobs = restored(plan, tmp_path, found, lost=first)
    assert files == [second] and jobs == [job.number for job in plan.jobs if second in job.files]


def test_work_whose_bytes_were_changed_is_done_again(
    plan: Plan, made: Path, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    first = plan.files[0].name
    (one,) = segments(plan, made, records, first)
    assert one.data
    for number, data in enumerate((b"", one.data[:-1], bytes([one.data[0] ^ 1]) + one.data[1:])):
        assert restored(plan, tmp_path / str(number), [one._replace(data=data)]) == ([], [])


@pytest.mark.parametrize(
    "change",
    [
        {"job": 10**6},
        {"digests": "!"},
        {"digests": ""},
        {"rest": 5},
        {"rest": [[0]]},
        {"rest": [[10**9, 1]]},
        {"rest": [[0, -1]]},
        {"rest": [[0.0, 1]]},
        {"rest": [["0", 1]]},
        {"piece": -1},
        {"piece": "x"},
        {"file": "../outside", "size": 1, "sha256": "0" * 64},
        {"file": "/etc/passwd", "size": 1, "sha256": "0" * 64},
        {"file": "original.dsctl", "size": 10**15, "sha256": "0" * 64},
        {"file": "original.dsctl", "size": 1},
    ],
)
def test_a_record_that_no_run_wrote_is_refused(
    plan: Plan, made: Path, records: list[dict[str, Any]], tmp_path: Path, change: dict[str, Any]
) -> None:
    (one,) = segments(plan, made, records, plan.files[0].name)
    line = json.loads(one.lines.splitlines()[0]) | change
    bad = one._replace(lines=json.dumps(line).encode() + b"\n")
    with pytest.raises(ResumeError, match="the record of its unfinished work is not valid"):
        restored(plan, tmp_path / "inner", [bad])
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"original.dsctl.part"}


def test_what_is_recorded_is_not_recorded_twice(plan: Plan, made: Path, records: list[dict[str, Any]]) -> None:
    first, second = plan.files[0].name, plan.files[1].name
    work = RecordedWork(plan)
    (one,) = work.segments(made, records, {first})
    (two,) = work.segments(made, records, {first, second})
    assert not list(work.segments(made, records, {first, second})) and not work.stale(records)
    assert one.journal.endswith("journal-00001.jsonl") and two.journal.endswith("journal-00002.jsonl")
    assert set(one.lines.splitlines()).isdisjoint(two.lines.splitlines())
    # A journal that forgot the work of a job: what the repository says of it is not true any more.
    number = next(job.number for job in plan.jobs if first in job.files)
    assert work.stale([record for record in records if record.get("job") != number])
    again = RecordedWork(plan)
    for number, segment in enumerate((one, two), 1):
        again.learn(number, segment.lines, "hf://me/made")
    assert again.known == work.known and again.last == 2


def test_only_names_that_dsctl_gives_are_segments() -> None:
    names = ("journal-00002.jsonl", "journal-1.jsonl", "journal-00010.jsonl", "journal-x.jsonl", "journal-00000.jsonl")
    assert numbers(f".dsctl-run/{name}" for name in (*names, "journal-²³.jsonl", "rest-00003.bin")) == [2, 10]
