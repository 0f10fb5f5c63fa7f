"""The driver: give jobs to workers, record their receipts in the journal, commit files, finish the folder."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from dsctl.checkpoint.odd_scales import ODD
from dsctl.core.errors import ResumeError, WorkError
from dsctl.core.files import PART, existing, failure, make_folders, replace_file, sync_folder, write_all
from dsctl.plan.plan import Job, OutFile, Plan
from dsctl.run.audits import read_audit
from dsctl.run.checks import check_source, check_space
from dsctl.run.claim import check_target, claim, held_now, retire
from dsctl.run.consume import Consumer, alone, beside_others, refuse_consumed_since, refuse_unsafe, room
from dsctl.run.events import Advanced, Committed, EventReport, Resumed
from dsctl.run.gathered import gathered
from dsctl.run.identity import times, touched
from dsctl.run.journal import Journal
from dsctl.run.locks import Lock
from dsctl.run.marks import Route, read_mark, source_json
from dsctl.run.resuming import RunState, regain
from dsctl.stores import SIGNED, WORKING, Store
from dsctl.version import __version__
from dsctl.work.executors import Executor
from dsctl.work.tasks import Seal, add

COPY_BYTES = 8 << 20


def run(
    plan: Plan,
    store: Store,
    target: Path,
    executor: Callable[[], Executor],
    report: EventReport = lambda event: None,
    force: bool = False,
    consume: bool = False,
    most: int | None = None,
) -> dict[str, Any]:
    """Carry a plan out, or resume an interrupted run, and return the audit kept in `dsctl.json`.

    With `consume`, a source file is deleted once all of its converted data is on the target's disk. `most` are the
    bytes of disk that the target folder takes if finished files do not stay in it.

    Raises:
        PlanError, ResumeError: see `check_target`; also if another process holds the folder.
        FormatError: a scale is NaN, infinite, zero or negative; nothing was written.
        SourceError, WorkError: reading or writing failed; the same call resumes.
    """
    seen = read_mark(target)
    with beside_others(store, target):
        state = check_target(plan, store, target, force)
        if state == "complete":
            return _confirmed(target)
        if consume:
            refuse_unsafe(plan, store)
        check_space(plan, target, room(plan, store, existing(target)) if consume else most)
        check_source(plan, store)
    lock = Lock(target / WORKING)
    try:
        # Another run may have ended between the first check and the lock: only the present state counts.
        refuse_consumed_since(store, target)
        mark = read_mark(target)
        if force and mark != seen:
            what = "another run worked here in the meantime"
            raise ResumeError(f"{target}: {what}", hint="check its result, then run the same command again")
        state = check_target(plan, store, target, force)
        if state == "complete":
            audit = read_audit(target)
        else:
            with alone(store) if consume else nullcontext():
                audit = _drive(_route(plan, store, target, state), lock, executor, report, consume)
        retire(target)
        sync_folder(target)
    finally:
        lock.release()
    return audit


def _route(plan: Plan, store: Store, target: Path, state: str) -> Route:
    """The route of the run; the folder's lock is held, and a new folder is claimed."""
    route = Route(plan, store, target, held_now(plan, store, read_mark(target) if state == "resume" else None))
    # The run that made these may have been killed before syncing them.
    for folder in (target.absolute().parent, target, target / WORKING):
        sync_folder(folder)
    if state == "new":
        claim(route)
    return route


def _confirmed(target: Path) -> dict[str, Any]:
    """The audit of a complete folder; removes the working files of a run that was killed at the very end."""
    if not (target / WORKING).exists():
        return read_audit(target)
    lock = Lock(target / WORKING)
    try:
        audit = read_audit(target)
        retire(target)
    finally:
        lock.release()
    return audit


def _drive(
    route: Route, lock: Lock, executor: Callable[[], Executor], report: EventReport, consume: bool
) -> dict[str, Any]:
    with Journal(route.target / WORKING) as journal:
        state = regain(route, journal)
        if journal.records:
            report(_resumed(route.plan, state))
        todo = deque(job for job in route.plan.jobs if job.number not in state.done)
        _prepare_all(route.plan, route.target, state, todo)
        safe = partial(_refuse_changed, route, lock)
        consumer = Consumer(route.store, route.target, route.plan.jobs, state.done, safe) if consume else None
        if todo or len(state.committed) < len(route.plan.files):
            workers = executor()
            try:
                _work(route.plan, route.target, journal, workers, state, todo, report, consumer)
            finally:
                workers.close()
        safe()
        return _finish(route, state, report, safe)


def _resumed(plan: Plan, state: RunState) -> Resumed:
    nbytes = sum(sum(step.read_bytes for step in job.steps) for job in plan.jobs if job.number in state.done)
    return Resumed(len(state.done), len(plan.jobs), nbytes)


