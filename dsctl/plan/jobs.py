"""Runs of steps for workers: each reads one source file, and all have about the same size in bytes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby, islice

from dsctl.plan.large import cut_up
from dsctl.plan.plan import Job
from dsctl.plan.steps import Step

JOB_BYTES = 256 << 20


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
    files: dict[str, None] = {}
    for step in steps:
        for region in step.writes:
            for part in region.parts:
                files[part.file] = None
        for copy in step.copies:
            files[copy.write.file] = None
    return Job(number, tuple(steps), tuple(files))
