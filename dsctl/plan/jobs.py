"""Runs of steps for workers: each reads one source file, and all have about the same size in bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby, islice

from dsctl.plan.large import cut_up
from dsctl.plan.plan import Job
from dsctl.plan.steps import Step

JOB_BYTES = 256 << 20
# A job that writes to files in turn more often than this stays whole.
MOST_RUNS = 64


def source_order(step: Step) -> tuple[str, int]:
    """The file and the offset of the first byte that a step reads."""
    first = step.reads[0].parts[0]
    return first.file, first.offset


def jobs_of(steps: Iterable[Step]) -> Iterator[Job]:
    """The jobs of steps in source order; a very large step is the work of several jobs."""
    run: list[Step] = []
    size = number = 0
    for step in (part for whole in steps for part in cut_up(whole, JOB_BYTES)):
        cost = max(step.read_bytes, step.written_bytes)
        full = run and (size + cost > JOB_BYTES or run[-1].reads[0].parts[0].file != step.reads[0].parts[0].file)
        if full:
            yield _job(number, run)
            run, size, number = [], 0, number + 1
        run.append(step)
        size += cost
    if run:
        yield _job(number, run)


def apart(jobs: Iterable[Job]) -> Iterator[Job]:
    """The same work, with jobs that end where the next weight file begins, as far as a job writes to few in turn.

    Then the work on one finished file never depends on a file that is not finished.
    """
    number = 0
    for job in jobs:
        runs = [list(run) for _, run in groupby(job.steps, key=weight_files)] if len(job.files) > 1 else [job.steps]
        for run in runs if len(runs) <= MOST_RUNS else [job.steps]:
            yield _job(number, list(run))
            number += 1


def weight_files(step: Step) -> frozenset[str]:
    """The files that a step writes to, without side files."""
    return frozenset(file for file in _files([step]) if not is_side(file))


def is_side(file: str) -> bool:
    """Whether an output file keeps what only dsctl reads: many jobs write a few of its bytes each."""
    return file.endswith(".dsctl")


def spread(jobs: Iterable[Job], lanes: int) -> Iterator[Job]:
    """The same jobs in another order: this many in a row write to different files, as far as there are so many.

    A system lets one thread at a time write to a file: with 16 that write to the same one, most of them wait.
    """
    runs = (deque(run) for _, run in groupby(jobs, key=lambda job: job.files[:1]))
    active = deque(islice(runs, lanes))
    while active:
        run = active.popleft()
        yield run.popleft()
        if run or (run := next(runs, deque())):
            active.append(run)


def _job(number: int, steps: list[Step]) -> Job:
    return Job(number, tuple(steps), tuple(_files(steps)))


def _files(steps: Iterable[Step]) -> dict[str, None]:
    files: dict[str, None] = {}
    for step in steps:
        for region in step.writes:
            for part in region.parts:
                files[part.file] = None
        for copy in step.copies:
            files[copy.write.file] = None
    return files
