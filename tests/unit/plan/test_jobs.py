"""Steps become jobs: all of them, in order, each job of one source file and of about as many bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from dsctl.codecs.plain import Plain
from dsctl.core.boxes import Box
from dsctl.core.header import TensorSpec
from dsctl.plan.jobs import JOB_BYTES, jobs_of, source_order, spread
from dsctl.plan.plan import files_read
from dsctl.plan.steps import Copy, Part, Region, Step

MIB = 1 << 20


def _step(name: str, mib: int, file: str = "a", offset: int = 0, to: str = "out", dtype: str = "U8") -> Step:
    """A step that reads so many MiB and writes as many values."""
    shape = (mib, MIB)

    def region(file: str, dtype: str, at: int) -> Region:
        part = Part("values", file, at, TensorSpec(dtype, shape))
        return Region(Box.whole(shape), Plain(dtype), (part,), shape, (0, 0))

    return Step(name, shape, "recode", (region(file, "U8", offset),), (region(to, dtype, 0),))


def test_no_steps_make_no_jobs() -> None:
    assert list(jobs_of([])) == []


def test_steps_of_one_file_are_one_job_as_long_as_it_is_small() -> None:
    steps = [_step(str(number), 64) for number in range(9)]
    assert [len(job.steps) for job in jobs_of(steps)] == [4, 4, 1]
    assert JOB_BYTES == 4 * 64 * MIB


def test_the_larger_of_what_is_read_and_written_counts() -> None:
    assert [len(job.steps) for job in jobs_of([_step(str(n), 64, dtype="F32") for n in range(3)])] == [1, 1, 1]


def test_another_file_begins_another_job() -> None:
    jobs = list(jobs_of([_step("1", 1), _step("2", 1, "b"), _step("3", 1, "b"), _step("4", 1)]))
    assert [[step.name for step in job.steps] for job in jobs] == [["1"], ["2", "3"], ["4"]]


def test_a_step_larger_than_a_job_is_one_by_itself() -> None:
    jobs = list(jobs_of([_step("1", 1), _step("2", 300), _step("3", 1)]))
    assert [[step.name for step in job.steps] for job in jobs] == [["1"], ["2"], ["3"]]


def test_a_job_names_every_file_that_it_writes_once() -> None:
    scale = Part("scale", "kept", 0, TensorSpec("F32", (1,)))
    copying = structs.replace(_step("3", 1, to="x"), copies=(Copy(scale, scale),))
    (job,) = jobs_of([_step("1", 1, to="y"), _step("2", 1, to="x"), copying])
    assert job.files == ("y", "x", "kept")
    assert files_read(job) == {"a", "kept"}


@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from("abc"), st.sampled_from(["U8", "F32"])), max_size=30))
def test_jobs_keep_order_and_bytes(sizes: list[tuple[int, str, str]]) -> None:
    steps = [_step(str(n), mib, file, dtype=dtype) for n, (mib, file, dtype) in enumerate(sizes)]
    jobs = list(jobs_of(steps))
    assert [step for job in jobs for step in job.steps] == steps
    assert [job.number for job in jobs] == list(range(len(jobs)))
    assert sum(step.read_bytes for job in jobs for step in job.steps) == sum(step.read_bytes for step in steps)
    for job in jobs:
        assert len({step.reads[0].parts[0].file for step in job.steps}) == 1
        assert len(job.steps) == 1 or sum(max(s.read_bytes, s.written_bytes) for s in job.steps) <= JOB_BYTES


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5)), max_size=10))
def test_steps_are_sorted_by_their_first_byte(places: list[tuple[str, int]]) -> None:
    steps = sorted((_step("w", 1, file, offset) for file, offset in places), key=source_order)
    assert [source_order(step) for step in steps] == sorted(places)


def test_small_files_make_a_job_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsctl.plan.jobs.JOB_BYTES", 0)
    assert len(list(jobs_of([_step(str(number), 1) for number in range(3)]))) == 3


def test_jobs_at_the_same_time_write_to_different_files() -> None:
    jobs = list(jobs_of(_step(f"{file}{n}", 256, file, to=file) for file in "abcd" for n in range(3)))
    found = " ".join(job.steps[0].name for job in spread(jobs, 3))
    assert found == "a0 b0 c0 a1 b1 c1 a2 b2 c2 d0 d1 d2"


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 5)), max_size=12), st.integers(1, 9))
def test_spreading_keeps_every_job_and_the_order_within_a_file(runs: list[tuple[str, int]], lanes: int) -> None:
    steps = [_step(f"{number}-{n}", 256, to=file) for number, (file, count) in enumerate(runs) for n in range(count)]
    jobs = list(jobs_of(steps))
    found = list(spread(jobs, lanes))
    assert sorted(found) == jobs
    assert lanes > 1 or found == jobs
    for run in range(len(runs)):
        numbers = [job.number for job in found if job.steps[0].name.startswith(f"{run}-")]
        assert numbers == sorted(numbers)
