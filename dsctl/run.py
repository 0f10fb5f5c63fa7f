"""The driver: hand out jobs, journal their receipts, commit files, finish the folder."""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dsctl.codecs import SCALES
from dsctl.consume import Consumer, Remembered, gone, refuse_unsafe, room
from dsctl.errors import PlanError, ResumeError, WorkError
from dsctl.executors import Executor
from dsctl.header import TensorRef
from dsctl.journal import Journal, Lock, failure, replace_file, sync_folder
from dsctl.plan import Job, OutFile, Plan
from dsctl.resources import existing
from dsctl.scales import refuse_bad_scales
from dsctl.stores import SIGNED, WORKING, LocalFolder, ObjectFolder, Store
from dsctl.tasks import Seal, add
from dsctl.version import __version__

PART = ".part"
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


def check_target(plan: Plan, store: Store, target: Path, force: bool = False) -> str:
    """What running the plan on a folder would mean: new, resume or complete. Nothing is changed.

    Raises:
        PlanError: the folder is the source, inside it or around it, or holds what dsctl did not make.
        ResumeError: it holds another request's work, begun or complete.
    """
    folder = store.store if isinstance(store, Remembered) else store
    if isinstance(folder, LocalFolder):
        source, place = Path(folder.root), Path(os.path.realpath(target))
        if place == source or source in place.parents or place in source.parents:
            raise PlanError(f"{target}: source and target must be separate folders, neither inside the other")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise PlanError(f"{target}: exists and is not a folder")
    try:
        held = {entry.name for entry in target.iterdir()} if target.exists() else set()
    except OSError as error:
        raise PlanError(f"{target}: {error.strerror or error}") from None
    if not held or (held == {WORKING} and not (target / WORKING / "request.json").exists()):
        return "new"
    mine = _identity(target)
    if mine is None:
        raise PlanError(f"{target}: is not empty and was not made by dsctl", hint="choose a new folder")
    complete, found = mine
    if found == plan.fingerprint and not force:
        return "complete" if complete else "resume"
    if force:
        return "new"
    what = "the result" if complete else "the unfinished work"
    begun = _revision(target)
    if begun not in ("", store.revision):
        if isinstance(store, ObjectFolder):
            hint = "start over with --force"
            raise ResumeError(f"{target}: holds {what} of a source that has changed since", hint=hint)
        what, hint = f"{what} from commit {begun}", "name that commit after @ to resume, or start over with --force"
        raise ResumeError(f"{target}: holds {what}, the source is at {store.revision or 'none'}", hint=hint)
    raise ResumeError(
        f"{target}: holds {what} of another request", hint="start over with --force, or choose a new folder"
    )


