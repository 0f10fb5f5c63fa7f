"""A run whose target is an object store: files are made in a staging folder here and go up as each is done.

An object appears whole or not at all, `dsctl.json` comes last and means complete. What is up needs no room here: its
digest is noted beside the staging folder, which keeps a file of the same size without blocks. By both the same command
resumes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag
from typing import TYPE_CHECKING, Any

from dsctl.checkpoint.checkpoint import strict_json
from dsctl.core.errors import FormatError, PlanError, ResumeError, SourceError, WorkError
from dsctl.core.files import make_folders, refusal
from dsctl.plan.planner import Plan
from dsctl.run.claim import mark_of, of_another, refuse_unlike, source_json
from dsctl.run.driver import Committed, Event, Report, run, valid_audit
from dsctl.run.identity import identity
from dsctl.run.journal import Journal, Lock
from dsctl.stores import SIGNED, WORKING, Store, separate
from dsctl.stores.hub import SCHEME
from dsctl.stores.objects import deadline, listed, opened, patience, persist, shown
from dsctl.version import __version__

if TYPE_CHECKING:
    from dsctl.work.executors import Executor

# Finished files that wait for the one that goes up; the run waits for them where there are more.
WAITING = 2
# One request's part of a file, and how many of them are held and sent at once.
PART_BYTES, PARTS = 16 << 20, 4
# What is held of files on their way.
SENT_BYTES = PART_BYTES * PARTS
_BEGUN = f"{WORKING}/request.json"
# Seconds between looks at whether a run has ended whose file is on its way, and for giving that file's parts back.
GLANCE, LEAVE = 0.2, 1.0


def staging(url: str) -> Path:
    """What this machine keeps for a target that is not complete: below $DSCTL_STAGING, or else in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = Path(os.environ.get("DSCTL_STAGING") or os.path.join(cache, "dsctl", "staging"))
    return root / hashlib.sha256(url.encode()).hexdigest()[:16]


