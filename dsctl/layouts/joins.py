"""Parameters joined into one tensor: stacked row-wise, or experts stacked along a new dimension."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from dsctl.core.boxes import Box
from dsctl.core.params import Family, Param
from dsctl.layouts.ranks import Shares


class Join(NamedTuple):
    """A family's place in a shared tensor: the tensor's name as a template, whether experts are stacked in it, and the
    families whose rows come before and after.
    """

    template: str
    stacked: bool = False
    before: tuple[Family, ...] = ()
    after: tuple[Family, ...] = ()

    def tensor(self, param: Param) -> str:
        """The tensor's name for a parameter of the family."""
        return param.family.named(self.template, param.layer, param.expert)

    def container(self, box: Box, parts: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shape of the joined rows, and the first row of the family's share; every family is cut into `parts`."""
        above, below = _rows(self.before, parts), _rows(self.after, parts)
        shape, rest = box.shape, len(box.shape) - 1
        return (above + shape[0] + below, *shape[1:]), (above, *(0,) * rest)


def _rows(families: Iterable[Family], parts: int) -> int:
    return sum(family.shape[0] // (parts if family.split == 0 else 1) for family in families)


def joined(families: Sequence[Family], names: Mapping[str, str]) -> dict[tuple[str, bool], Join]:
    """The shared tensor of every named family, by template and whether the family is an MTP layer's. Families
    with the same name share a tensor; if a family with experts has a name without {expert}, its experts are stacked.
    """
    found: dict[tuple[str, bool], Join] = {}
    groups: dict[tuple[str, bool], list[Family]] = {}
    for family in families:
        if family.template in names:
            groups.setdefault((names[family.template], family.mtp), []).append(family)
    for (name, mtp), members in groups.items():
        for place, family in enumerate(members):
            stacked = bool(family.experts) and "{expert}" not in name
            found[family.template, mtp] = Join(name, stacked, tuple(members[:place]), tuple(members[place + 1 :]))
    return found


def stack_of(shares: Shares | None, rank: int, layer: int, expert: int, experts: int) -> tuple[int, int]:
    """The position of an expert among a rank's stacked experts, and their number."""
    if shares is None:
        return expert, experts
    held = shares.experts(rank, layer, experts)
    return held.index(expert), len(held)
