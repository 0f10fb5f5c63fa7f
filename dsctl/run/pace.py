"""The time that a run took, its parts, and what limited it. Data, no torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dsctl.run.events import Advanced, Event, EventReport, Worked
from dsctl.work.tasks import COMPUTE, DIGEST, PROCESSOR, READ, WRITE

SHARES = (READ, COMPUTE, DIGEST, WRITE)
# The least bytes written of a run that says something about the machine.
LEAST_BYTES = 256 << 20
# With this share of its processors busy, a run is limited by them.
BUSY = 0.6


@dataclass(frozen=True, slots=True)
class Pace:
    """Wall-clock seconds of a run, and the bytes that it read and wrote itself.

    `working` are the seconds between the first bytes and the last receipt, `jobs` those of all jobs together, by what
    they were spent on. `limit` is what the run waited for: processor, workers (each of them was busy, but not every
    core), disk or network; None if it wrote too little to tell.
    """

    seconds: float
    working: float
    read: int
    written: int
    jobs: Mapping[str, float]
    limit: str | None

    @property
    def rate(self) -> float:
        """Bytes written per second."""
        return self.written / max(self.seconds, 1e-9)

    @property
    def shares(self) -> dict[str, float]:
        """The shares of reading, computing, digesting and writing in the time of the jobs."""
        total = sum(self.jobs.get(name, 0.0) for name in SHARES)
        return {name: self.jobs.get(name, 0.0) / total if total else 0.0 for name in SHARES}

    def json(self) -> dict[str, Any]:
        """The fields that `--json` prints."""
        return {
            "seconds": round(self.seconds, 3),
            "bytes_read": self.read,
            "bytes_written": self.written,
            "bytes_per_second": round(self.rate),
            "limit": self.limit,
            "shares": {name: round(share, 3) for name, share in self.shares.items()},
        }


@dataclass(slots=True)
class Watch:
    """Takes the events of a run, and gives its pace. `threads` are the jobs at once, `cores` the processors."""

    threads: int
    cores: int
    remote: bool
    _began: float = field(default_factory=time.monotonic)
    _first: float = 0.0
    _read: int = 0
    _worked: Worked | None = None
    _last: float = 0.0

    def beside(self, report: EventReport) -> EventReport:
        """A report that also notes the events here."""

        def both(event: Event) -> None:
            self._note(event)
            report(event)

        return both

    def _note(self, event: Event) -> None:
        if isinstance(event, Advanced):
            self._first = self._first or time.monotonic()
            self._read += event.nbytes
        elif isinstance(event, Worked):
            self._worked, self._last = event, time.monotonic()

    def pace(self) -> Pace | None:
        """The pace so far; None if the run did no jobs."""
        if self._worked is None or not self._worked.seconds:
            return None
        jobs, working = self._worked.seconds, max(self._last - self._first, 1e-9)
        enough = self._worked.written >= LEAST_BYTES
        limit = limited(jobs, working, self.threads, self.cores, self.remote) if enough else None
        return Pace(time.monotonic() - self._began, working, self._read, self._worked.written, jobs, limit)


def limited(jobs: Mapping[str, float], working: float, threads: int, cores: int, remote: bool) -> str:
    """What limited jobs that took `working` seconds together."""
    used = jobs.get(PROCESSOR, 0.0) / working
    if used >= BUSY * cores:
        return "processor"
    if used >= BUSY * threads:
        return "workers"
    return "network" if remote and jobs.get(READ, 0.0) > jobs.get(WRITE, 0.0) else "disk"
