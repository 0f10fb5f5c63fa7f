"""The valid work of an interrupted run: its journal, replayed against the present files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dsctl.checkpoint.odd_scales import ODD
from dsctl.core.errors import ResumeError
from dsctl.core.files import PART
from dsctl.plan.plan import OutFile, Plan, files_read
from dsctl.run.consume import gone
from dsctl.run.gathered import lost_pieces
from dsctl.run.identity import HeldFile, touched
from dsctl.run.journal import Journal
from dsctl.run.marks import Mark, Route, read_mark, sign_begun
from dsctl.stores import INDEX
from dsctl.work.tasks import add


@dataclass(slots=True)
class RunState:
    """The finished jobs, their counts, and the size and digest of every file that has its final name."""

    done: set[int] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    committed: dict[str, tuple[int, str]] = field(default_factory=dict)


def replay(target: Path, journal: Journal) -> RunState:
    """The state that a journal records.

    Raises:
        ResumeError: a line is not valid, or a finished file is missing or has a different size.
    """
    state = RunState()
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
            raise ResumeError(f"{path}: was finished, but is now missing or changed", hint="start over with --force")
    return state


def regain(route: Route, journal: Journal) -> RunState:
    """The recorded work that is still valid: without work in lost files, or on source files that have changed.

    Raises:
        ResumeError: the journal is of different work, or the source of lost work was consumed.
    """
    plan, target = route.plan, route.target
    state = replay(target, journal)
    jobs = [job for job in plan.jobs if job.number in state.done]
    if len(jobs) < len(state.done) or not state.committed.keys() <= {file.name for file in plan.files}:
        raise journal.invalid()
    mark = read_mark(target)
    new = _new(route.held, mark, plan)
    lost = {file.name for file in plan.files if file.name not in state.committed and not _there(file, target)}
    # A side file's copies of config.json and the index are written with its header, not by a job.
    lost |= {file.name for file in plan.files if file.literals and new & {"config.json", INDEX}}
    forgotten = {job.number for job in jobs if new and not new.isdisjoint(files_read(job))}
    forgotten |= set(lost_pieces(jobs, target)) if plan.gathers else set()
    why = min(lost or new, default=ODD)
    while True:
        forgotten |= {job.number for job in jobs if not lost.isdisjoint(job.files)}
        # A finished file is made again as a whole, because it cannot be opened for writing in part.
        opened = {file for job in jobs if job.number in forgotten for file in job.files} & state.committed.keys()
        if opened <= lost:
            break
        lost |= opened
    if forgotten:
        consumed = [file for job in jobs if job.number in forgotten for file in files_read(job) & gone(route.store)]
        if consumed:
            what = f"{why} is lost or changed, and {consumed[0]}, which is needed again, was consumed"
            raise ResumeError(f"{target}: {what}")
        journal.keep(
            [one for one in journal.records if one.get("file") not in lost and one.get("job") not in forgotten]
        )
        state = replay(target, journal)
    if mark and (mark.held, mark.place) != (route.held, plan.source):
        sign_begun(route)
    return state


def _new(held: Mapping[str, HeldFile], mark: Mark | None, plan: Plan) -> set[str]:
    """The source files that may have changed since the journal was written; a copy's samples were compared before."""
    if mark is None or not mark.held:
        return set(held)
    return set(touched(held, mark.held)) if mark.place == plan.source else set()


def _there(file: OutFile, target: Path) -> bool:
    """Whether a file with recorded work exists, under either of its names."""
    paths = target / file.name, target / (file.name + PART)
    return any(path.is_file() and not path.is_symlink() and path.stat().st_size == file.size for path in paths)
