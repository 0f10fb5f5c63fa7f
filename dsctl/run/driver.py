"""The driver of a run: claim the target, do what is not done, finish the folder. `dispatch` hands out the jobs."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dsctl.checkpoint.checkpoint import ORIGINAL
from dsctl.checkpoint.odd_scales import ODD
from dsctl.checkpoint.signed_files import signed_bytes
from dsctl.core.errors import ResumeError, WorkError
from dsctl.core.files import existing, replace_file, sync_folder
from dsctl.plan.jobs import spread
from dsctl.plan.model_card import README
from dsctl.plan.plan import Plan
from dsctl.run.audits import read_audit
from dsctl.run.checks import check_source, check_space
from dsctl.run.claim import check_target, claim, held_now, retire
from dsctl.run.consume import Consumer, Remembered, alone, beside_others, refuse_consumed_since, refuse_unsafe, room
from dsctl.run.dispatch import Dispatch, prepare_all
from dsctl.run.events import Advanced, EventReport, Resumed, Worked
from dsctl.run.gathered import gathered
from dsctl.run.how import SHA256, How
from dsctl.run.identity import times, touched
from dsctl.run.journal import Journal
from dsctl.run.locks import Lock
from dsctl.run.marks import Route, read_mark, source_json
from dsctl.run.merges import merge_report
from dsctl.run.resuming import RunState, regain
from dsctl.run.staging import Room
from dsctl.run.statement import Made
from dsctl.stores import SIGNED, STATEMENT, WORKING, Store
from dsctl.stores.sums import stated_sums
from dsctl.version import __version__
from dsctl.work.executors import Executor
from dsctl.work.tasks import AS_RELEASED, UNLIKE_RELEASED, without_merge

COPY_BYTES = 8 << 20
_USUAL = How()


class Staged(NamedTuple):
    """What is special about a staging folder: the bytes of disk that it takes at most beyond those that it takes now,
    the files that were uploaded and are only placeholders in it, and its room."""

    most: int
    sent: frozenset[str]
    room: Room


def run(
    plan: Plan,
    store: Store,
    target: Path,
    executor: Callable[[], Executor],
    report: EventReport = lambda event: None,
    how: How = _USUAL,
    staged: Staged | None = None,
) -> dict[str, Any]:
    """Carry a plan out, or resume an interrupted run, and return the audit kept in `dsctl.json`.

    With `how.consume`, a source file is deleted once all of its converted data is on the target's disk. The target
    may be a staging folder, from which finished files are uploaded.

    Raises:
        PlanError, ResumeError: see `check_target`; also if another process holds the folder.
        FormatError: a scale is NaN, infinite, zero or negative; nothing was written.
        SourceError, WorkError: reading or writing failed; the same call resumes.
    """
    seen, force, consume = read_mark(target), how.force, how.consume
    with beside_others(store, target):
        state = check_target(plan, store, target, force)
        if state == "complete":
            return _confirmed(target)
        if consume:
            refuse_unsafe(plan, store)
        check_space(plan, target, room(plan, store, existing(target)) if consume else staged and staged.most)
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
            route = _route(plan, store, target, state, staged.sent if staged else frozenset())
            with alone(store) if consume else nullcontext():
                audit = _drive(route, lock, executor, report, how, staged.room if staged else None)
        retire(target)
        sync_folder(target)
    finally:
        lock.release()
    return audit


def _route(plan: Plan, store: Store, target: Path, state: str, sent: frozenset[str]) -> Route:
    """The route of the run; the folder's lock is held, and a new folder is claimed."""
    route = Route(plan, store, target, held_now(plan, store, read_mark(target) if state == "resume" else None), sent)
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
    route: Route, lock: Lock, executor: Callable[[], Executor], report: EventReport, how: How, room: Room | None
) -> dict[str, Any]:
    """Do what is not done; with little `room` on the disk, finish one file after the other."""
    with Journal(route.target / WORKING) as journal:
        state = regain(route, journal, report)
        if journal.records:
            report(_resumed(route.plan, state))
        todo = [job for job in route.plan.jobs if job.number not in state.done]
        written = sum(step.written_bytes for job in todo for step in job.steps)
        prepare_all(route.plan, route.target, state, todo)
        safe = partial(_refuse_changed, route, lock)
        consumer = Consumer(route.store, route.target, route.plan.jobs, state.done, safe) if how.consume else None
        dispatch = Dispatch(route.plan, route.target, journal, state, how.digest == SHA256, consumer, route.sent, room)
        if room:
            room.begin(state.done, route.sent & state.committed.keys())
            dispatch.report_finished(report)
        in_order = how.consume or room is not None
        if todo or not dispatch.is_done:
            workers = executor()
            try:
                dispatch.carry_out(workers, deque(spread(todo, 1 if in_order else workers.capacity)), report)
            finally:
                workers.close()
            report(Worked(written, state.seconds))
        if room:
            # Until then the journal is needed.
            room.settle()
        safe()
        return _finish(route, state, report, safe, how.digest == SHA256)


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


