"""A layout for the recipe: a folder per rank, in which every name begins with `mine.`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from dsctl.core.errors import PlanError
from dsctl.core.header import PT
from dsctl.core.params import Family, Param
from dsctl.layouts.layout import Slot
from dsctl.layouts.published import folder
from dsctl.layouts.ranks import Shares


@dataclass(frozen=True, slots=True)
class Toy:
    """A rank's files have the names of the whole checkpoint's; `alone` is the folder where nothing else is read."""

    shares: Shares | None = None
    alone: str = ""
    name: ClassVar[str] = "toy"
    metadata: ClassVar[Mapping[str, str]] = PT
    published: ClassVar[bool] = False
    foldered: ClassVar[bool] = True
    respelled: ClassVar[Mapping[str, str]] = {}

    def arranged(self, families: Iterable[Family], shares: Shares | None, alone: str = "") -> Toy:
        if shares is None:
            raise PlanError("layout toy is one of ranks", hint="dsctl shard SRC DST --layout toy --tp N")
        return Toy(shares, alone)

    def slots(self, param: Param) -> tuple[Slot, ...]:
        held = self.shares.boxes(param) if self.shares else ()
        origin = (0,) * len(param.shape)
        return tuple([Slot(folder(rank), f"mine.{param.name}", box, box.shape, origin) for rank, box in held])

    def shard_of(self, file: str) -> str:
        return self.alone or file.partition("/")[0]

    def file(self, shard: str, home: str) -> str:
        return f"{shard}/{home}"

    def home(self, file: str) -> str | None:
        return file if self.alone else file.partition("/")[2]

    def texts(self, config: Mapping[str, Any]) -> dict[str, bytes]:
        return {}
