"""Hand jobs to workers, record their receipts in the journal, and give finished files their names."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from dsctl.core.errors import FormatError
from dsctl.core.files import PART, failure, make_folders, sync_folder, write_all
from dsctl.plan.plan import Job, OutFile, Plan
from dsctl.run.consume import Consumer
from dsctl.run.events import Advanced, Committed, EventReport
from dsctl.run.journal import Journal
from dsctl.run.resuming import RunState
from dsctl.run.signing import as_text
from dsctl.run.staging import Room
from dsctl.work.executors import Executor
from dsctl.work.tasks import Receipt, Seal, add


def prepare_all(plan: Plan, target: Path, state: RunState, todo: Iterable[Job]) -> None:
    """Make every file that does not have its final name yet, and sync its folder.

    Raises:
        WorkError: the folder cannot be written.
    """
    waiting = _waiting(plan.files, todo)
    for file in plan.files:
        if file.name not in state.committed:
            _prepare(file, target, finished=not waiting[file.name])
    for folder in sorted({(target / file.name).parent for file in plan.files} | {target}):
        sync_folder(folder)


def _prepare(file: OutFile, target: Path, finished: bool = False) -> None:
    """Make a file's `.part` with its header and known bytes; an existing one keeps its other bytes.

    If all work on it is finished, it may have its final name.
    """
    path = target / (file.name + PART)
    if finished and (target / file.name).is_file():
        return
    try:
        (target / file.name).unlink(missing_ok=True)
        make_folders(path.parent)
        if path.is_symlink() or (path.exists() and path.stat().st_size != file.size):
            path.unlink()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            os.truncate(descriptor, file.size)
            for offset, data in ((0, file.header), *file.literals):
                write_all(descriptor, data, offset)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise failure(path, error) from None


@dataclass(slots=True)
class Dispatch:
    """The work of one run: `carry_out` does the jobs that are not done, and commits every file.

    With `sha256`, each finished file is read back once more for its SHA-256; otherwise only the files whose SHA-256 is
    known. `sent` are placeholders of uploaded files, which cannot be read back. Jobs wait for `room` on the disk, if it
    is limited. `state` is kept up to date.
    """

    plan: Plan
    target: Path
    journal: Journal
    state: RunState
    sha256: bool = False
    consumer: Consumer | None = None
    sent: frozenset[str] = frozenset()
    room: Room | None = None

    @property
    def is_done(self) -> bool:
        """Whether every file has its name, and its SHA-256 if it needs one."""
        return not any(map(self._is_open, self.plan.files))

    def carry_out(self, workers: Executor, todo: deque[Job], report: EventReport) -> None:
        """Do these jobs, and commit the files whose jobs are all done.

        Raises:
            DsctlError: a job failed, or the journal or a file cannot be written; the same call resumes.
        """
        waiting, jobs = _waiting(self.plan.files, todo), {job.number: job for job in todo}
        files = {file.name: file for file in self.plan.files}
        ready = deque(file for file in self.plan.files if not waiting[file.name] and self._is_open(file))
        busy = 0
        while todo or ready or busy:
            for file in [file for file in ready if not self._is_read_back(file)]:
                ready.remove(file)
                self._commit(file, report)
            while busy < workers.capacity and (ready or self._may_begin(todo, busy)):
                workers.submit(Seal(ready.popleft().name) if ready else todo.popleft())
                busy += 1
            if not busy:
                continue
            receipt = workers.next(lambda nbytes: report(Advanced(nbytes)))
            busy -= 1
            if receipt.file is not None:
                self._commit(files[receipt.file], report, receipt.sha256)
                continue
            assert receipt.job is not None
            self._take(jobs[receipt.job], receipt)
            for name in jobs[receipt.job].files:
                waiting[name] -= 1
                if not waiting[name]:
                    ready.append(files[name])

    def _may_begin(self, todo: Sequence[Job], busy: int) -> bool:
        """Whether there is a next job, and room for it; it waits for room if nothing else is going on."""
        if not todo or self.room is None or self.room.take(todo[0]):
            return bool(todo)
        if not busy:
            self.room.wait(todo[0])
        return not busy

    def report_finished(self, report: EventReport) -> None:
        """Report the files that an earlier run finished and did not send."""
        for file in self.plan.files:
            entry = self.state.committed.get(file.name)
            if entry is not None and file.name not in self.sent and not self._is_open(file):
                report(Committed(file.name, entry))

    def _is_read_back(self, file: OutFile) -> bool:
        return self.sha256 or file.name in self.plan.released

    def _is_open(self, file: OutFile) -> bool:
        """Whether a file waits for its name, or for its SHA-256."""
        entry = self.state.committed.get(file.name)
        return entry is None or (self._is_read_back(file) and not entry.sha256 and file.name not in self.sent)

    def _take(self, job: Job, receipt: Receipt) -> None:
        """Record the receipt of a job, whose output is on the disk."""
        self.journal.append({"job": job.number, "counts": receipt.counts, "digests": as_text(receipt.digests)})
        if self.consumer:
            self.consumer.done(job.number)
        add(self.state.counts, receipt.counts)
        self.state.digests.add(job, receipt.digests)
        for what, seconds in receipt.seconds.items():
            self.state.seconds[what] = self.state.seconds.get(what, 0.0) + seconds

    def _commit(self, file: OutFile, report: EventReport, sha256: str = "") -> None:
        """Give a file its final name, and record that.

        Raises:
            FormatError: it is not the file that the plan says; it keeps its unfinished name.
        """
        known = self.state.committed.get(file.name)
        entry = replace(known, sha256=sha256) if known else self.state.digests.entry(file, sha256)
        if self.plan.trees.get(file.name, entry.tree) != entry.tree:
            what = "does not become the file that the delta was made for: the base or the delta is damaged, or changed"
            raise FormatError(f"{file.name}: {what}", hint="verify both, then start over with --force")
        _rename(self.target, file.name)
        record = {"file": file.name, "size": file.size} | ({"sha256": sha256} if sha256 else {})
        self.journal.append(record)
        self.state.committed[file.name] = entry
        report(Committed(file.name, entry))


def _waiting(files: Iterable[OutFile], todo: Iterable[Job]) -> dict[str, int]:
    """The number of jobs that each file waits for."""
    waiting = {file.name: 0 for file in files}
    for job in todo:
        for name in job.files:
            waiting[name] += 1
    return waiting


def _rename(target: Path, file: str) -> None:
    path = target / file
    part = path.with_name(path.name + PART)
    try:
        if part.exists():
            os.rename(part, path)
        sync_folder(path.parent)
    except OSError as error:
        raise failure(path, error) from None
