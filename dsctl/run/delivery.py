"""A run whose target is an object store: files are made in a local staging folder and uploaded as they are finished.

An object appears whole or not at all; `dsctl.json` comes last and means complete. An uploaded file takes no space here:
its digest is recorded beside the staging folder, which keeps a file of the same size without blocks. With both, the
same command resumes.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsctl.checkpoint.signed_files import entries_of, read_entry
from dsctl.core.errors import PlanError, ResumeError
from dsctl.core.files import make_folders
from dsctl.plan.plan import Plan
from dsctl.run.driver import Staged, run
from dsctl.run.events import Committed, Event, EventReport
from dsctl.run.how import How
from dsctl.run.journal import Journal
from dsctl.run.locks import Lock
from dsctl.run.object_target import ObjectTarget
from dsctl.run.staging import WAITING, empty, fingerprint_of, staging, staging_bytes
from dsctl.stores import SIGNED, Store
from dsctl.stores.local import LocalFolder
from dsctl.stores.uploads import Uploads
from dsctl.work.executors import Executor

_USUAL = How()


@dataclass(slots=True)
class Delivery:
    """Uploads a plan's files to a URL: `begin`, run the plan on `folder`, `finish`, and always `close`."""

    url: str
    plan: Plan
    force: bool = False
    _sent: dict[str, str] = field(default_factory=dict)
    _notes: Journal | None = None
    _lock: Lock | None = None
    _pending: deque[Future[None]] = field(default_factory=deque)
    _pool: ThreadPoolExecutor | None = None
    _target: ObjectTarget = field(init=False)

    def __post_init__(self) -> None:
        self._target = ObjectTarget(self.url, self.plan, self.force, Uploads(self.url))

    @property
    def folder(self) -> Path:
        """The local folder for the target's files."""
        return staging(self.url) / "made"

    def check(self, store: Store) -> str:
        """The state of the target: new, resume or complete; raises as `ObjectTarget.check`."""
        return self._target.check(store)

    def audit(self) -> dict[str, Any]:
        """The audit of a complete target; raises as `ObjectTarget.audit`."""
        return self._target.audit()

    def begin(self, store: Store) -> None:
        """Mark the target as begun, and make the staging folder agree with the objects at the target.

        The state may have changed since `check`, because another run on this machine may have worked here. It is
        checked again, with the staging folder's lock held.

        Raises:
            ResumeError: another process on this machine is working here, or was in the meantime.
            WorkError: target or staging folder cannot be written.
        """
        target = self._target
        self._lock = Lock(staging(self.url).with_suffix(".at-work"), target.place)
        before, target.there = target.there, {}
        state = target.check(store)
        if state == "complete" or (self.force and before != target.there):
            what = "another run worked here in the meantime"
            raise ResumeError(f"{target.place}: {what}", hint="check its result, then run the command again")
        if state == "new" or fingerprint_of(self.folder) != self.plan.fingerprint or _is_older(staging(self.url)):
            shutil.rmtree(staging(self.url), ignore_errors=True)
        if state == "new":
            target.clear()
        target.uploads.abort()
        target.sign_begun(store)
        make_folders(self.folder)
        self._notes = Journal(staging(self.url))
        for note in self._notes.records:
            if "digest" in note and target.there.get(note["file"]) == note["size"]:
                self._sent[note["file"]] = str(note["digest"])
                empty(self.folder / note["file"], note["size"])
        self._pool = ThreadPoolExecutor(1)

    @property
    def staged(self) -> Staged:
        """What the run must know about the folder."""
        return Staged(staging_bytes(self.plan), frozenset(self._sent))

    def report(self, event: Event) -> None:
        """Upload each file that the run commits, in the background.

        Raises:
            WorkError: an earlier upload failed.
        """
        if not isinstance(event, Committed):
            return
        assert self._pool is not None
        self._pending.append(self._pool.submit(self._upload, event.file, event.entry.digest))
        while len(self._pending) > WAITING:
            self._pending.popleft().result()

    def beside(self, report: EventReport) -> EventReport:
        """A report that passes every event to `report` and to this delivery."""

        def both(event: Event) -> None:
            report(event)
            self.report(event)

        return both

    def finish(self, audit: dict[str, Any]) -> None:
        """Upload the remaining files, then the audit, whose presence means complete.

        Raises:
            WorkError: an upload failed. ResumeError: a local file is not the one that the run made.
        """
        while self._pending:
            self._pending.popleft().result()
        here = LocalFolder(str(self.folder))
        for name, entry in entries_of(audit["files"]).items():
            if self._sent.get(name) == entry.digest:
                continue
            if read_entry(here, name, entry.size, entry) != entry:
                what = "was uploaded before, and is now missing"
                raise ResumeError(f"{self._target.place}/{name}: {what}", hint="start over with --force")
            self._upload(name, entry.digest)
        self._upload(SIGNED, "")
        self._target.retire()
        shutil.rmtree(staging(self.url), ignore_errors=True)

    def close(self) -> None:
        """Cancel the uploads that wait or run."""
        self._target.uploads.stop()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._notes is not None:
            self._notes.close()
        if self._lock is not None:
            self._lock.release()

    def _upload(self, name: str, digest: str) -> None:
        path = self.folder / name
        size = self._target.uploads.send(name, path)
        if self._notes is not None:
            self._notes.append({"file": name, "size": size, "digest": digest})
        self._sent[name] = digest
        empty(path, size)


def _is_older(folder: Path) -> bool:
    """Whether an earlier version of dsctl began to upload: its notes do not tell what the uploaded files hold."""
    notes = Journal(folder)
    notes.close()
    return any("file" in note and "digest" not in note for note in notes.records)


def deliver(
    delivery: Delivery,
    state: str,
    executor: Callable[[], Executor],
    store: Store,
    report: EventReport = lambda event: None,
    how: How = _USUAL,
) -> dict[str, Any]:
    """Carry the plan out, or resume it, and upload its files to the target.

    Raises:
        DsctlError: as `dsctl.run.run`, and as the methods of `Delivery`; the same call resumes.
    """
    if state == "complete":
        return delivery.audit()
    if how.consume:
        raise PlanError("--consume is for a target on this machine")
    try:
        delivery.begin(store)
        both = delivery.beside(report)
        audit = run(delivery.plan, store, delivery.folder, executor, both, how, delivery.staged)
        delivery.finish(audit)
    finally:
        delivery.close()
    return audit
