"""The published layout: every parameter under its own name, in files joined by an index; or a folder of it per rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dsctl.core.header import PT
from dsctl.core.params import Family, Param
from dsctl.layouts.layout import Slot, whole
from dsctl.layouts.ranks import Shares


@dataclass(frozen=True, slots=True)
class PublishedLayout:
    """One name space over all files, or one per rank.

    A rank's files have the names of the whole checkpoint's, in a folder of the rank; `alone` is that
    folder where nothing else is read.
    """

    shares: Shares | None = None
    alone: str = ""
    name: ClassVar[str] = "published"
    metadata: ClassVar[Mapping[str, str]] = PT
    respelled: ClassVar[Mapping[str, str]] = {}

    @property
    def published(self) -> bool:
        return self.shares is None

    @property
    def foldered(self) -> bool:
        return self.shares is not None

    def arranged(self, families: Iterable[Family], shares: Shares | None, alone: str = "") -> PublishedLayout:
        return PublishedLayout(shares, alone)

    def slots(self, param: Param) -> tuple[Slot, ...]:
        if self.shares is None:
            return (whole(param, "", param.name),)
        origin = (0,) * len(param.shape)
        return tuple([Slot(folder(rank), param.name, box, box.shape, origin) for rank, box in self.shares.boxes(param)])

    def shard_of(self, file: str) -> str:
        return "" if self.shares is None else self.alone or file.partition("/")[0]

    def file(self, shard: str, home: str) -> str:
        return f"{shard}/{home}" if shard else home

    def home(self, file: str) -> str | None:
        return file if self.shares is None or self.alone else file.partition("/")[2]

    def texts(self, config: Mapping[str, Any]) -> dict[str, bytes]:
        return {}


def folder(rank: int) -> str:
    """The name of a rank's folder."""
    return f"rank-{rank:05d}"