def _revision(target: Path) -> str:
    """The commit that unfinished work was begun from, or nothing."""
    try:
        return str(json.loads((target / WORKING / "request.json").read_bytes()).get("revision", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _identity(target: Path) -> tuple[bool, str] | None:
    for complete, file in ((True, target / SIGNED), (False, target / WORKING / "request.json")):
        try:
            return complete, str(json.loads(file.read_bytes())["fingerprint"])
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            return complete, "unreadable"
    return (False, "unreadable") if (target / WORKING).is_dir() else None


def check_space(plan: Plan, target: Path, resumed: bool = False, most: int | None = None) -> None:
    """Refuse a run for which the disk has no room; `most` is what it takes where that is less than its output.

    Raises:
        PlanError: with how much is needed and how much is free.
    """
    free, needed = shutil.disk_usage(existing(target)).free, plan.bytes_out if most is None else most
    if resumed and most is None:
        needed -= sum(_allocated(path) for path in target.rglob("*") if path.is_file())
    if needed > free:
        raise PlanError(
            f"{target}: needs {needed:,} bytes of disk, {free:,} are free",
            hint=f"free {needed - free:,} bytes, or convert part of it with --only",
        )


def _scales(plan: Plan) -> list[TensorRef]:
    """The scales that a plan will compute with."""
    return [
        TensorRef(step.name + part.suffix, part.spec, part.file, part.offset, part.offset + part.spec.nbytes)
        for step in plan.steps
        if step.how == "recode"
        for region in (*step.reads, *((step.kept,) if step.kept else ()))
        for part in region.parts
        if part.suffix in SCALES
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
    state = check_target(plan, store, target, force)
    if state == "complete":
        return _confirmed(target)
    if consume:
        refuse_unsafe(plan, store)
    check_space(plan, target, state == "resume", room(plan, store, existing(target)) if consume else most)
    refuse_bad_scales(store, [ref for ref in _scales(plan) if ref.file not in gone(store)])
    working = target / WORKING
    try:
        working.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkError(f"{target}: {error.strerror or error}") from None
    lock = Lock(working)
    try:
        if state == "new":
            _clear(target)
            identity = {
                "fingerprint": plan.fingerprint,
                "version": __version__,
                "request": plan.request.json(),
                "revision": store.revision,
            }
            replace_file(working / "request.json", json.dumps(identity, indent=1).encode())
        with Journal(working) as journal:
            audit = _drive(plan, store, target, journal, executor, report, consume)
        shutil.rmtree(working)
        sync_folder(target)
    finally:
        lock.release()
    return audit


def _confirmed(target: Path) -> dict[str, Any]:
    """The audit of a complete folder whose files still have the sizes it tells of."""
    audit = dict(json.loads((target / SIGNED).read_bytes()))
    for name, file in audit["files"].items():
        path = target / name
        if not path.is_file() or path.stat().st_size != file["size"]:
            raise ResumeError(f"{path}: was finished, but is gone or changed", hint="start over with --force")
    shutil.rmtree(target / WORKING, ignore_errors=True)
    return audit


def _clear(target: Path) -> None:
    """Empty a folder that dsctl made; the lock stays."""
    for entry in target.iterdir():
        if entry.name == WORKING:
            for inner in entry.iterdir():
                if inner.name != "lock":
                    inner.unlink()
        elif entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _drive(
    plan: Plan,
    store: Store,
    target: Path,
    journal: Journal,
    executor: Callable[[], Executor],
    report: Report,
    consume: bool,
) -> dict[str, Any]:
    state = _replay(plan, target, journal)
    if journal.records:
        nbytes = sum(sum(s.read_bytes for s in job.steps) for job in plan.jobs if job.number in state.done)
        report(Resumed(len(state.done), len(plan.jobs), nbytes))
    for file in plan.files:
        if file.name not in state.committed:
            _prepare(file, target)
    sync_folder(target)
    consumer = Consumer(store, target, plan.jobs, state.done) if consume else None
    todo = deque(job for job in plan.jobs if job.number not in state.done)
    if todo or len(state.committed) < len(plan.files):
        workers = executor()
        try:
            _work(plan, target, journal, workers, state, todo, report, consumer)
        finally:
            workers.close()
    return _finish(plan, store, target, state, report)


def _replay(plan: Plan, target: Path, journal: Journal) -> _State:
    state = _State()
    for record in journal.records:
        if "file" in record:
            state.committed[record["file"]] = (record["size"], record["sha256"])
        elif record["job"] not in state.done:
            state.done.add(record["job"])
            add(state.counts, record["counts"])
    for file, (size, _) in state.committed.items():
        path = target / file
        if not path.is_file() or path.stat().st_size != size:
            raise ResumeError(f"{path}: was finished, but is gone or changed", hint="start over with --force")
    return state


def _prepare(file: OutFile, target: Path) -> None:
    """Make a file's `.part` with its header and known bytes; one that is there already is left as it is."""
    path = target / (file.name + PART)
    if (target / file.name).is_file():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and path.stat().st_size != file.size):
            path.unlink()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            os.truncate(descriptor, file.size)
            for offset, data in ((0, file.header), *file.literals):
                _pwrite(descriptor, data, offset)
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise failure(path, error) from None


def _pwrite(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


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


def _finish(plan: Plan, store: Store, target: Path, state: _State, report: Report) -> dict[str, Any]:
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
        "source": {"place": plan.source, "files": plan.source_files},
        "request": plan.request.json(),
        "audit": plan.counts | dict(sorted(state.counts.items())),
        "dropped": [[item.name, item.why] for item in plan.dropped],
        "notes": plan.notes,
        "files": dict(sorted(files.items())),
    }
    replace_file(target / SIGNED, (json.dumps(audit, indent=1, ensure_ascii=False) + "\n").encode())
    return audit
