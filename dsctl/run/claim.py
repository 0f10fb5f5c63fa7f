"""The owner of a target folder's work, and the files in it that dsctl made: no other file is ever removed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from dsctl.checkpoint.checkpoint import ORIGINAL
from dsctl.checkpoint.odd_scales import ODD, is_piece
from dsctl.checkpoint.side_files import WHOLE
from dsctl.core.errors import PlanError, ResumeError, SourceError, WorkError
from dsctl.core.files import NEW, PART, existing, failure, read_own, refusal
from dsctl.plan.plan import Plan
from dsctl.run.consume import NOTES, Remembered, is_note
from dsctl.run.identity import HeldFile, identity, touched, unlike
from dsctl.run.journal import JOURNAL
from dsctl.run.locks import LOCK
from dsctl.run.marks import BEGUN, NOBODY, Mark, Route, outputs, read_mark, sign_begun, sign_nobody, work_of
from dsctl.stores import SIGNED, STATEMENT, WORKING, Store, separate
from dsctl.stores.objects import ObjectFolder

# Errors of the disk, not of the chosen place.
_FAILING = (errno.EIO, errno.ENOSPC, errno.ESTALE, errno.ENOMEM)
_KEPT = (f"{WORKING}/{LOCK}", f"{WORKING}/{BEGUN}")
# Files that dsctl keeps for itself in a target; each must be a regular file without a second link.
_OWN = (*_KEPT, f"{WORKING}/{JOURNAL}", SIGNED, STATEMENT, ORIGINAL, ODD, WHOLE)


def held_now(plan: Plan, store: Store, mark: Mark | None) -> dict[str, HeldFile]:
    """The identity of the source's files; for consumed files, the one recorded in the mark.

    Raises:
        SourceError: a file cannot be read.
    """
    noted = mark.held if mark else {}
    return noted | identity(plan, store, noted if mark and mark.place == plan.source else None)


def refuse_unlike(plan: Plan, store: Store, target: str, mark: Mark) -> None:
    """Refuse to resume, or to call complete, work on a different source with the same headers.

    An unfinished folder is resumed if its source was changed in place, or if its identity was not recorded: the output
    of the changed files, or of all files, is made again.

    Raises:
        ResumeError: with both places and the files that differ.
        SourceError: a file cannot be read.
    """
    here = mark.place == plan.source and not store.remote
    if not mark.complete and (here or not mark.held):
        return
    hint = "start over with --force, or choose a new folder"
    if not mark.held:
        version = f"dsctl {mark.version}" if mark.version else "an earlier version"
        what = f"holds the result of {version}, which did not record the identity of its source"
        raise ResumeError(f"{target}: {what}", hint=hint)
    now = identity(plan, store, mark.held if here else None)
    other = sorted(unlike(now, mark.held))
    if other and not here:
        what = "the result" if mark.complete else "the unfinished work"
        differ = f"{_few(other)} differ{'s' * (len(other) == 1)}"
        said = f"holds {what} of {mark.place or 'a different source'}; {plan.source} is different: {differ}"
        raise ResumeError(f"{target}: {said}", hint=hint, issues=other if len(other) > 1 else ())
    doubtful = sorted(touched(now, mark.held)) if here else []
    if other:
        first = other[0] if len(other) == 1 else f"{len(other):,} files"
        raise ResumeError(f"{target}: was made before {first} of the source changed", hint="start over with --force")
    if doubtful:
        what = f"was made before {_few(doubtful)} of the source was touched or replaced"
        raise ResumeError(
            f"{target}: {what}; a sample of the bytes is equal",
            hint="`dsctl compare` reads every byte; --force makes the result again",
        )


def check_target(plan: Plan, store: Store, target: Path, force: bool = False) -> str:
    """The state of a folder for this plan: new, resume or complete. Nothing is changed.

    Raises:
        PlanError: the folder is the source, inside it or around it, cannot be written, or holds files that dsctl did
            not make.
        ResumeError: it holds the work of a different request or source, begun or complete.
        SourceError: the source cannot be read. WorkError: the disk of the target fails.
    """
    _refuse_places(plan, store, target)
    state = _state(plan, store, target, force)
    there = existing(target)
    if state != "complete" and not os.access(there, os.W_OK | os.X_OK):
        raise PlanError(f"{there}: cannot be written", hint="choose another target, or change its permissions")
    return state


def _state(plan: Plan, store: Store, target: Path, force: bool) -> str:
    try:
        held = {entry.name for entry in target.iterdir()} if target.exists() else set()
    except OSError as error:
        if error.errno in _FAILING:
            raise failure(target, error) from None
        raise refusal(target, error, PlanError, "choose another target") from None
    mark = read_mark(target)
    if mark is None:
        if held - {WORKING} or list(_strangers(plan, target, None)):
            raise PlanError(f"{target}: is not empty and was not made by dsctl", hint="choose a new folder")
        return "new"
    if force or mark.fingerprint == NOBODY:
        others = sorted(_strangers(plan, target, mark))
        if others:
            what = f"{others[0]} was" if len(others) == 1 else f"{len(others):,} files were"
            hint = "move your files away, or choose a new folder"
            raise PlanError(f"{target}: {what} not made by dsctl; nothing was removed", hint=hint, issues=others)
        return "new"
    if mark.fingerprint != plan.fingerprint:
        raise of_another(plan, store, str(target), mark)
    if not mark.complete and mark.work != work_of(plan):
        what = f"was begun by dsctl {mark.version or 'of an earlier version'}, which divides the work differently"
        raise ResumeError(f"{target}: {what}", hint="finish it with that version, or start over with --force")
    refuse_unlike(plan, store, str(target), mark)
    return "complete" if mark.complete else "resume"


def _refuse_places(plan: Plan, store: Store, target: Path) -> None:
    folder = store.store if isinstance(store, Remembered) else store
    if not separate(folder, str(target)):
        raise PlanError(f"{target}: source and target must be separate folders, neither inside the other")
    if target.is_symlink():
        raise PlanError(f"{target}: is a link", hint=f"name the folder that it points to: {os.path.realpath(target)}")
    if target.exists() and not target.is_dir():
        raise PlanError(f"{target}: exists and is not a folder")
    folders = {parent for name in (*outputs(plan), f"{NOTES}/note", *_KEPT) for parent in Path(name, "x").parents[1:-1]}
    for inner in sorted(target / one for one in folders):
        if inner.is_symlink() or (inner.exists() and not inner.is_dir()):
            raise PlanError(f"{inner}: exists and is not a folder", hint="choose a new target")
    for file in (target / name for name in _OWN):
        try:
            status = os.lstat(file)
        except OSError:
            continue
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            what = "is a link or not a regular file, but dsctl needs this name for its own file"
            raise PlanError(f"{file}: {what}", hint="choose a new target")


def of_another(plan: Plan, store: Store, target: str, mark: Mark) -> ResumeError:
    """The error for a folder with a different fingerprint."""
    what = "the result" if mark.complete else "the unfinished work"
    if mark.revision not in ("", store.revision):
        if isinstance(store, ObjectFolder):
            hint = "start over with --force"
            return ResumeError(f"{target}: holds {what} of a source that has changed since", hint=hint)
        what, hint = (
            f"{what} from commit {mark.revision}",
            "name that commit after @ to resume, or start over with --force",
        )
        return ResumeError(f"{target}: holds {what}, but the source is at {store.revision or 'none'}", hint=hint)
    hint = "start over with --force, or choose a new folder"
    if mark.request != plan.request.json():
        return ResumeError(f"{target}: holds {what} of a different request", hint=hint)
    other = _unlike_files(plan, store, mark)
    differ = f"{_few(other)} differ{'s' * (len(other) == 1)}" if other else "names, sizes or headers of files differ"
    if mark.place == plan.source:
        said = f"holds {what} of {mark.place} before it changed: {differ}"
    else:
        said = f"holds {what} of {mark.place or 'a different source'}; {plan.source} is different: {differ}"
    return ResumeError(f"{target}: {said}", hint=hint, issues=other if len(other) > 1 else ())


def _unlike_files(plan: Plan, store: Store, mark: Mark) -> list[str]:
    """The files in which a source differs from the recorded one, if comparing them is cheap."""
    if store.remote or not mark.held:
        return []
    try:
        now = identity(plan, store, mark.held if mark.place == plan.source else None)
    except SourceError:
        return []
    return sorted({*unlike(now, mark.held), *(mark.held.keys() - now.keys())})


def _few(files: list[str]) -> str:
    return files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1:,} more files"


def _strangers(plan: Plan, target: Path, mark: Mark | None) -> Iterator[str]:
    """The files in a folder that dsctl did not make, according to its mark."""
    made = {SIGNED, *mark.files, *_journalled(target)} if mark else set()
    made |= {name + suffix for name in {*made, *(outputs(plan) if mark else ())} for suffix in (PART, NEW)}
    return (name for name in _contents(target) if name not in made and not _own(name))


def _journalled(target: Path) -> Iterator[str]:
    """The finished files in a journal."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        for line in read_own(target / WORKING / JOURNAL).splitlines():
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("file"), str):
                yield record["file"]


