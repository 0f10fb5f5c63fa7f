"""A run whose target is an object store: files are made in a staging folder here and go up as each is done.

An object appears whole or not at all, `dsctl.json` comes last and means complete. What is up needs no room here: its
digest is noted beside the staging folder, which keeps a file of the same size without blocks. By both the same command
resumes.
"""

from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsctl.core.errors import PlanError, ResumeError
from dsctl.core.files import make_folders
from dsctl.plan.plan import Plan
from dsctl.run.driver import run
from dsctl.run.events import Committed, Event, EventReport
from dsctl.run.journal import Journal
from dsctl.run.locks import Lock
from dsctl.run.object_target import ObjectTarget
from dsctl.run.staging import WAITING, digest_of, empty, fingerprint_of, staging, staging_bytes
from dsctl.stores import SIGNED, Store
from dsctl.stores.uploads import Uploads
from dsctl.work.executors import Executor


@dataclass(slots=True)
class Delivery:
    """Takes a plan's files to a URL; a context in which the plan is run on `folder` and then finished."""

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
        """Where the target's files are made."""
        return staging(self.url) / "made"

    def check(self, store: Store) -> str:
        """What carrying the plan out would mean: new, resume or complete; raises as `ObjectTarget.check`."""
        return self._target.check(store)

    def audit(self) -> dict[str, Any]:
        """The audit of a complete target; raises as `ObjectTarget.audit`."""
        return self._target.audit()

    def begin(self, store: Store) -> None:
        """Mark the target as begun, and bring the staging folder to what the target holds.

        What `check` found may be over by now: another run on this machine is waited for by nobody, so all of it is
        looked at again, with the staging folder's lock held.

        Raises:
            ResumeError: another process on this machine is at it, or was meanwhile.
            WorkError: target or staging folder cannot be written.
        """
        target = self._target
        self._lock = Lock(staging(self.url).with_suffix(".at-work"), target.place)
        before, target.there = target.there, {}
        state = target.check(store)
        if state == "complete" or (self.force and before != target.there):
            what = "another run worked here in the meantime"
            raise ResumeError(f"{target.place}: {what}", hint="look at what it made, then run the command again")
        if state == "new" or fingerprint_of(self.folder) != self.plan.fingerprint:
            shutil.rmtree(staging(self.url), ignore_errors=True)
        if state == "new":
            target.clear()
        target.uploads.abort()
        target.sign_begun(store)
        make_folders(self.folder)
        self._notes = Journal(staging(self.url))
        for note in self._notes.records:
            if "file" in note and target.there.get(note["file"]) == note["size"]:
                self._sent[note["file"]] = note["sha256"]
                empty(self.folder / note["file"], note["size"])
        self._pool = ThreadPoolExecutor(1)

    def report(self, event: Event) -> None:
        """Take each file that the run commits to the target, beside the run.

        Raises:
            WorkError: an earlier one could not be taken there.
        """
        if not isinstance(event, Committed):
            return
        assert self._pool is not None
        self._pending.append(self._pool.submit(self._upload, event.file, event.sha256))
        while len(self._pending) > WAITING:
            self._pending.popleft().result()

    def beside(self, report: EventReport) -> EventReport:
        """A report that is told what this one is."""

        def both(event: Event) -> None:
            report(event)
            self.report(event)

        return both

    def finish(self, audit: dict[str, Any]) -> None:
        """Take up what is still here, then the audit, whose presence means complete.

        Raises:
            WorkError: something cannot be taken up. ResumeError: a file here is not what the run made.
        """
        while self._pending:
            self._pending.popleft().result()
        for name, file in audit["files"].items():
            if self._sent.get(name) == file["sha256"]:
                continue
            if digest_of(self.folder / name) != file["sha256"]:
                what = "was taken there before, and is gone"
                raise ResumeError(f"{self._target.place}/{name}: {what}", hint="start over with --force")
            self._upload(name, file["sha256"])
        self._upload(SIGNED, digest_of(self.folder / SIGNED))
        self._target.retire()
        shutil.rmtree(staging(self.url), ignore_errors=True)

    def close(self) -> None:
        """Give up what waits to go up and what is on its way."""
        self._target.uploads.stop()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._notes is not None:
            self._notes.close()
        if self._lock is not None:
            self._lock.release()

    def _upload(self, name: str, sha256: str) -> None:
        path = self.folder / name
        size = self._target.uploads.send(name, path)
        if self._notes is not None:
            self._notes.append({"file": name, "size": size, "sha256": sha256})
        self._sent[name] = sha256
        empty(path, size)


def deliver(
    delivery: Delivery,
    state: str,
    executor: Callable[[], Executor],
    store: Store,
    report: EventReport = lambda event: None,
    consume: bool = False,
) -> dict[str, Any]:
    """Carry the plan out and take what it makes to the target, from wherever an interrupted run left it.

    Raises:
        DsctlError: as `dsctl.run.run`, and as the methods of `Delivery`; the same call resumes.
    """
    if state == "complete":
        return delivery.audit()
    if consume:
        raise PlanError("--consume is for a target on this machine")
    try:
        delivery.begin(store)
        both = delivery.beside(report)
        audit = run(delivery.plan, store, delivery.folder, executor, both, most=staging_bytes(delivery.plan))
        delivery.finish(audit)
    finally:
        delivery.close()
    return audit
