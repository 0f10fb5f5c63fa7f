"""The driver: hand out jobs, journal their receipts, commit files, finish the folder."""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dsctl.checkpoint.reading import strict_json
from dsctl.checkpoint.scales import refuse_bad_scales
from dsctl.codecs.codec import SCALES
from dsctl.core.errors import FormatError, PlanError, ResumeError, WorkError
from dsctl.core.files import existing, failure, make_folders, read_own, replace_file, sync_folder, write_all
from dsctl.core.header import TensorRef
from dsctl.layouts.naming import DIALECTS
from dsctl.plan.plan import COUNTED, Job, OutFile, Plan, files_read
from dsctl.run.claim import PART, Mark, check_target, claim, held_now, read_mark, retire, sign_begun, source_json
from dsctl.run.consume import Consumer, alone, beside_others, gone, refuse_consumed_since, refuse_unsafe, room
from dsctl.run.identity import Held, times, touched
from dsctl.run.journal import Journal, Lock, is_count
from dsctl.stores import INDEX, SIGNED, WORKING, Store
from dsctl.version import __version__
from dsctl.work.executors import Executor
from dsctl.work.tasks import Seal, add

COPY_BYTES = 8 << 20


class Advanced(NamedTuple):
    """Source bytes that are done."""

    nbytes: int


class Committed(NamedTuple):
    """A file that has its final name, its bytes on the disk."""

    file: str
    size: int
    sha256: str


class Resumed(NamedTuple):
    """How much of an interrupted run's work was found done."""

    jobs: int
    of: int
    nbytes: int


Event = Advanced | Committed | Resumed
Report = Callable[[Event], None]


@dataclass(slots=True)
class _State:
    done: set[int] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    committed: dict[str, tuple[int, str]] = field(default_factory=dict)


def check_space(plan: Plan, target: Path, most: int | None = None) -> None:
    """Refuse a run for which the disk has no room; `most` is what it takes where that is less than its output.

    What dsctl left in the target before is gone on with or removed, and takes no more room.

    Raises:
        PlanError: with how much is needed and how much is free.
    """
    free, needed = shutil.disk_usage(existing(target)).free, plan.bytes_out if most is None else most
    if most is None:
        needed -= sum(_allocated(path) for path in target.rglob("*") if path.is_file() and not path.is_symlink())
    if needed > free:
        raise PlanError(
            f"{target}: needs {needed:,} bytes of disk, {free:,} are free",
            hint=f"free {needed - free:,} bytes, or convert part of it with --only",
        )


def check_source(plan: Plan, store: Store) -> None:
    """Refuse a source that is bound to fail after hours: impossible scales, files to carry over that do not open.

    Raises:
        FormatError: a scale is NaN, infinite, zero or negative. SourceError: a file cannot be read.
    """
    for name in plan.carried if not store.remote else ():
        store.read(name, 0, 0)
    refuse_bad_scales(store, [ref for ref in _scales(plan) if ref.file not in gone(store)])


