"""Files with the whole checkpoint's names: in one name space, or in a folder per rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dsctl.core.boxes import Box
from dsctl.core.header import PT
from dsctl.core.params import Family, Param
from dsctl.layouts.ranks import Shares


@dataclass(frozen=True, slots=True)
class RankFolders:
    """The common part of layouts with a folder per rank. `alone` is that folder if only one rank's folder is read."""

    shares: Shares | None = None
    alone: str = ""
    metadata: ClassVar[Mapping[str, str]] = PT
    spelled: ClassVar[Mapping[str, str]] = {}
    dialects: ClassVar[tuple[str, ...]] = ()

    @property
    def foldered(self) -> bool:
        return self.shares is not None

    def held(self, param: Param) -> list[tuple[str, int, Box]]:
        """The regions of a parameter: folder ("" for the whole checkpoint), rank and region."""
        if self.shares is None:
            return [("", 0, Box.whole(param.shape))]
        return [(folder(rank), rank, box) for rank, box in self.shares.boxes(param)]

    def decoded(self, family: Family) -> str:
        return ""

    def drops_drafter(self, families: Iterable[Family]) -> bool:
        return False

    def shard_of(self, file: str) -> str:
        return "" if self.shares is None else self.alone or file.partition("/")[0]

    def file(self, shard: str, home: str) -> str:
        return f"{shard}/{home}" if shard else home

    def home(self, file: str) -> str | None:
        return file if self.shares is None or self.alone else file.partition("/")[2]

    def texts(self, config: Mapping[str, Any]) -> dict[str, bytes]:
        return {}


def folder(rank: int) -> str:
    """The folder name of a rank."""
    return f"rank-{rank:05d}"
