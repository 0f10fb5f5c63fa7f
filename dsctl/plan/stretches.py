"""The stretches of output bytes that each job writes in order, each of which gets a digest. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dsctl.plan.plan import Job
from dsctl.plan.steps import Part, Region


class Written(NamedTuple):
    """Bytes [begin, end) of an output file that one step writes, from the first to the last."""

    file: str
    begin: int
    end: int


def written(job: Job) -> Iterator[Written]:
    """Every stretch that a job writes, in the order of its digests in a receipt. Stretches of no bytes are left out."""
    for step in job.steps:
        for copy in step.copies:
            yield from _whole(copy.write)
        for region in step.writes:
            for part in region.parts:
                yield from _stretch(region, part)


def _whole(part: Part) -> Iterator[Written]:
    if nbytes := part.spec.nbytes:
        yield Written(part.file, part.offset, part.offset + nbytes)


def _stretch(region: Region, part: Part) -> Iterator[Written]:
    """The rows of a stored tensor that a region fills: joined tensors are joined row by row."""
    if region.container == region.box.shape:
        yield from _whole(part)
        return
    place, rows = region.place(part.name, region.box), part.spec.shape[0]
    assert place.shape[1:] == part.spec.shape[1:], f"{part.name}: a joined tensor is cut across its rows"
    row = part.spec.nbytes // rows if rows else 0
    if row and place.shape[0]:
        yield Written(part.file, part.offset + place.start[0] * row, part.offset + place.stop[0] * row)