def _scales(plan: Plan) -> list[TensorRef]:
    """The scales that a plan computes with or moves."""
    return [
        TensorRef(
            DIALECTS[region.codec.dialect].tensor(step.name, part.name),
            part.spec,
            part.file,
            part.offset,
            part.offset + part.spec.nbytes,
        )
        for step in plan.steps
        for region in (*step.reads, *((step.kept,) if step.kept else ()))
        for part in region.parts
        if part.name in SCALES
    ]


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def run(
    plan: Plan,
    store: Store,
    target: Path,
    executor: Callable[[], Executor],
    report: Report = lambda event: None,
    force: bool = False,
    consume: bool = False,
    most: int | None = None,
) -> dict[str, Any]:
    """Carry a plan out, from wherever an interrupted run left it, and return the audit kept in `dsctl.json`.

    With `consume`, a source file is removed as soon as every byte made from it is on the target's disk. `most` is the
    disk that the target folder takes where finished files do not stay in it.

    Raises:
        PlanError, ResumeError: see `check_target`; also where another process holds the folder.
        FormatError: a scale is NaN, infinite, zero or negative; nothing was written.
        SourceError, WorkError: something failed on the way; the same call resumes.
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
        # Another run may have ended between the first look and the lock: what counts is what is there now.
        refuse_consumed_since(store, target)
        mark = read_mark(target)
        if force and mark != seen:
            what = "another run worked here in the meantime"
            raise ResumeError(f"{target}: {what}", hint="look at what it made, then run the same command again")
        state = check_target(plan, store, target, force)
        if state == "complete":
            audit = _audit(target)
        else:
            with alone(store) if consume else nullcontext():
                audit = _locked(plan, store, target, state, executor, report, consume, lock)
        retire(target)
        sync_folder(target)
    finally:
        lock.release()
    return audit


def _locked(
    plan: Plan,
    store: Store,
    target: Path,
    state: str,
    executor: Callable[[], Executor],
    report: Report,
    consume: bool,
    lock: Lock,
) -> dict[str, Any]:
    """The run proper, on a folder whose lock is held."""
    held = held_now(plan, store, read_mark(target) if state == "resume" else None)
    # The run that made these may have been killed before they were on the disk.
    for folder in (target.absolute().parent, target, target / WORKING):
        sync_folder(folder)
    if state == "new":
        claim(plan, store, target, held)
    with Journal(target / WORKING) as journal:
        return _drive(plan, store, target, journal, executor, report, consume, lock, held)


def _confirmed(target: Path) -> dict[str, Any]:
    """The audit of a complete folder; what its run left behind when it was killed at the very end is removed."""
    if not (target / WORKING).exists():
        return _audit(target)
    lock = Lock(target / WORKING)
    try:
        audit = _audit(target)
        retire(target)
    finally:
        lock.release()
    return audit


def _audit(target: Path) -> dict[str, Any]:
    """The audit of a complete folder whose files still have the sizes that it names.

    Raises:
        ResumeError: one has not, or the audit is not valid.
    """
    try:
        audit = valid_audit(strict_json(read_own(target / SIGNED), SIGNED))
    except (OSError, TypeError, ValueError, RecursionError, FormatError) as error:
        raise ResumeError(f"{target / SIGNED}: is not valid: {error}", hint="start over with --force") from None
    for name, file in audit["files"].items():
        try:
            same = os.stat(target / name).st_size == file["size"]
        except (OSError, ValueError):
            same = False
        if not same:
            raise ResumeError(f"{target / name}: was finished, but is gone or changed", hint="start over with --force")
    return audit


def valid_audit(said: Any) -> dict[str, Any]:
    """What `dsctl.json` says, where it is what a run writes.

    Raises:
        TypeError, ValueError: with what it lacks.
    """
    if not isinstance(said, dict):
        raise TypeError("it is not an object")
    files, counts = said.get("files"), said.get("audit")
    if not isinstance(files, dict) or not all(
        isinstance(file, dict) and is_count(file.get("size")) and isinstance(file.get("sha256"), str)
        for file in files.values()
    ):
        raise ValueError("files: a size or a digest is missing")
    if not isinstance(counts, dict) or not all(map(is_count, counts.values())):
        raise ValueError("audit: a count is not a number")
    if lacking := [name for name in COUNTED if name not in counts]:
        raise ValueError(f"audit: {', '.join(lacking)} is missing")
    if not isinstance(said.get("notes"), list) or not isinstance(said.get("dropped"), list):
        raise TypeError("notes or dropped is missing")
    return said


def _drive(
    plan: Plan,
    store: Store,
    target: Path,
    journal: Journal,
    executor: Callable[[], Executor],
    report: Report,
    consume: bool,
    lock: Lock,
    held: dict[str, Held],
) -> dict[str, Any]:
    state = _regain(plan, store, target, journal, held)
    if journal.records:
        nbytes = sum(sum(s.read_bytes for s in job.steps) for job in plan.jobs if job.number in state.done)
        report(Resumed(len(state.done), len(plan.jobs), nbytes))
    todo = deque(job for job in plan.jobs if job.number not in state.done)
    waiting = _waiting(plan.files, todo)
    for file in plan.files:
        if file.name not in state.committed:
            _prepare(file, target, sealed=not waiting[file.name])
    for folder in sorted({(target / file.name).parent for file in plan.files} | {target}):
        sync_folder(folder)

    def safe(file: str | None = None) -> None:
        if not lock.held():
            what = "was removed or replaced while this run was at work"
            raise WorkError(f"{lock.path}: {what}", hint="run the same command again")
        now = times(plan, store)
        late = [file] if file and file not in now else [one for one in touched(now, held) if file in (None, one)]
        if late:
            what = f"{store.place}/{min(late)}: was changed while it was read"
            raise WorkError(what, hint="run the same command again: it converts that file again")

    consumer = Consumer(store, target, plan.jobs, state.done, safe) if consume else None
    if todo or len(state.committed) < len(plan.files):
        workers = executor()
        try:
            _work(plan, target, journal, workers, state, todo, report, consumer)
        finally:
            workers.close()
    safe()
    return _finish(plan, store, target, state, report, held, safe)


def _replay(plan: Plan, target: Path, journal: Journal) -> _State:
    state = _State()
    try:
        for record in journal.records:
            if "file" in record:
                state.committed[record["file"]] = (record["size"], record["sha256"])
            elif record["job"] not in state.done:
                state.done.add(record["job"])
                add(state.counts, record["counts"])
    except (KeyError, TypeError, AttributeError):
        raise journal.invalid() from None
    for file, (size, _) in state.committed.items():
        path = target / file
        if not path.is_file() or path.stat().st_size != size:
            raise ResumeError(f"{path}: was finished, but is gone or changed", hint="start over with --force")
    return state


def _regain(plan: Plan, store: Store, target: Path, journal: Journal, held: Mapping[str, Held]) -> _State:
    """The journalled work that still counts: not what lay in files that are lost, or was made of others than there are.

    Raises:
        ResumeError: the journal tells of other work, or nothing is left to do the lost work from.
    """
    state = _replay(plan, target, journal)
    jobs = [job for job in plan.jobs if job.number in state.done]
    if len(jobs) < len(state.done) or not state.committed.keys() <= {file.name for file in plan.files}:
        raise journal.invalid()
    mark = read_mark(target)
    new = _new(held, mark, plan)
    lost = {file.name for file in plan.files if file.name not in state.committed and not _there(file, target)}
    # What a side file keeps of config.json and the index is written with its header, not by a job.
    lost |= {file.name for file in plan.files if file.literals and new & {"config.json", INDEX}}
    forgotten = {job.number for job in jobs if new and not new.isdisjoint(files_read(job))}
    why = min(lost or new, default="")
    while True:
        forgotten |= {job.number for job in jobs if not lost.isdisjoint(job.files)}
        # A finished file is made whole again: no part of it is open to be written to.
        opened = {file for job in jobs if job.number in forgotten for file in job.files} & state.committed.keys()
        if opened <= lost:
            break
        lost |= opened
    if forgotten:
        consumed = [file for job in jobs if job.number in forgotten for file in files_read(job) & gone(store)]
        if consumed:
            what = f"{why} is lost or changed, and {consumed[0]}, which is needed again, was consumed"
            raise ResumeError(f"{target}: {what}")
        journal.keep(
            [one for one in journal.records if one.get("file") not in lost and one.get("job") not in forgotten]
        )
        state = _replay(plan, target, journal)
    if mark and (mark.held, mark.place) != (held, plan.source):
        sign_begun(plan, store, target, held)
    return state


def _new(held: Mapping[str, Held], mark: Mark | None, plan: Plan) -> set[str]:
    """The source files that may not be those of which the journal tells; a copy's samples were compared before."""
    if mark is None or not mark.held:
        return set(held)
    return set(touched(held, mark.held)) if mark.place == plan.source else set()


