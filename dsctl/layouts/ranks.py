"""Shares of a model by rank: numbers and boxes, no names.

Ranks: a model is cut into `pp` stages of consecutive layers; within a stage attention and dense matrices are cut over
`tp` ranks, and routed experts are assigned in `ep` parts. With ep <= tp an expert is cut over tp / ep ranks; with
ep > tp a stage has ep ranks, which hold ep / tp copies of everything except the experts, each for a share of the batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from dsctl.core.boxes import Box
from dsctl.core.errors import PlanError, UsageError
from dsctl.core.params import Family, Param

# The most missing ranks that a message lists.
NAMED = 16


@dataclass(frozen=True, slots=True)
class Ranks:
    """Tensor, expert and pipeline parallel sizes."""

    tp: int = 1
    ep: int = 1
    pp: int = 1

    @property
    def stage(self) -> int:
        """Ranks of one pipeline stage."""
        return max(self.tp, self.ep)

    @property
    def world(self) -> int:
        """All ranks."""
        return self.stage * self.pp

    @property
    def copies(self) -> int:
        """Copies of everything except the experts, each serving a share of the batch."""
        return max(1, self.ep // self.tp)

    @property
    def expert_cut(self) -> int:
        """The number of ranks over which an expert is cut."""
        return max(1, self.tp // self.ep)

    def cut(self, family: Family) -> int:
        """The number of ranks over which a family's parameters are cut, if they are cut."""
        return self.expert_cut if family.experts else self.tp


def stages(layers: Sequence[int], pp: int) -> dict[int, int]:
    """The pipeline stage of every layer: runs of nearly equal length, longer ones first."""
    size, longer = divmod(len(layers), pp)
    numbers = (stage for stage in range(pp) for _ in range(size + (stage < longer)))
    return dict(zip(layers, numbers, strict=True))


def main_layers(families: Iterable[Family]) -> tuple[int, ...]:
    """The main model's layer numbers."""
    return tuple(sorted({layer for family in families if not family.mtp for layer in family.layers}))


@lru_cache(1 << 16)
def share(shape: tuple[int, ...], dimension: int | None, index: int, parts: int, padded: bool = False) -> Box:
    """Part `index` of `parts` of a shape along one dimension, or the whole. Equal boxes are one object.

    `padded`: parts may be uneven, see `Box.padded_part`.
    """
    whole = Box.whole(shape)
    if dimension is None or parts == 1:
        return whole
    return (whole.padded_part if padded else whole.part)(dimension, index, parts)


def rows_left(family: Family, parts: int) -> bool:
    """Whether every one of so many parts of a table has rows."""
    rows = family.shape[0]
    return (parts - 1) * -(-rows // parts) < rows


@dataclass(frozen=True, slots=True)
class Shares:
    """Each rank's share of a model.

    `stage_of` is every main layer's pipeline stage (MTP layers go with the last); `present` are the ranks under
    consideration. `placed` lists, for a layer, the experts of each of its `ep` parts; an expert may be in several
    parts. Layers without an entry assign experts in contiguous blocks.
    """

    ranks: Ranks
    stage_of: Mapping[int, int]
    present: tuple[int, ...]
    placed: Mapping[int, tuple[frozenset[int], ...]] = field(default_factory=dict)

    @property
    def absent(self) -> tuple[int, ...]:
        """The ranks that are not present."""
        return tuple(sorted({*range(self.ranks.world)}.difference(self.present)))

    @property
    def said(self) -> str:
        """The absent ranks in words, such as "ranks 1, 3 of 4 are missing"; empty if all are present."""
        numbers = self.absent
        if not numbers:
            return ""
        named = ", ".join(map(str, numbers[:NAMED])) + (", ..." if len(numbers) > NAMED else "")
        world = self.ranks.world
        return f"rank {named} of {world} is missing" if len(numbers) == 1 else f"ranks {named} of {world} are missing"

    @classmethod
    def of(
        cls,
        families: Iterable[Family],
        ranks: Ranks,
        present: tuple[int, ...] = (),
        placed: Mapping[int, tuple[frozenset[int], ...]] | None = None,
    ) -> Shares:
        """The shares of a model's families; `present` defaults to all ranks."""
        layers = stages(main_layers(families), ranks.pp)
        return cls(ranks, layers, present or tuple(range(ranks.world)), placed or {})

    def boxes(self, param: Param) -> Iterator[tuple[int, Box]]:
        """Every present rank that holds a part of a parameter, with that part."""
        family, size = param.family, self.ranks.stage
        stage, parts, holders = self._stage(param), self.ranks.cut(family), self._holders(param)
        for rank in self.present:
            if rank // size == stage and (holders is None or rank % size // parts in holders):
                yield rank, share(family.shape, family.split, rank % size % parts, parts, family.table)

    def pattern(self, param: Param) -> tuple[int, int | None, int | None]:
        """The key of `boxes`: parameters of one family with equal keys have the same shares."""
        return self._stage(param), param.expert, param.layer if param.layer in self.placed else None

    def experts(self, rank: int, layer: int, count: int) -> list[int]:
        """The experts of a layer that a rank holds wholly or partly, in order; the layer has `count` experts."""
        part = rank % self.ranks.stage // self.ranks.expert_cut
        if layer in self.placed:
            return sorted(self.placed[layer][part])
        each = count // self.ranks.ep
        return list(range(part * each, (part + 1) * each))

    def _stage(self, param: Param) -> int:
        last = self.ranks.pp - 1
        if param.family.last or param.family.mtp:
            return last
        return 0 if param.layer is None else self.stage_of[param.layer]

    def _holders(self, param: Param) -> Collection[int] | None:
        """The `ep` parts that hold an expert; None for a parameter that every part holds."""
        if param.expert is None or param.layer is None:
            return None
        if param.layer in self.placed:
            return [part for part, held in enumerate(self.placed[param.layer]) if param.expert in held]
        return (param.expert // (param.family.experts // self.ranks.ep),)


def check(families: Iterable[Family], ranks: Ranks, place: str) -> None:
    """Refuse sizes that contradict each other or the model; `place` names the model in messages.

    Raises:
        UsageError: tp and ep do not divide one another. PlanError: the model cannot be split so.
    """
    families = tuple(families)
    if max(ranks.tp, ranks.ep) % min(ranks.tp, ranks.ep):
        raise UsageError(f"--tp {ranks.tp} with --ep {ranks.ep}: one must be a multiple of the other")
    experts = {family.experts for family in families if family.experts}
    for number in sorted(experts):
        if number % ranks.ep:
            fits = ", ".join(str(part) for part in range(1, number + 1) if number % part == 0)
            what = f"{place}: {number} experts cannot be split into {ranks.ep} equal parts"
            raise PlanError(what, hint=f"possible numbers of parts: {fits}")
    if ranks.ep > 1 and not experts:
        raise PlanError(f"{place}: has no experts for --ep {ranks.ep}", hint="leave --ep out")
    layers = len(main_layers(families))
    if ranks.pp > layers:
        raise PlanError(f"{place}: {layers} layers are too few for --pp {ranks.pp}", hint=f"--pp {layers} at most")
