"""A run whose target is at a URL: files are made in a local staging folder and sent as they are finished.

`dsctl.json` comes last and means complete. A file that is safe at the target takes no space here: its digest is
recorded beside the staging folder, which keeps a file of the same size without blocks. With both, the same command
resumes. What the target itself records lets a run on a different machine go on.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dsctl.checkpoint.signed_files import SignedFile, entries_of, read_entry
from dsctl.core.errors import ResumeError, WorkError
from dsctl.core.files import make_folders
from dsctl.plan.plan import Plan
from dsctl.run.driver import Staged
from dsctl.run.events import Committed, Event, EventReport, Saved, Uploaded, Uploading
from dsctl.run.how import SHA256, How
from dsctl.run.journal import Journal
from dsctl.run.locks import Lock
from dsctl.run.marks import outputs
from dsctl.run.recorded_work import journal_of
from dsctl.run.remote_target import RemoteTarget, remote_target
from dsctl.run.staging import BATCH, Needs, Room, batches, budget, empty, fingerprint_of, needs, staging, taken
from dsctl.stores import Store
from dsctl.stores.local import LocalFolder

# Seconds between reports of the bytes that were sent, while a run waits for uploads.
_GLANCE = 1.0


@dataclass(slots=True)
class Delivery:
    """Sends a plan's files to a URL: `begin`, run the plan on `folder`, `finish`, and always `close`.

    The staging folder may take `budget` bytes of disk, and works with the least that it `need`s.
    """

    url: str
    target: RemoteTarget
    how: How
    need: Needs
    budget: int
    state: str = "new"
    _room: Room = field(init=False)
    _sent: dict[str, str] = field(default_factory=dict)
    # Files that were safe at the target, and are not any more.
    _lost: set[str] = field(default_factory=set)
    # Files that were sent, and wait for a commit.
    _unsaved: dict[str, SignedFile] = field(default_factory=dict)
    _said: deque[Event] = field(default_factory=deque)
    _report: EventReport = lambda event: None
    # Bytes of files that were given to be sent, and those of them that were.
    _due: int = 0
    _gone: int = 0
    _notes: Journal | None = None
    _lock: Lock | None = None
    _pending: deque[Future[None]] = field(default_factory=deque)
    _pool: ThreadPoolExecutor | None = None

    def __post_init__(self) -> None:
        self._room = Room(self.plan, self.budget, self.need.always, self._make_room, self._settle)

    @classmethod
    def to(cls, url: str, plan: Plan, how: How) -> Delivery:
        """The delivery of a plan to a URL.

        Raises:
            UsageError: the URL is not that of a target. PlanError: the plan cannot work within `how.staging`.
            SourceError: a store's settings cannot be used.
        """
        target = remote_target(url, plan, how)
        need = needs(target.plan)
        most = budget(need, staging(url) / "made", how.staging)
        return cls(url, target, replace(how, digest=SHA256) if target.sha256 else how, need, most)

    @property
    def plan(self) -> Plan:
        """The plan as the target needs it."""
        return self.target.plan

    @property
    def folder(self) -> Path:
        """The local folder for the target's files."""
        return staging(self.url) / "made"

    @property
    def _batch_bytes(self) -> int:
        """Sent files of this many bytes are saved: half of what the budget allows beyond what is needed."""
        return BATCH if self.budget >= self.need.whole else (self.budget - self.need.least) // 2

    @property
    def commits(self) -> int | None:
        """The most commits of a run, if jobs are done in their order; None if the target has none."""
        if self.target.commits is None:
            return None
        if self.state == "complete":
            return 0
        return self.target.commits + batches(self.plan, self.target.batch_files, self._batch_bytes)

    @property
    def facts(self) -> dict[str, Any]:
        """The delivery as stable JSON."""
        return {
            "state": self.state,
            "files": len(outputs(self.plan)),
            "staging_folder": str(staging(self.url)),
            "staging_bytes": self.budget,
            "staging_least_bytes": self.need.least,
            "commits": self.commits,
            "removed": self.target.removed,
            "repository": self.target.facts or None,
        }

    def check(self, store: Store) -> str:
        """The state of the target: new, resume or complete; raises as `RemoteTarget.check`."""
        self.state = self.target.check(store)
        return self.state

    def audit(self) -> dict[str, Any]:
        """The audit of a complete target; raises as `RemoteTarget.audit`.

        What a run that was killed at the very end left here is removed.
        """
        audit, here = self.target.audit(), staging(self.url)
        if here.exists():
            with contextlib.suppress(ResumeError, WorkError):
                lock = Lock(here.with_suffix(".at-work"), self.target.place)
                shutil.rmtree(here, ignore_errors=True)
                lock.release()
        return audit

    def begin(self, store: Store) -> None:
        """Mark the target as begun, and make the staging folder agree with the files at the target.

        The state may have changed since `check`, because another run may have worked here. It is checked again, with
        the staging folder's lock held.

        Raises:
            ResumeError: another process on this machine is working here, or was in the meantime.
            WorkError: target or staging folder cannot be written.
        """
        target, here = self.target, staging(self.url)
        self._lock = Lock(here.with_suffix(".at-work"), target.place)
        before = target.seen
        state = target.check(store)
        if state == "complete" or (self.how.force and before != target.seen):
            what = "another run worked here in the meantime"
            raise ResumeError(f"{target.place}: {what}", hint="check its result, then run the command again")
        if state == "new" or fingerprint_of(self.folder) != self.plan.fingerprint or _is_older(here):
            shutil.rmtree(here, ignore_errors=True)
        target.begin(store, state)
        self._notes = self._known(store, state)
        for note in self._notes.records:
            if note["file"] in self._lost:
                continue
            self._sent[note["file"]] = str(note["digest"])
            empty(self.folder / note["file"], note["size"])
        self._pool = ThreadPoolExecutor(1)

    def _known(self, store: Store, state: str) -> Journal:
        """The notes of the files that are safe at the target, whose work the staging folder has or gets."""
        here, target = staging(self.url), self.target
        make_folders(self.folder)
        notes = Journal(here)
        lost = [note for note in notes.records if "digest" not in note or not target.holds(note)]
        unknown = lost or not fingerprint_of(self.folder) or target.is_ahead(self.folder)
        if state == "resume" and target.restores and unknown:
            notes.close()
            shutil.rmtree(here, ignore_errors=True)
            make_folders(self.folder)
            notes = Journal(here)
            for note in target.restore(store, self.folder):
                notes.append(note | {"digest": note["sha256"]})
            notes.close()
            return Journal(here)
        self._lost = {note["file"] for note in lost}
        noted = {note["file"] for note in notes.records}
        # A commit whose answer never came may have been made.
        for record in journal_of(self.folder) if target.restores else ():
            if "file" in record and record["file"] not in noted and target.holds(record):
                notes.append(record | {"digest": record["sha256"]})
        notes.close()
        return Journal(here)

    @property
    def staged(self) -> Staged:
        """What the run must know about the folder."""
        return Staged(max(0, self.budget - taken(self.folder)), frozenset(self._sent), self._room)

    def report(self, event: Event) -> None:
        """Send each file that the run commits, in the background.

        Raises:
            WorkError: an earlier file could not be sent.
        """
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()
        if isinstance(event, Committed) and event.file not in self._lost:
            assert self._pool is not None
            self._due += event.entry.size
            self._pending.append(self._pool.submit(self._upload, event.file, event.entry))

    def beside(self, report: EventReport) -> EventReport:
        """A report that passes every event to `report` and to this delivery, and its own events to `report`."""
        self._report = report

        def both(event: Event) -> None:
            report(event)
            self.report(event)
            self._tell()

        return both

    def _tell(self) -> None:
        """Report what was sent and saved since the last call."""
        while self._said:
            self._report(self._said.popleft())

    def _wait(self, future: Future[None]) -> None:
        while not wait([future], _GLANCE).done:
            self._report(Uploading(self._gone, self._due))
        future.result()
        self._tell()

    def _count(self, nbytes: int) -> None:
        self._gone += nbytes

    def finish(self, audit: dict[str, Any]) -> None:
        """Send the remaining files, then the audit, whose presence means complete.

        Raises:
            WorkError: a file could not be sent. ResumeError: a local file is not the one that the run made.
        """
        self._settle()
        here, target = LocalFolder(str(self.folder)), self.target
        entries = entries_of(audit["files"])
        rest = {
            name: one for name, one in entries.items() if name not in self._unsaved and not self._is_sent(name, one)
        }
        for name, entry in rest.items():
            if read_entry(here, name, entry.size, entry) != entry:
                what = "was uploaded before, and is now missing"
                raise ResumeError(f"{target.place}/{name}: {what}", hint="start over with --force")
        target.prepare({name: self.folder / name for name in rest})
        for name, entry in rest.items():
            target.send(name, self.folder / name, entry.sha256, self._count)
            self._unsaved[name] = entry
        files = len(self._unsaved) + 1
        nbytes = sum(entry.size for entry in self._unsaved.values())
        if commit := target.finish(self.folder):
            self._said.append(Saved(files, nbytes, commit))
        self._tell()
        shutil.rmtree(staging(self.url), ignore_errors=True)

    def _is_sent(self, name: str, entry: SignedFile) -> bool:
        return self._sent.get(name) in (entry.digest, entry.sha256 or entry.digest)

    def close(self) -> None:
        """Cancel the uploads that wait or run."""
        self.target.stop()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._notes is not None:
            self._notes.close()
        if self._lock is not None:
            self._lock.release()

    def _make_room(self) -> bool:
        """Wait for the next file to be sent, or save those that were; False if there are none."""
        if self._pending:
            self._wait(self._pending.popleft())
            return True
        if not self._unsaved:
            return False
        assert self._pool is not None
        self._wait(self._pool.submit(self._save))
        return True

    def _settle(self) -> None:
        while self._pending:
            self._wait(self._pending.popleft())

    def _upload(self, name: str, entry: SignedFile) -> None:
        self.target.send(name, self.folder / name, entry.sha256, self._count)
        self._said.append(Uploaded(name, entry.size))
        self._unsaved[name] = entry
        waiting = sum(one.size for one in self._unsaved.values())
        if len(self._unsaved) >= self.target.batch_files or waiting >= self._batch_bytes:
            self._save()

    def _save(self) -> None:
        files: Mapping[str, SignedFile] = dict(self._unsaved)
        commit = self.target.save(files, self.folder)
        assert self._notes is not None
        for name, entry in files.items():
            note = {"file": name, "size": entry.size, "digest": entry.digest}
            self._notes.append(note | ({"sha256": entry.sha256} if entry.sha256 else {}))
            self._sent[name] = entry.digest
            empty(self.folder / name, entry.size)
        self._unsaved.clear()
        self._room.free(files)
        if commit:
            self._said.append(Saved(len(files), sum(one.size for one in files.values()), commit))


def _is_older(folder: Path) -> bool:
    """Whether an earlier version of dsctl began to upload: its notes do not tell what the uploaded files hold."""
    notes = Journal(folder)
    notes.close()
    return any("file" in note and "digest" not in note for note in notes.records)
