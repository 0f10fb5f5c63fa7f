"""Cut the step of a very large parameter into steps over some of its rows, each the work of one job. Pure.

Without this one worker would convert a table of 98 GB alone, and a crash would lose all of its work.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import structs

from dsctl.core.boxes import Box
from dsctl.core.header import TensorSpec
from dsctl.plan.steps import Copy, Part, Region, Step

# Steps of fewer bytes stay whole. The largest matrix of a release without tables has 2.3 GB.
LARGE = 4 << 30


def cut_up(step: Step, nbytes: int) -> Iterator[Step]:
    """The steps, each of about `nbytes` read or written, that together do the same; the step itself if it is small."""
    cost = max(step.read_bytes, step.written_bytes)
    if cost < LARGE or not _is_plain(step):
        yield step
        return
    unit = step.row_step
    rows = max(unit, nbytes * step.shape[0] // cost // unit * unit)
    for band in Box.whole(step.shape).bands(rows):
        writes = tuple(_of_rows(region, both) for region in step.writes if (both := region.box.intersect(band)))
        if writes:
            yield structs.replace(step, writes=writes, copies=tuple(_rows_of(copy, band) for copy in step.copies))


def _is_plain(step: Step) -> bool:
    """Whether bands of rows are independent, and each copied tensor has one row for each row of the parameter."""
    if len(step.shape) != 2 or step.surveyed or step.twins or step.gathers or step.odd is not None:
        return False
    return all(one.spec.shape[:1] == step.shape[:1] for copy in step.copies for one in (copy.read, copy.write))


def _of_rows(region: Region, box: Box) -> Region:
    at = tuple(
        place + start - first for place, start, first in zip(region.at, box.start, region.box.start, strict=True)
    )
    return structs.replace(region, box=box, at=at)


def _rows_of(copy: Copy, band: Box) -> Copy:
    return Copy(_part_rows(copy.read, band), _part_rows(copy.write, band))


def _part_rows(part: Part, band: Box) -> Part:
    row = part.spec.nbytes // part.spec.shape[0]
    spec = TensorSpec(part.spec.dtype, (band.shape[0], *part.spec.shape[1:]))
    return structs.replace(part, offset=part.offset + band.start[0] * row, spec=spec)