@dataclass(slots=True)
class Delivery:
    """Takes a plan's files to a URL; a context in which the plan is run on `folder` and then finished."""

    url: str
    plan: Plan
    force: bool = False
    _there: dict[str, int] = field(default_factory=dict)
    _sent: dict[str, str] = field(default_factory=dict)
    _notes: Journal | None = None
    _lock: Lock | None = None
    _pending: deque[Future[None]] = field(default_factory=deque)
    _pool: ThreadPoolExecutor | None = None
    _stopped: Flag = field(default_factory=Flag)

    @property
    def folder(self) -> Path:
        """Where the target's files are made."""
        return staging(self.url) / "made"

    def check(self, store: Store) -> str:
        """What carrying the plan out would mean: new, resume or complete. Nothing is changed.

        Raises:
            PlanError: the target is the source, inside it or around it, or holds what dsctl did not make.
            ResumeError: it holds another request's work, begun or complete.
            UsageError, WorkError: it cannot be one, or cannot be reached.
        """
        if self.url.startswith(SCHEME):
            raise PlanError(f"{self.url}: a hub's repository is no target", hint="write to a folder, then upload that")
        try:
            self._there = {one.name: one.size for one in listed(self.url)}
        except SourceError as error:
            raise WorkError(error.message, hint=error.hint) from None
        if not separate(store, self.url):
            raise PlanError(f"{shown(self.url)}: source and target must be separate, neither inside the other")
        for complete, name in ((True, SIGNED), (False, _BEGUN)):
            found = self._json(name)
            if found is None:
                continue
            if self.force:
                self._refuse_others(found)
                return "new"
            place, mark = shown(self.url), mark_of(found, complete)
            if mark is None:
                raise ResumeError(f"{place}/{name}: is not valid", hint="start over with --force, or choose a new path")
            if mark.fingerprint != self.plan.fingerprint:
                raise of_another(self.plan, store, place, mark)
            refuse_unlike(self.plan, store, place, mark)
            return "complete" if complete else "resume"
        if self._there:
            hint = "choose a new path"
            raise PlanError(f"{shown(self.url)}: is not empty and was not made by dsctl", hint=hint)
        return "new"

    def _refuse_others(self, made: dict[str, Any]) -> None:
        """Refuse to start over beside what neither the run whose mark this is made nor this one will.

        Raises:
            PlanError: with their names.
        """
        files = made.get("files")
        theirs = set(map(str, files)) if isinstance(files, (dict, list)) else set()
        others = sorted(self._there.keys() - theirs - self._names() - {SIGNED})
        if others:
            what = f"holds {len(others):,} files that dsctl did not make, such as {others[0]}"
            raise PlanError(f"{shown(self.url)}: {what}", hint="move them, or choose a new path", issues=others)

    def _names(self) -> set[str]:
        """The files that the plan makes, but for the audit."""
        repeated = (f"{folder}/{name}" for name in self.plan.repeated for folder in self.plan.folders)
        return {*(file.name for file in self.plan.files), *self.plan.carried, *self.plan.texts, *repeated}

    def room(self) -> int:
        """The most bytes of disk that the staging folder takes: files being made and those that wait."""
        left = {file.name: sum(file.name in job.files for job in self.plan.jobs) for file in self.plan.files}
        sizes = {file.name: file.size for file in self.plan.files}
        held: deque[int] = deque()
        most = taken = 0
        for job in self.plan.jobs:
            taken += sum(step.written_bytes for step in job.steps)
            most = max(most, taken)
            for name in job.files:
                left[name] -= 1
                if not left[name]:
                    held.append(sizes[name])
            while len(held) > WAITING + 1:
                taken -= held.popleft()
        return min(self.plan.bytes_out, most) + sum(self.plan.carried.values())

    def begin(self, store: Store) -> None:
        """Mark the target as begun, and bring the staging folder to what the target holds.

        What `check` found may be over by now: another run on this machine is waited for by nobody, so all of it is
        looked at again, with the staging folder's lock held.

        Raises:
            ResumeError: another process on this machine is at it, or was meanwhile.
            WorkError: target or staging folder cannot be written.
        """
        self._lock = Lock(staging(self.url).with_suffix(".at-work"), shown(self.url))
        before, self._there = self._there, {}
        state = self.check(store)
        if state == "complete" or (self.force and before != self._there):
            what = "another run worked here in the meantime"
            raise ResumeError(f"{shown(self.url)}: {what}", hint="look at what it made, then run the command again")
        if state == "new" or _fingerprint(self.folder) != self.plan.fingerprint:
            shutil.rmtree(staging(self.url), ignore_errors=True)
        if state == "new":
            self._clear()
        self._abort_uploads("")
        mark = {
            "fingerprint": self.plan.fingerprint,
            "version": __version__,
            "request": self.plan.request.json(),
            "revision": store.revision,
            "source": source_json(self.plan, identity(self.plan, store)),
        }
        self._put_bytes(_BEGUN, json.dumps(mark | {"files": sorted(self._names())}, indent=1).encode())
        make_folders(self.folder)
        self._notes = Journal(staging(self.url))
        for note in self._notes.records:
            if "file" in note and self._there.get(note["file"]) == note["size"]:
                self._sent[note["file"]] = note["sha256"]
                _empty(self.folder / note["file"], note["size"])
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

    def beside(self, report: Report) -> Report:
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
            if _digest(self.folder / name) != file["sha256"]:
                what = "was taken there before, and is gone"
                raise ResumeError(f"{shown(self.url)}/{name}: {what}", hint="start over with --force")
            self._upload(name, file["sha256"])
        self._upload(SIGNED, _digest(self.folder / SIGNED))
        self._remove(_BEGUN)
        shutil.rmtree(staging(self.url), ignore_errors=True)

    def close(self) -> None:
        """Give up what waits to go up and what is on its way."""
        self._stopped.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        if self._notes is not None:
            self._notes.close()
        if self._lock is not None:
            self._lock.release()

    def audit(self) -> dict[str, Any]:
        """The audit of a complete target whose objects still have the sizes that it tells of.

        Raises:
            ResumeError: one is gone or has another size.
        """
        hint = "start over with --force"
        try:
            audit = valid_audit(self._json(SIGNED))
        except (TypeError, ValueError) as error:
            raise ResumeError(f"{shown(self.url)}/{SIGNED}: is not valid: {error}", hint=hint) from None
        for name, file in audit["files"].items():
            if self._there.get(name) != file["size"]:
                raise ResumeError(f"{shown(self.url)}/{name}: was finished, but is gone or changed", hint=hint)
        return audit

    def _upload(self, name: str, sha256: str) -> None:
        path = self.folder / name
        size = path.stat().st_size
        persist(f"{shown(self.url)}/{name}", lambda: self._send(name, size), WorkError, self._wait)
        if self._notes is not None:
            self._notes.append({"file": name, "size": size, "sha256": sha256})
        self._sent[name] = sha256
        _empty(path, size)

    def _send(self, name: str, size: int) -> None:
        system, there = opened(f"{self.url}/{name}")
        in_parts = "s3" in system.protocol
        parts = {"chunksize": PART_BYTES, "max_concurrency": PARTS} if in_parts else {}
        heed = _Heed(self._stopped, patience(min(size, SENT_BYTES) if in_parts else size))
        try:
            heed.call(system, "put_file", str(self.folder / name), there, callback=heed, **parts)
        except (TimeoutError, WorkError):
            self._abort_uploads(name, LEAVE)
            raise
        found = _Heed(self._stopped, patience(0)).call(system, "info", there)["size"]
        if found != size:
            raise OSError(f"{size:,} bytes were sent, {found:,} are there")

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise WorkError(_ENDED)

    def _put_bytes(self, name: str, data: bytes) -> None:
        system, path = opened(f"{self.url}/{name}")
        persist(f"{shown(self.url)}/{name}", lambda: system.pipe_file(path, data, **deadline(system)), WorkError)

    def _json(self, name: str) -> dict[str, Any] | None:
        """A JSON object of the target's, or None where there is none."""
        system, path = opened(f"{self.url}/{name}")

        def read() -> bytes | None:
            try:
                return bytes(system.cat_file(path, **deadline(system)))
            except FileNotFoundError:
                return None

        raw = persist(f"{shown(self.url)}/{name}", read, WorkError)
        try:
            return None if raw is None else dict(strict_json(raw, name))
        except (ValueError, TypeError, RecursionError, FormatError):
            return {}

    def _clear(self) -> None:
        """Remove what an earlier run made, the mark of completeness first."""
        for name in sorted(self._there, key=lambda name: name != SIGNED):
            self._remove(name)
        self._there = {}

    def _remove(self, name: str) -> None:
        system, path = opened(f"{self.url}/{name}")

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(path, **deadline(system))

        persist(f"{shown(self.url)}/{name}", remove, WorkError)

    def _abort_uploads(self, name: str, seconds: float | None = None) -> None:
        """Give back the parts of a file's uploads, or of all, that were left behind, where the store lists such."""
        system, path = opened(f"{self.url}/{name}")
        if not hasattr(system, "list_multipart_uploads"):
            return
        bucket, _, key = path.rstrip("/").partition("/")
        limit = deadline(system) if seconds is None else {"timeout": seconds}
        with contextlib.suppress(OSError):
            for one in system.list_multipart_uploads(bucket, **limit):
                if one["Key"] == key if name else one["Key"].startswith(f"{key}/"):
                    system.abort_mpu(bucket, one["Key"], one["UploadId"], **limit)


