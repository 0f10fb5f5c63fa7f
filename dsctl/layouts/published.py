"""The published layout: every parameter under its own name, in files joined by an index; or in a folder per rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from dsctl.core.params import Family, Param
from dsctl.layouts.folders import RankFolders
from dsctl.layouts.layout import Slot, whole
from dsctl.layouts.ranks import Shares


@dataclass(frozen=True, slots=True)
class PublishedLayout(RankFolders):
    """One name space over all files, or one per rank."""

    name: ClassVar[str] = "published"
    respelled: ClassVar[Mapping[str, str]] = {}

    @property
    def published(self) -> bool:
        return self.shares is None

    def arranged(self, families: Iterable[Family], shares: Shares | None, alone: str = "") -> PublishedLayout:
        return PublishedLayout(shares, alone)

    def slots(self, param: Param) -> tuple[Slot, ...]:
        if self.shares is None:
            return (whole(param, "", param.name),)
        origin = (0,) * len(param.shape)
        return tuple([Slot(folder, param.name, box, box.shape, origin) for folder, _, box in self.held(param)])
