"""The work on a small checkpoint: which values are drawn, and where their bytes go. Pure, no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from math import prod
from typing import NamedTuple

from dsctl.codecs.codec import Codec
from dsctl.tiny.blueprint import Blueprint, StoredParam

# Values of one task: few enough for an even share of the cores, enough to outweigh a message to a process.
TASK_VALUES = 1 << 21


class Draw(NamedTuple):
    """Everything that decides a parameter's values beside the seed and the deviation.

    `name` seeds the generator: that of the original, if the parameter is a duplicate. `gains`: blocks differ in
    magnitude. `center` is the mean, `below` the limit of whole numbers (0: the values are floats), `dtype` the stored
    dtype of unquantized values.
    """

    name: str
    shape: tuple[int, ...]
    gains: bool
    center: float
    below: int
    dtype: str

    @property
    def values(self) -> int:
        return prod(self.shape)


class Region(NamedTuple):
    """The place of a stored part: its file's number, the offset of its first byte, and the bytes of a row."""

    file: int
    offset: int
    row: int


class Work(NamedTuple):
    """Values to draw and encode once, and the regions to write them to: by part, for each of the duplicates."""

    draw: Draw
    codec: Codec
    regions: tuple[dict[str, Region], ...]

    @property
    def file(self) -> int:
        """The number of the file to write to first."""
        return next(iter(self.regions[0].values())).file


Task = tuple[Work, ...]


def tasks(plan: Blueprint, offsets: Sequence[dict[str, int]]) -> list[Task]:
    """All work on a checkpoint, the largest first, by turns of the files; small parameters share a task.

    A system lets one process at a time write to a file. `offsets` has the place of each tensor's first byte in its
    file, by file.
    """
    places: dict[tuple[Draw, Codec], list[dict[str, Region]]] = {}
    for item in plan.stored:
        places.setdefault((_draw(item), item.codec), []).append(_regions(item, offsets))
    works = [Work(draw, codec, tuple(regions)) for (draw, codec), regions in places.items()]
    turns: dict[tuple[int, int], Iterator[int]] = defaultdict(count)
    return list(_shared(sorted(works, key=lambda work: (-work.draw.values, next(turns[work.draw.values, work.file])))))


def _draw(item: StoredParam) -> Draw:
    param, family = item.param, item.param.family
    center = float(len(param.shape) == 1 and not param.template.endswith("bias"))
    # Whole numbers are seeded by the duplicate's own name.
    name = param.name if family.below else family.twin or param.name
    return Draw(name, param.shape, param.quantizable, center, family.below, family.dtype)


def _regions(item: StoredParam, offsets: Sequence[dict[str, int]]) -> dict[str, Region]:
    return {
        part: Region(place.file, offsets[place.file][place.tensor], place.spec.nbytes // place.spec.shape[0])
        for part, place in item.places.items()
    }


def _shared(works: Iterable[Work]) -> Iterator[Task]:
    """Tasks of about `TASK_VALUES` values, or of one larger parameter."""
    task: list[Work] = []
    for work in works:
        if task and sum(one.draw.values for one in task) + work.draw.values > TASK_VALUES:
            yield tuple(task)
            task = []
        task.append(work)
    if task:
        yield tuple(task)