_ENDED = "the run has ended"


@dataclass(slots=True)
class _Heed:
    """A request that ends when the run does, and has stalled when no progress is told of it for some seconds.

    It is what fsspec calls a callback.
    """

    stopped: Flag
    seconds: float
    _told: float = 0.0

    def set_size(self, size: int) -> None:
        """How much there is."""

    def relative_update(self, inc: int = 1) -> None:
        """So much more is done."""
        self._told = time.monotonic()

    def call(self, system: Any, name: str, *arguments: Any, **options: Any) -> Any:
        """What the request gives.

        Raises:
            TimeoutError: it has stalled. WorkError: the run has ended.
        """
        if self.stopped.is_set():
            raise WorkError(_ENDED)
        if not getattr(system, "async_impl", False):
            return getattr(system, name)(*arguments, **options)
        self._told = time.monotonic()
        future = asyncio.run_coroutine_threadsafe(getattr(system, f"_{name}")(*arguments, **options), system.loop)
        try:
            while not wait([future], GLANCE).done:
                if self.stopped.is_set():
                    raise WorkError(_ENDED)
                if time.monotonic() - self._told > self.seconds:
                    raise TimeoutError
        finally:
            future.cancel()
        return future.result()


def deliver(
    delivery: Delivery,
    state: str,
    executor: Callable[[], Executor],
    store: Store,
    report: Report = lambda event: None,
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
        audit = run(delivery.plan, store, delivery.folder, executor, both, most=delivery.room())
        delivery.finish(audit)
    finally:
        delivery.close()
    return audit


def _fingerprint(folder: Path) -> str:
    """Whose work a staging folder holds, or nothing."""
    for file in (folder / SIGNED, folder / _BEGUN):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return str(json.loads(file.read_bytes()).get("fingerprint", ""))
    return ""


def _empty(path: Path, size: int) -> None:
    """Give a file's blocks back to the disk, and leave its size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)


def _digest(path: Path) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise refusal(path, error, WorkError) from None


__all__ = ["Delivery", "deliver", "staging"]
