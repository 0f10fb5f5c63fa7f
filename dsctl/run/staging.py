"""The local folder in which the files of a target at a URL are made and wait for their upload, and its room on disk.

A run takes bytes of the room before it writes them and gives them back when a file is safe at the target, so that the
folder never takes more than the room has.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock as Mutex
from typing import NamedTuple

from dsctl.core.amounts import size
from dsctl.core.errors import PlanError
from dsctl.core.files import existing
from dsctl.plan.plan import Job, OutFile, Plan
from dsctl.run.marks import BEGUN
from dsctl.stores import SIGNED, WORKING

# The bytes of a staging folder, unless a run needs more or asks for a different number.
USUAL = 30 * 10**9
# Sent files of this many bytes are saved if the staging folder has room for all of them.
BATCH = 5 * 10**9
# What a file takes beyond its bytes: the rest of its last block, its name and its extents.
OVERHEAD = 8 << 10
# What the journal takes for each job, and for the digests of what each of its steps writes.
_RECEIPT, _STRETCH = 512, 192


def staging(url: str) -> Path:
    """The local folder of an unfinished target: in $DSCTL_STAGING, or else in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = Path(os.environ.get("DSCTL_STAGING") or os.path.join(cache, "dsctl", "staging"))
    return root / hashlib.sha256(url.encode()).hexdigest()[:16]


class Needs(NamedTuple):
    """Bytes of disk that a plan's staging folder takes: `always`; at `least`, if every file is emptied once it is
    finished; and for the `whole` target."""

    always: int
    least: int
    whole: int


def needs(plan: Plan) -> Needs:
    """The bytes of disk for a plan's staging folder. Jobs are done in their order."""
    steps, gathered = sum(len(job.steps) for job in plan.jobs), plan.gathered_most
    # The journal is copied when a run resumes, and other files are written as a sibling first.
    always = sum(map(_known, plan.files)) + gathered + 2 * (_RECEIPT * len(plan.jobs) + _STRETCH * steps)
    always += 2 * (plan.bytes_out - sum(file.size for file in plan.files) - gathered)
    always += OVERHEAD * (len(plan.files) + len(plan.carried) + len(plan.jobs) * plan.gathers + 16)
    held = most = 0
    for job, files in _finishing(plan):
        held += job_bytes(job)
        most = max(most, held)
        held -= sum(map(_made, files))
    return Needs(always, always + most, always + sum(map(_made, plan.files)))


def _finishing(plan: Plan) -> Iterator[tuple[Job, list[OutFile]]]:
    """Every job, and the files that are finished with it."""
    last = {name: job.number for job in plan.jobs for name in job.files}
    ends: dict[int, list[OutFile]] = {}
    for file in plan.files:
        if file.name in last:
            ends.setdefault(last[file.name], []).append(file)
    for job in plan.jobs:
        yield job, ends.get(job.number, [])


def _known(file: OutFile) -> int:
    """The bytes of a file that are written before any job."""
    return len(file.header) + sum(len(data) for _, data in file.literals)


def _made(file: OutFile) -> int:
    """The bytes of a file that jobs write."""
    return file.size - _known(file)


def job_bytes(job: Job) -> int:
    """The bytes that a job writes."""
    return sum(step.written_bytes for step in job.steps)


def budget(need: Needs, folder: Path, asked: int | None) -> int:
    """The bytes of disk for a staging folder: as asked, else `USUAL` or what is free; never more than needed.

    Raises:
        PlanError: the plan cannot work within what was asked for.
    """
    if asked is not None and asked < need.least:
        what = f"{size(asked)} is too little: files that are written at the same time take {size(need.least)}"
        raise PlanError(f"--staging: {what}", hint=f"give --staging {need.least} or more")
    free = shutil.disk_usage(existing(folder)).free + taken(folder)
    return min(need.whole, max(need.least, min(USUAL, free) if asked is None else asked))


def taken(folder: Path) -> int:
    """The bytes of disk that a folder takes."""
    found = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            found += path.lstat().st_blocks * 512
    return found


def batches(plan: Plan, files: int, nbytes: int) -> int:
    """How often finished files reach `files` files or `nbytes` bytes, if jobs are done in their order."""
    count = waiting = held = 0
    for _, finished in _finishing(plan):
        for file in finished:
            waiting, held = waiting + 1, held + file.size
            if waiting >= files or held >= nbytes:
                count, waiting, held = count + 1, 0, 0
    return count


@dataclass(slots=True)
class Room:
    """The room of a staging folder: `most` bytes of disk, of which `taken` are, and `always` before any job.

    `make` frees some of it, by waiting for an upload or by a commit, and returns False if nothing waits for either;
    `settle` waits until all finished files were sent.
    """

    plan: Plan
    most: int
    always: int
    make: Callable[[], bool]
    settle: Callable[[], None]
    taken: int = 0
    _mutex: Mutex = field(default_factory=Mutex)

    def begin(self, done: Collection[int], sent: Collection[str]) -> None:
        """Count the bytes of finished jobs in files that are not at the target yet."""
        self.taken = self.always + sum(job_bytes(job) for job in self.plan.jobs if job.number in done)
        self.free(sent)

    def free(self, files: Iterable[str]) -> None:
        """Give back the bytes of files that are at the target and were emptied."""
        names = set(files)
        freed = sum(_made(file) for file in self.plan.files if file.name in names)
        with self._mutex:
            self.taken -= freed

    def take(self, job: Job) -> bool:
        """Take the bytes that a job writes, if there is room for them."""
        nbytes = job_bytes(job)
        with self._mutex:
            fits = self.taken + nbytes <= self.most
            self.taken += nbytes if fits else 0
        return fits

    def wait(self, job: Job) -> None:
        """Take the bytes of a job when files have made room for them; no other job is running.

        Raises:
            PlanError: there will never be room. WorkError: an upload failed.
        """
        while not self.take(job):
            if not self.make():
                raise PlanError(
                    f"the staging folder needs more than {size(self.most)}", hint="give more with --staging"
                )


def fingerprint_of(folder: Path) -> str:
    """The fingerprint of the plan whose work a staging folder holds, or an empty text."""
    for file in (folder / SIGNED, folder / WORKING / BEGUN):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return str(json.loads(file.read_bytes()).get("fingerprint", ""))
    return ""


def empty(path: Path, size: int) -> None:
    """Free a file's blocks on disk, and keep its size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)