def _own(name: str) -> bool:
    """Whether dsctl keeps a file for itself: in `.dsctl`, or the note on a consumed file."""
    folder, _, inner = name.removesuffix(NEW).rpartition("/")
    if folder == WORKING:
        return inner in (BEGUN, JOURNAL, LOCK) or is_piece(inner)
    return folder == NOTES and is_note(inner)


def _contents(target: Path) -> Iterator[str]:
    """Every file and link in a folder and its subfolders, by relative name with slashes. Links are not followed."""
    for folder, folders, files in os.walk(target):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in (*files, *links):
            yield Path(folder, name).relative_to(target).as_posix()


def claim(route: Route) -> None:
    """Remove all files that dsctl made in a folder, and record its new owner.

    `check_target` has called it new, and its lock is held. If killed halfway, the folder has no owner, and the next run
    empties it.

    Raises:
        WorkError: the folder cannot be written.
    """
    target = route.target
    made = sorted(name for name in _contents(target) if not name.startswith(f"{WORKING}/"))
    notes = [name for name in _contents(target) if _own(name) and name not in _KEPT]
    if made or notes:
        # The records of other work must not outlive its mark.
        _remove(target, notes)
        sign_nobody(target, made)
        _remove(target, sorted(made, key=lambda name: name != SIGNED))
    sign_begun(route)


def _remove(target: Path, names: Iterable[str]) -> None:
    try:
        for name in names:
            (target / name).unlink(missing_ok=True)
            for folder in Path(name).parents[:-1]:
                with contextlib.suppress(OSError):
                    (target / folder).rmdir()
    except OSError as error:
        raise refusal(error.filename or target, error, WorkError) from None


def retire(target: Path) -> None:
    """Remove `.dsctl`, whose work is done; files that dsctl did not put there stay.

    Raises:
        WorkError: the folder cannot be written.
    """
    names = [name for name in _contents(target / WORKING) if _own(f"{WORKING}/{name}")]
    _remove(target, [f"{WORKING}/{name}" for name in sorted(names, key=lambda name: name == LOCK)])
    with contextlib.suppress(OSError):
        (target / WORKING).rmdir()
