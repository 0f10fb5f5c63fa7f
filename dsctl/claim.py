"""Whose work a target folder holds, and what in it dsctl made: nothing else is ever removed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dsctl.checkpoint import ORIGINAL
from dsctl.consume import Remembered, is_note
from dsctl.errors import PlanError, ResumeError, SourceError, WorkError
from dsctl.journal import JOURNAL, LOCK, NEW, replace_file
from dsctl.plan import Plan
from dsctl.resources import existing
from dsctl.stores import SIGNED, WORKING, LocalFolder, ObjectFolder, Store, separate
from dsctl.version import __version__

PART = ".part"
BEGUN = "request.json"
# The fingerprint of a folder that is being emptied.
NOBODY = ""
_KEPT = (f"{WORKING}/{LOCK}", f"{WORKING}/{BEGUN}")


class Mark(NamedTuple):
    """What a folder says of itself: in `dsctl.json` where it is complete, else in `.dsctl/request.json`.

    `modified` is when each source file was last changed, `work` what `work_of` gives, `files` what there is or will be.
    """

    complete: bool
    fingerprint: str
    version: str
    request: Any
    revision: str
    place: str
    modified: dict[str, int]
    work: str
    files: tuple[str, ...]


def read_mark(target: Path) -> Mark | None:
    """A folder's mark, or None where there is none that can be read."""
    for complete, file in ((True, target / SIGNED), (False, target / WORKING / BEGUN)):
        try:
            said = json.loads(file.read_bytes())
            source = said.get("source") or {}
            files = said["files"] if complete else said.get("files", ())
            if not isinstance(said["fingerprint"], str) or not isinstance(files, dict if complete else (list, tuple)):
                return None
            version = str(said.get("dsctl" if complete else "version", ""))
            return Mark(
                complete, said["fingerprint"], version, said.get("request"), str(said.get("revision", "")),
                str(source.get("place", "")), dict(source.get("modified") or {}), str(said.get("work", "")),
                tuple(map(str, files)),
            )  # fmt: skip
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
    return None


def modified(plan: Plan, store: Store) -> dict[str, int]:
    """When each weight file of a source on this machine was last changed, in nanoseconds.

    Raises:
        SourceError: one is gone.
    """
    folder = store.store if isinstance(store, Remembered) else store
    if not isinstance(folder, LocalFolder):
        return {}
    # What was consumed is not there.
    there = sorted({*plan.source_files, ORIGINAL} & folder.files().keys())
    try:
        return {file: os.stat(folder.path(file)).st_mtime_ns for file in there}
    except OSError as error:
        raise SourceError(f"{error.filename}: {error.strerror or error}") from None


def changed(plan: Plan, store: Store, mark: Mark) -> set[str]:
    """The source files that were changed since a mark was made; another place's times tell nothing."""
    if mark.place != plan.source:
        return set()
    return {file for file, at in modified(plan, store).items() if mark.modified.get(file, at) != at}


def work_of(plan: Plan) -> str:
    """A digest of which job writes which bytes: what the job numbers of a journal stand for."""
    digest = hashlib.sha256()
    for file in plan.files:
        digest.update(file.header)
    for job in plan.jobs:
        parts = [
            (step.name, region.box.start, region.box.stop, part.suffix, part.file, part.offset)
            for step in job.steps
            for region in step.writes
            for part in region.parts
        ]
        digest.update(f"\n{job.number} {parts}".encode())
    return digest.hexdigest()


def outputs(plan: Plan) -> set[str]:
    """Every file that a complete target holds."""
    repeated = {f"{folder}/{name}" for name in plan.repeated for folder in plan.folders}
    return {*(file.name for file in plan.files), *plan.texts, *plan.carried, *repeated, SIGNED}


def check_target(plan: Plan, store: Store, target: Path, force: bool = False) -> str:
    """What running the plan on a folder would mean: new, resume or complete. Nothing is changed.

    Raises:
        PlanError: the folder is the source, inside it or around it, cannot be written, or holds what dsctl did not
            make.
        ResumeError: it holds another request's work, begun or complete, or what was made of another source.
    """
    _refuse_places(store, target)
    state = _state(plan, store, target, force)
    there = existing(target)
    if state != "complete" and not os.access(there, os.W_OK | os.X_OK):
        raise PlanError(f"{there}: cannot be written", hint="choose another target, or have its permissions changed")
    return state


def _state(plan: Plan, store: Store, target: Path, force: bool) -> str:
    try:
        held = {entry.name for entry in target.iterdir()} if target.exists() else set()
    except OSError as error:
        raise PlanError(f"{target}: {error.strerror or error}") from None
    mark = read_mark(target)
    if mark is None:
        if held - {WORKING} or list(_strangers(plan, target, None)):
            raise PlanError(f"{target}: is not empty and was not made by dsctl", hint="choose a new folder")
        return "new"
    if force or mark.fingerprint == NOBODY:
        others = sorted(_strangers(plan, target, mark))
        if others:
            what = others[0] if len(others) == 1 else f"{len(others):,} files"
            hint = "move what is yours away, or choose a new folder"
            raise PlanError(f"{target}: {what} was not made by dsctl, and is not removed", hint=hint, issues=others)
        return "new"
    if mark.fingerprint != plan.fingerprint:
        raise _of_another(plan, store, target, mark)
    if not mark.complete:
        if mark.work != work_of(plan):
            what = f"was begun by dsctl {mark.version or 'of an earlier version'}, which divides the work otherwise"
            raise ResumeError(f"{target}: {what}", hint="end it with that version, or start over with --force")
        return "resume"
    if files := changed(plan, store, mark):
        what = min(files) if len(files) == 1 else f"{len(files)} weight files"
        raise ResumeError(f"{target}: was made before {what} of the source changed", hint="start over with --force")
    return "complete"


