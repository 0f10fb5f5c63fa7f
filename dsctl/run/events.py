"""What a run tells whoever watches it: plain values, told one after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Advanced(NamedTuple):
    """Source bytes that are done."""

    nbytes: int


class Committed(NamedTuple):
    """A file that has its final name, its bytes on the disk."""

    file: str
    size: int
    sha256: str


class Resumed(NamedTuple):
    """How much of an interrupted run's work was found done."""

    jobs: int
    of: int
    nbytes: int


Event = Advanced | Committed | Resumed
EventReport = Callable[[Event], None]
