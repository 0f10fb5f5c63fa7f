"""The time of a run: its shares, its rate, and what limited it."""

from __future__ import annotations

import pytest

from dsctl.run.events import Advanced, Event, Worked
from dsctl.run.pace import LEAST_BYTES, Pace, Watch, limited
from dsctl.work.tasks import COMPUTE, DIGEST, PROCESSOR, READ, WRITE

JOBS = {READ: 1.0, COMPUTE: 2.0, DIGEST: 1.0, WRITE: 4.0, PROCESSOR: 4.0}


def test_shares_are_those_of_the_time_of_the_jobs() -> None:
    pace = Pace(4.0, 3.0, 100, 200, JOBS, "disk")
    assert pace.shares == {READ: 0.125, COMPUTE: 0.25, DIGEST: 0.125, WRITE: 0.5}
    assert pace.rate == 50
    assert pace.json() == {
        "seconds": 4.0, "bytes_read": 100, "bytes_written": 200, "bytes_per_second": 50, "limit": "disk",
        "shares": {READ: 0.125, COMPUTE: 0.25, DIGEST: 0.125, WRITE: 0.5},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("working", "threads", "cores", "remote", "limit"),
    [
        # 4 seconds of processor in one of wall time: four cores are busy.
        (1.0, 8, 4, False, "processor"),
        (1.0, 4, 16, False, "workers"),
        (1.0, 32, 16, False, "disk"),
        (4.0, 1, 4, False, "workers"),
        (40.0, 1, 4, False, "disk"),
        (40.0, 1, 4, True, "disk"),
    ],
)
def test_the_limit_is_what_was_waited_for(working: float, threads: int, cores: int, remote: bool, limit: str) -> None:
    assert limited(JOBS, working, threads, cores, remote) == limit


def test_a_remote_source_that_is_waited_for_is_the_network() -> None:
    assert limited(JOBS | {READ: 9.0}, 40.0, 1, 4, True) == "network"
    assert limited(JOBS | {READ: 9.0}, 40.0, 1, 4, False) == "disk"


def test_a_watch_takes_the_events_and_passes_them_on() -> None:
    watch, told = Watch(2, 4, False), list[Event]()
    report = watch.beside(told.append)
    assert watch.pace() is None
    events = [Advanced(30), Advanced(12), Worked(84, JOBS)]
    for event in events:
        report(event)
    pace = watch.pace()
    assert told == events and pace is not None
    assert (pace.read, pace.written, pace.jobs) == (42, 84, JOBS) and 0 < pace.working <= pace.seconds
    assert pace.limit is None, "84 bytes do not tell"
    report(Worked(LEAST_BYTES, JOBS))
    assert (known := watch.pace()) is not None and known.limit in ("processor", "workers", "disk")


def test_a_run_without_jobs_has_no_pace() -> None:
    watch = Watch(1, 1, False)
    watch.beside(lambda event: None)(Worked(0, {}))
    assert watch.pace() is None
