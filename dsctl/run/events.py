"""The events of a run, as plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Advanced(NamedTuple):
    """Source bytes that have been processed."""

    nbytes: int


class Committed(NamedTuple):
    """A file that has its final name and is on the disk."""

    file: str
    size: int
    sha256: str


class Resumed(NamedTuple):
    """The work of an interrupted run that is already done."""

    jobs: int
    of: int
    nbytes: int


Event = Advanced | Committed | Resumed
EventReport = Callable[[Event], None]