def _refuse_changed(route: Route, lock: Lock, file: str | None = None) -> None:
    """Stop if another run has taken the target, or if a source file (this one, or any) has changed since it was read.

    Raises:
        WorkError: naming the lock or the file. SourceError: a file is missing.
    """
    hint = "run the same command again"
    if not lock.held():
        raise WorkError(f"{lock.path}: was removed or replaced during this run", hint=hint)
    now = times(route.plan, route.store)
    late = [file] if file and file not in now else [one for one in touched(now, route.held) if file in (None, one)]
    if late:
        what = f"{route.store.place}/{min(late)}: was changed while it was read"
        raise WorkError(what, hint=f"{hint}: it converts that file again")


def _prepare_all(plan: Plan, target: Path, state: RunState, todo: Iterable[Job]) -> None:
    """Make every file that does not have its final name yet, and sync its folder."""
    waiting = _waiting(plan.files, todo)
    for file in plan.files:
        if file.name not in state.committed:
            _prepare(file, target, sealed=not waiting[file.name])
    for folder in sorted({(target / file.name).parent for file in plan.files} | {target}):
        sync_folder(folder)


def _prepare(file: OutFile, target: Path, sealed: bool = False) -> None:
    """Make a file's `.part` with its header and known bytes; an existing one keeps its other bytes.

    If all work on it is done (`sealed`), it may have its final name.
    """
    path = target / (file.name + PART)
    if sealed and (target / file.name).is_file():
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


def _work(
    plan: Plan,
    target: Path,
    journal: Journal,
    workers: Executor,
    state: RunState,
    todo: deque[Job],
    report: EventReport,
    consumer: Consumer | None,
) -> None:
    waiting = _waiting(plan.files, todo)
    seals = deque(file.name for file in plan.files if not waiting[file.name] and file.name not in state.committed)
    sizes = {file.name: file.size for file in plan.files}
    jobs = {job.number: job for job in todo}
    busy = 0
    while todo or seals or busy:
        while busy < workers.capacity and (seals or todo):
            workers.submit(Seal(seals.popleft()) if seals else todo.popleft())
            busy += 1
        receipt = workers.next(lambda nbytes: report(Advanced(nbytes)))
        busy -= 1
        if receipt.file is not None:
            _commit(target, receipt.file)
            size = sizes[receipt.file]
            journal.append({"file": receipt.file, "size": size, "sha256": receipt.sha256})
            state.committed[receipt.file] = size, receipt.sha256
            report(Committed(receipt.file, size, receipt.sha256))
            continue
        assert receipt.job is not None
        journal.append({"job": receipt.job, "counts": receipt.counts})
        if consumer:
            consumer.done(receipt.job)
        add(state.counts, receipt.counts)
        for file in jobs[receipt.job].files:
            waiting[file] -= 1
            if not waiting[file]:
                seals.append(file)


def _waiting(files: Iterable[OutFile], todo: Iterable[Job]) -> dict[str, int]:
    waiting = {file.name: 0 for file in files}
    for job in todo:
        for name in job.files:
            waiting[name] += 1
    return waiting


def _commit(target: Path, file: str) -> None:
    path = target / file
    part = path.with_name(path.name + PART)
    try:
        if part.exists():
            os.rename(part, path)
        sync_folder(path.parent)
    except OSError as error:
        raise failure(path, error) from None


def _chunks(store: Store, file: str, size: int, report: EventReport) -> Iterator[bytes]:
    for begin in range(0, size, COPY_BYTES):
        chunk = store.read(file, begin, min(begin + COPY_BYTES, size))
        yield chunk
        report(Advanced(len(chunk)))


def _again(path: Path) -> Iterator[bytes]:
    """The bytes of a written file."""
    with open(path, "rb") as file:
        while chunk := file.read(COPY_BYTES):
            yield chunk


def _finish(route: Route, state: RunState, report: EventReport, safe: Callable[[], None]) -> dict[str, Any]:
    """Write index, config and copied files, then `dsctl.json`, whose presence means complete."""
    plan, target = route.plan, route.target
    files = {name: {"size": size, "sha256": sha256} for name, (size, sha256) in state.committed.items()}
    for name, size in plan.carried.items():
        files[name] = {"size": size, "sha256": replace_file(target / name, _chunks(route.store, name, size, report))}
    for name, inner in ((name, f"{folder}/{name}") for name in plan.repeated for folder in plan.folders):
        files[inner] = files[name] | {"sha256": replace_file(target / inner, _again(target / name))}
    for name, data in plan.texts.items():
        files[name] = {"size": len(data), "sha256": replace_file(target / name, data)}
    if plan.gathers:
        size, chunks = gathered(plan, target)
        files[ODD] = {"size": size, "sha256": replace_file(target / ODD, chunks)}
    audit = {
        "dsctl": __version__,
        "fingerprint": plan.fingerprint,
        "source": source_json(plan, route.held) | {"files": plan.source_files},
        "request": plan.request.json(),
        "audit": plan.counts | dict(sorted(state.counts.items())),
        "dropped": [[item.name, item.why] for item in plan.dropped],
        "notes": plan.notes,
        "files": dict(sorted(files.items())),
    }
    safe()
    replace_file(target / SIGNED, (json.dumps(audit, indent=1, ensure_ascii=False) + "\n").encode())
    return audit