def _there(file: OutFile, target: Path) -> bool:
    """Whether a file that work was journalled for is there, under either of its names."""
    paths = target / file.name, target / (file.name + PART)
    return any(path.is_file() and not path.is_symlink() and path.stat().st_size == file.size for path in paths)


def _prepare(file: OutFile, target: Path, sealed: bool = False) -> None:
    """Make a file's `.part` with its header and known bytes; one that is there already is left as it is.

    Where all work on it is done (`sealed`), it may have its final name.
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
    state: _State,
    todo: deque[Job],
    report: Report,
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


def _chunks(store: Store, file: str, size: int, report: Report) -> Iterator[bytes]:
    for begin in range(0, size, COPY_BYTES):
        chunk = store.read(file, begin, min(begin + COPY_BYTES, size))
        yield chunk
        report(Advanced(len(chunk)))


def _again(path: Path) -> Iterator[bytes]:
    """The bytes of a file that was written."""
    with open(path, "rb") as file:
        while chunk := file.read(COPY_BYTES):
            yield chunk


def _finish(
    plan: Plan, store: Store, target: Path, state: _State, report: Report, held: Mapping[str, Held],
    safe: Callable[[], None],
) -> dict[str, Any]:  # fmt: skip
    """Index, config and carried files, then `dsctl.json`, whose presence means complete."""
    files = {name: {"size": size, "sha256": sha256} for name, (size, sha256) in state.committed.items()}
    for name, size in plan.carried.items():
        files[name] = {"size": size, "sha256": replace_file(target / name, _chunks(store, name, size, report))}
    for name, inner in ((name, f"{folder}/{name}") for name in plan.repeated for folder in plan.folders):
        files[inner] = files[name] | {"sha256": replace_file(target / inner, _again(target / name))}
    for name, data in plan.texts.items():
        files[name] = {"size": len(data), "sha256": replace_file(target / name, data)}
    audit = {
        "dsctl": __version__,
        "fingerprint": plan.fingerprint,
        "source": source_json(plan, held) | {"files": plan.source_files},
        "request": plan.request.json(),
        "audit": plan.counts | dict(sorted(state.counts.items())),
        "dropped": [[item.name, item.why] for item in plan.dropped],
        "notes": plan.notes,
        "files": dict(sorted(files.items())),
    }
    safe()
    replace_file(target / SIGNED, (json.dumps(audit, indent=1, ensure_ascii=False) + "\n").encode())
    return audit