def _finish(
    route: Route, state: RunState, report: EventReport, safe: Callable[[], None], sha256: bool
) -> dict[str, Any]:
    """Write index, config, copied files and the statement, then `dsctl.json`, whose presence means complete."""
    plan, target = route.plan, route.target
    files = dict(state.committed)
    for name, size in plan.carried.items():
        copy = plan.renamed.get(name, name)
        files[copy] = signed_bytes(size, replace_file(target / copy, _chunks(route.store, name, size, report), sha256))
    for name, inner in ((name, f"{folder}/{name}") for name in plan.repeated for folder in plan.folders):
        size, again = plan.carried[name], _again(target / plan.renamed.get(name, name))
        files[inner] = signed_bytes(size, replace_file(target / inner, again, sha256))
    for name, data in plan.texts.items():
        files[name] = signed_bytes(len(data), replace_file(target / name, data, sha256))
    if plan.gathers:
        size, chunks = gathered(plan, target)
        files[ODD] = signed_bytes(size, replace_file(target / ODD, chunks, sha256))
    counts = plan.counts | dict(sorted(without_merge(state.counts).items())) | _compared(plan, state)
    result = Made(plan, route.store, route.held, files, counts)
    if plan.card:
        card = result.card()
        files[README] = signed_bytes(len(card), replace_file(target / README, card, sha256))
    made = result.statement()
    files[STATEMENT] = signed_bytes(len(made), replace_file(target / STATEMENT, made, sha256))
    audit = {
        "dsctl": __version__,
        "fingerprint": plan.fingerprint,
        "source": source_json(plan, route.held) | {"files": plan.source_files} | _sums(route),
        "request": plan.request.json(),
        "audit": counts,
        **merge_report(plan, state.counts),
        "dropped": [[item.name, item.why] for item in plan.dropped],
        "notes": plan.notes,
        **({"grafts": plan.grafts} if plan.grafts else {}),
        "files": {name: entry.json() for name, entry in sorted(files.items())},
    }
    safe()
    replace_file(target / SIGNED, (json.dumps(audit, indent=1, ensure_ascii=False) + "\n").encode())
    return audit


def _sums(route: Route) -> dict[str, Any]:
    """The SHA-256 that a hub states for the source's weight files, if the way back can compare with them."""
    if ORIGINAL not in {file.name for file in route.plan.files} or route.plan.merge:
        return {}
    store = route.store.store if isinstance(route.store, Remembered) else route.store
    sums = {name: one for name, one in stated_sums(store).items() if name in route.plan.source_files}
    return {"sha256": sums} if sums else {}


def _compared(plan: Plan, state: RunState) -> dict[str, int]:
    """The numbers of files that are, and are not, the release's own."""
    if not plan.released:
        return {}
    same = sum(state.committed[name].sha256 == sha256 for name, sha256 in plan.released.items())
    return {AS_RELEASED: same, UNLIKE_RELEASED: len(plan.released) - same}