def _refuse_places(store: Store, target: Path) -> None:
    folder = store.store if isinstance(store, Remembered) else store
    if not separate(folder, str(target)):
        raise PlanError(f"{target}: source and target must be separate folders, neither inside the other")
    if target.is_symlink():
        raise PlanError(f"{target}: is a link", hint=f"name what it leads to: {os.path.realpath(target)}")
    if target.exists() and not target.is_dir():
        raise PlanError(f"{target}: exists and is not a folder")
    working = target / WORKING
    if working.is_symlink() or (working.exists() and not working.is_dir()):
        raise PlanError(f"{working}: exists and is not a folder", hint="choose a new target")


def _of_another(plan: Plan, store: Store, target: Path, mark: Mark) -> ResumeError:
    """Why a folder with another fingerprint is not gone on with."""
    what = "the result" if mark.complete else "the unfinished work"
    if mark.revision not in ("", store.revision):
        if isinstance(store, ObjectFolder):
            hint = "start over with --force"
            return ResumeError(f"{target}: holds {what} of a source that has changed since", hint=hint)
        what, hint = (
            f"{what} from commit {mark.revision}",
            "name that commit after @ to resume, or start over with --force",
        )
        return ResumeError(f"{target}: holds {what}, the source is at {store.revision or 'none'}", hint=hint)
    hint = "start over with --force, or choose a new folder"
    if mark.request == plan.request.json():
        return ResumeError(f"{target}: holds {what} of another source, or of this one before it changed", hint=hint)
    return ResumeError(f"{target}: holds {what} of another request", hint=hint)


def _strangers(plan: Plan, target: Path, mark: Mark | None) -> Iterator[str]:
    """What lies in a folder and was not made by dsctl, as far as its mark tells."""
    made = {SIGNED, *mark.files, *_journalled(target)} if mark else set()
    made |= {name + suffix for name in {*made, *(outputs(plan) if mark else ())} for suffix in (PART, NEW)}
    return (name for name in _contents(target) if name not in made and not _own(name))


def _journalled(target: Path) -> Iterator[str]:
    """The finished files of which a journal tells."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        for line in (target / WORKING / JOURNAL).read_bytes().splitlines():
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("file"), str):
                yield record["file"]


def _own(name: str) -> bool:
    """Whether a file is one of those that `.dsctl` holds."""
    folder, _, inner = name.removesuffix(NEW).rpartition("/")
    return folder == WORKING and (inner in (BEGUN, JOURNAL, LOCK) or is_note(inner))


def _contents(target: Path) -> Iterator[str]:
    """Every file and link below a folder, by its relative name with slashes. Links are not followed."""
    for folder, folders, files in os.walk(target):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*files, *links):
            yield Path(folder, name).relative_to(target).as_posix()


def claim(plan: Plan, store: Store, target: Path) -> None:
    """Empty a folder of all that dsctl made, and say whose it is now. `check_target` called it new; its lock is held.

    Killed in between, it leaves a folder that is nobody's, and emptied by the next run.

    Raises:
        WorkError: the folder cannot be written.
    """
    made = sorted(name for name in _contents(target) if not name.startswith(f"{WORKING}/"))
    notes = [name for name in _contents(target) if _own(name) and name not in _KEPT]
    if made or notes:
        # What is done of other work must not outlive the mark of that work.
        _remove(target, notes)
        _write(target, {"fingerprint": NOBODY, "files": made})
        _remove(target, sorted(made, key=lambda name: name != SIGNED))
    sign_begun(plan, store, target)


def sign_begun(plan: Plan, store: Store, target: Path) -> None:
    """Write whose work a folder holds, of a source as it is now.

    Raises:
        WorkError: the folder cannot be written.
    """
    identity = {
        "fingerprint": plan.fingerprint,
        "version": __version__,
        "request": plan.request.json(),
        "revision": store.revision,
        "source": {"place": plan.source, "modified": modified(plan, store)},
        "work": work_of(plan),
        "files": sorted(outputs(plan)),
    }
    _write(target, identity)


def _write(target: Path, identity: dict[str, Any]) -> None:
    replace_file(target / WORKING / BEGUN, json.dumps(identity, indent=1).encode())


def _remove(target: Path, names: Iterable[str]) -> None:
    try:
        for name in names:
            (target / name).unlink(missing_ok=True)
            for folder in Path(name).parents[:-1]:
                with contextlib.suppress(OSError):
                    (target / folder).rmdir()
    except OSError as error:
        raise WorkError(f"{error.filename or target}: {error.strerror or error}") from None


def retire(target: Path) -> None:
    """Remove `.dsctl`, whose work is done; what somebody else put into it stays.

    Raises:
        WorkError: the folder cannot be written.
    """
    names = [name for name in _contents(target / WORKING) if _own(f"{WORKING}/{name}")]
    _remove(target, [f"{WORKING}/{name}" for name in sorted(names, key=lambda name: name == LOCK)])
    with contextlib.suppress(OSError):
        (target / WORKING).rmdir()


__all__ = [
    "PART", "Mark", "changed", "check_target", "claim", "modified", "outputs", "read_mark", "retire", "sign_begun",
    "work_of",
]  # fmt: skip
