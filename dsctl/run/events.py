"""The events of a run, as plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from dsctl.checkpoint.signed_files import SignedFile


class Advanced(NamedTuple):
    """Source bytes that have been processed."""

    nbytes: int


class Committed(NamedTuple):
    """A file that has its final name and is on the disk."""

    file: str
    entry: SignedFile


class Uploading(NamedTuple):
    """A run waits for uploads: the bytes that were sent, of those of all finished files."""

    nbytes: int
    of: int


class Uploaded(NamedTuple):
    """A file that was sent to a target at a URL, and its bytes."""

    file: str
    nbytes: int


class Saved(NamedTuple):
    """A commit of a repository on a hub: the number of the run's files in it, and their bytes."""

    files: int
    nbytes: int
    commit: str


class ReadBack(NamedTuple):
    """The machine was restarted since a run was interrupted: these bytes of its output are read back first."""

    nbytes: int


class Torn(NamedTuple):
    """Jobs whose output was not on the disk after the restart; they are done again."""

    jobs: int


class Worked(NamedTuple):
    """The jobs of this run are done: the bytes that they wrote, and their seconds by what they were spent on."""

    written: int
    seconds: Mapping[str, float]


class Resumed(NamedTuple):
    """The work of an interrupted run that is already done."""

    jobs: int
    of: int
    nbytes: int


Event = Advanced | Committed | Uploading | Uploaded | Saved | ReadBack | Torn | Resumed | Worked
EventReport = Callable[[Event], None]


def advances(advance: Callable[[int], None]) -> EventReport:
    """A report that takes only the bytes that have been processed."""

    def report(event: Event) -> None:
        if isinstance(event, Advanced):
            advance(event.nbytes)

    return report
