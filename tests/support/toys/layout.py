"""A layout for the recipe: a folder per rank, in which every name begins with `mine.`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from dsctl.core.errors import PlanError
from dsctl.core.params import Family, Param
from dsctl.layouts.folders import RankFolders
from dsctl.layouts.layout import Slot
from dsctl.layouts.ranks import Shares


@dataclass(frozen=True, slots=True)
class Toy(RankFolders):
    """One name space per rank; there is no whole checkpoint in it."""

    name: ClassVar[str] = "toy"
    published: ClassVar[bool] = False
    respelled: ClassVar[Mapping[str, str]] = {}

    def arranged(self, families: Iterable[Family], shares: Shares | None, alone: str = "") -> Toy:
        if shares is None:
            raise PlanError("layout toy needs ranks", hint="dsctl shard SRC DST --layout toy --tp N")
        return Toy(shares, alone)

    def slots(self, param: Param) -> tuple[Slot, ...]:
        origin, tensor = (0,) * len(param.shape), f"mine.{param.name}"
        return tuple([Slot(folder, tensor, box, box.shape, origin) for folder, _, box in self.held(param)])
