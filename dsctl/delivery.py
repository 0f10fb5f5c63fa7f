"""A run whose target is an object store: files are made in a staging folder here and go up as each is done.

An object appears whole or not at all, `dsctl.json` comes last and means complete. What is up needs no room here: the
staging folder keeps a file of the same size without blocks, by which the same command resumes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event as Flag
from typing import TYPE_CHECKING, Any, NamedTuple

from dsctl.errors import PlanError, ResumeError, WorkError
from dsctl.plan import Plan
from dsctl.run import Committed, Event, Report, run
from dsctl.stores import SIGNED, WORKING, ObjectFolder, Store
from dsctl.stores.hub import SCHEME
from dsctl.stores.objects import deadline, listed, opened, persist, shown
from dsctl.version import __version__

if TYPE_CHECKING:
    from dsctl.executors import Executor

# Finished files that wait for the one that goes up; the run waits for them where there are more.
WAITING = 2
# One request's part of a file, and how many of them are held and sent at once.
PART_BYTES, PARTS = 16 << 20, 4
# What is held of files on their way.
SENT_BYTES = PART_BYTES * PARTS
_BEGUN = f"{WORKING}/request.json"
_CHUNK = 8 << 20


def staging(url: str) -> Path:
    """The folder in which a target's files are made: below $DSCTL_STAGING, or else in the user's cache."""
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
    _pending: deque[Future[None]] = field(default_factory=deque)
    _pool: ThreadPoolExecutor | None = None
    _stopped: Flag = field(default_factory=Flag)

    @property
    def folder(self) -> Path:
        return staging(self.url)

    def check(self, store: Store) -> str:
        """What carrying the plan out would mean: new, resume or complete. Nothing is changed.

        Raises:
            PlanError: the target is the source, inside it or around it, or holds what dsctl did not make.
            ResumeError: it holds another request's work, begun or complete.
            WorkError: it cannot be reached.
        """
        if self.url.startswith(SCHEME):
            raise PlanError(f"{self.url}: a hub's repository is no target", hint="write to a folder, then upload that")
        if isinstance(store, ObjectFolder) and _within(store.url, self.url):
            raise PlanError(f"{shown(self.url)}: source and target must be separate, neither inside the other")
        self._there = {one.name: one.size for one in listed(self.url)}
        for complete, name in ((True, SIGNED), (False, _BEGUN)):
            found = self._json(name)
            if found is None:
                continue
            if found.get("fingerprint") == self.plan.fingerprint:
                return "new" if self.force else "complete" if complete else "resume"
            if not self.force:
                what = "the result" if complete else "the unfinished work"
                hint = "start over with --force, or choose a new path"
                raise ResumeError(f"{shown(self.url)}: holds {what} of another request", hint=hint)
            return "new"
        if self._there:
            hint = "choose a new path"
            raise PlanError(f"{shown(self.url)}: is not empty and was not made by dsctl", hint=hint)
        return "new"

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

    def begin(self, state: str) -> None:
        """Mark the target as begun, and bring the staging folder to what the target holds.

        Raises:
            WorkError: one of them cannot be written.
        """
        if state == "new" or _fingerprint(self.folder) != self.plan.fingerprint:
            shutil.rmtree(self.folder, ignore_errors=True)
        if state == "new":
            self._clear()
        self._abort_uploads()
        mark = {"fingerprint": self.plan.fingerprint, "version": __version__, "request": self.plan.request.json()}
        self._put_bytes(_BEGUN, json.dumps(mark, indent=1).encode())
        for file in self._committed():
            if self._there.get(file) is not None and (self.folder / file).exists():
                _empty(self.folder / file)
        self._pool = ThreadPoolExecutor(1)

    def report(self, event: Event) -> None:
        """Take each file that the run commits to the target, beside the run.

        Raises:
            WorkError: an earlier one could not be taken there.
        """
        if not isinstance(event, Committed):
            return
        assert self._pool is not None
        self._pending.append(self._pool.submit(self._upload, event.file))
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
            if self._there.get(name) == file["size"]:
                continue
            if _digest(self.folder / name) != file["sha256"]:
                what = "was taken there before, and is gone"
                raise ResumeError(f"{shown(self.url)}/{name}: {what}", hint="start over with --force")
            self._upload(name)
        self._upload(SIGNED)
        self._remove(_BEGUN)
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Give up what waits to go up and, after the parts that are on their way, the file that they are of."""
        self._stopped.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def audit(self) -> dict[str, Any]:
        """The audit of a complete target whose objects still have the sizes that it tells of.

        Raises:
            ResumeError: one is gone or has another size.
        """
        audit = self._json(SIGNED) or {}
        for name, file in audit.get("files", {}).items():
            if self._there.get(name) != file["size"]:
                hint = "start over with --force"
                raise ResumeError(f"{shown(self.url)}/{name}: was finished, but is gone or changed", hint=hint)
        return audit

    def _committed(self) -> list[str]:
        """The weight files that an interrupted run finished here."""
        try:
            lines = (self.folder / WORKING / "journal.jsonl").read_bytes().splitlines()
        except OSError:
            return []
        return [record["file"] for line in lines if (record := _record(line)) and "file" in record]

    def _upload(self, name: str) -> None:
        path, where = self.folder / name, f"{shown(self.url)}/{name}"
        size = path.stat().st_size

        def upload() -> None:
            system, there = opened(f"{self.url}/{name}")
            parts = {"chunksize": PART_BYTES, "max_concurrency": PARTS} if "s3" in system.protocol else {}
            system.put_file(str(path), there, callback=_Heed(self._stopped), **parts, **deadline(system, size))
            found = system.info(there, **deadline(system))["size"]
            if found != size:
                raise OSError(f"{size:,} bytes were sent, {found:,} are there")

        persist(where, upload, WorkError)
        self._there[name] = size
        _empty(path)

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
            return None if raw is None else dict(json.loads(raw))
        except (ValueError, TypeError):
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

    def _abort_uploads(self) -> None:
        """Give back the parts of uploads that a killed run left behind, where the store keeps and lists such."""
        system, path = opened(self.url)
        if not hasattr(system, "list_multipart_uploads"):
            return
        bucket, _, prefix = path.partition("/")
        with contextlib.suppress(OSError):
            for one in system.list_multipart_uploads(bucket):
                if one["Key"].startswith(f"{prefix}/"):
                    system.abort_mpu(bucket, one["Key"], one["UploadId"])


class _Heed(NamedTuple):
    """What fsspec tells of an upload's progress; it ends there once the run has ended."""

    stopped: Flag

    def set_size(self, size: int) -> None:
        """How much there is."""

    def relative_update(self, inc: int = 1) -> None:
        """So much more is done."""
        if self.stopped.is_set():
            raise WorkError("the run has ended")


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
        delivery.begin(state)
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


def _record(line: bytes) -> dict[str, Any]:
    """A line of a journal; nothing where it is torn."""
    with contextlib.suppress(ValueError):
        return dict(json.loads(line))
    return {}


def _within(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


def _empty(path: Path) -> None:
    """Give a file's blocks back to the disk, and leave its size."""
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)


def _digest(path: Path) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WorkError(f"{path}: {error.strerror or error}") from None


__all__ = ["Delivery", "deliver", "staging"]
