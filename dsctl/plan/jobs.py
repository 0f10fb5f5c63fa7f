"""Runs of steps for workers: each reads one source file, and all have about the same size in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dsctl.plan.plan import Job
from dsctl.plan.steps import Step

JOB_BYTES = 256 << 20


def source_order(step: Step) -> tuple[str, int]:
    """The file and the offset of the first byte that a step reads."""
    first = step.reads[0].parts[0]
    return first.file, first.offset


def jobs_of(steps: Iterable[Step]) -> Iterator[Job]:
    """The jobs of steps in source order."""
    run: list[Step] = []
    size = number = 0
    for step in steps:
        cost = max(step.read_bytes, step.written_bytes)
        full = run and (size + cost > JOB_BYTES or run[-1].reads[0].parts[0].file != step.reads[0].parts[0].file)
        if full:
            yield _job(number, run)
            run, size, number = [], 0, number + 1
        run.append(step)
        size += cost
    if run:
        yield _job(number, run)


def _job(number: int, steps: list[Step]) -> Job:
    files: dict[str, None] = {}
    for step in steps:
        for region in step.writes:
            for part in region.parts:
                files[part.file] = None
        for copy in step.copies:
            files[copy.write.file] = None
    return Job(number, tuple(steps), tuple(files))
