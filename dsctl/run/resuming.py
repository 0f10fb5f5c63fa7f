"""The valid work of an interrupted run: its journal, replayed against the present files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsctl.checkpoint.odd_scales import ODD
from dsctl.checkpoint.signed_files import SignedFile
from dsctl.core.digests import split
from dsctl.core.errors import ResumeError
from dsctl.core.files import PART
from dsctl.plan.plan import Job, OutFile, Plan, files_read
from dsctl.plan.stretches import written
from dsctl.run.consume import gone
from dsctl.run.events import EventReport, ReadBack, Torn
from dsctl.run.gathered import lost_pieces
from dsctl.run.identity import HeldFile, touched
from dsctl.run.journal import Journal
from dsctl.run.marks import Mark, Route, boot, read_mark, sign_begun
from dsctl.run.signing import StretchDigests, as_text, from_text, holds_known, read_back
from dsctl.stores import INDEX
from dsctl.work.tasks import add


@dataclass(slots=True)
class RunState:
    """The finished jobs, their counts and digests, and the entry of every file that has its final name.

    `seconds` are those of this run's jobs, by what they were spent on.
    """

    done: set[int] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    committed: dict[str, SignedFile] = field(default_factory=dict)
    digests: StretchDigests = field(default_factory=StretchDigests)
    seconds: dict[str, float] = field(default_factory=dict)


def replay(plan: Plan, target: Path, journal: Journal) -> RunState:
    """The state that a journal records.

    Raises:
        ResumeError: a line is not valid, or a finished file is missing or has a different size.
    """
    state, jobs = RunState(), {job.number: job for job in plan.jobs}
    files = {file.name: file for file in plan.files}
    sealed: dict[str, str] = {}
    try:
        for record in journal.records:
            if "file" in record:
                sealed[files[record["file"]].name] = record.get("sha256", "")
            elif record["job"] not in state.done:
                state.done.add(record["job"])
                add(state.counts, record["counts"])
                state.digests.add(jobs[record["job"]], from_text(record["digests"]))
        for name, sha256 in sealed.items():
            state.committed[name] = state.digests.entry(files[name], sha256)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise journal.invalid() from None
    for name in sealed:
        path = target / name
        if not path.is_file() or path.stat().st_size != files[name].size:
            raise ResumeError(f"{path}: was finished, but is now missing or changed", hint="start over with --force")
    return state


def regain(route: Route, journal: Journal, report: EventReport) -> RunState:
    """The recorded work that is still valid: without work in lost files, on source files that have changed, or that did
    not reach the disk before the system was restarted.

    Raises:
        ResumeError: the journal is of different work, or the source of lost work was consumed.
    """
    plan, target, mark = route.plan, route.target, read_mark(route.target)
    known = {job.number: job for job in plan.jobs}
    names = {file.name for file in plan.files}
    try:
        finished = {record["file"] for record in journal.records if "file" in record}
        jobs = {number: known[number] for record in journal.records if (number := record.get("job")) is not None}
    except KeyError:
        raise journal.invalid() from None
    if not finished <= names:
        raise journal.invalid()
    new = changed_since(route.held, mark, plan)
    lost = {file.name for file in plan.files if file.name not in finished and not _there(file, target)}
    # A side file's copies of config.json and the index are written with its header, not by a job.
    lost |= {file.name for file in plan.files if file.literals and new & {"config.json", INDEX}}
    if _restarted(mark):
        kept = finished - route.sent
        lost |= {file.name for file in plan.files if file.name in kept and not holds_known(target, file)}
    forgotten = {number for number, job in jobs.items() if new and not new.isdisjoint(files_read(job))}
    forgotten |= set(lost_pieces(jobs.values(), target)) if plan.gathers else set()
    torn = _torn(route, journal, [jobs[n] for n in sorted(jobs.keys() - forgotten)], mark, report)
    why = min(lost or new, default=f"the output of job {min(torn)}" if torn else ODD)
    forgotten |= torn
    while True:
        forgotten |= {number for number, job in jobs.items() if not lost.isdisjoint(job.files)}
        # A finished file is made again as a whole, because it cannot be opened for writing in part.
        opened = {file for number in forgotten for file in jobs[number].files} & finished
        if opened <= lost:
            break
        lost |= opened
    if forgotten:
        consumed = [file for number in sorted(forgotten) for file in files_read(jobs[number]) & gone(route.store)]
        if consumed:
            what = f"{why} is lost or changed, and {consumed[0]}, which is needed again, was consumed"
            raise ResumeError(f"{target}: {what}")
        journal.keep(
            [one for one in journal.records if one.get("file") not in lost and one.get("job") not in forgotten]
        )
    if mark and (mark.held, mark.place, mark.boot) != (route.held, plan.source, boot()):
        sign_begun(route)
    return replay(plan, target, journal)


def _restarted(mark: Mark | None) -> bool:
    """Whether the system was restarted since the journal was written, as far as that is known."""
    return mark is not None and bool(mark.boot) and mark.boot != boot()


def _torn(route: Route, journal: Journal, jobs: Sequence[Job], mark: Mark | None, report: EventReport) -> set[int]:
    """The jobs whose recorded output is not on the disk; looked at only if the system was restarted since.

    The receipts of an earlier version have no digests: they get those of what the disk holds.
    """
    records = {record["job"]: record for record in journal.records if "job" in record}
    restarted = _restarted(mark)
    whole = {file.name for file in route.plan.files if _there(file, route.target)}
    looked = [
        job for job in jobs if (restarted or "digests" not in records[job.number]) and whole.issuperset(job.files)
    ]
    if not looked:
        return set()
    report(ReadBack(sum(one.end - one.begin for job in looked for one in written(job) if one.file not in route.sent)))
    torn = {job.number for job in looked if not _holds(job, records[job.number], route)}
    journal.keep(journal.records)
    if torn:
        report(Torn(len(torn)))
    return torn


def _holds(job: Job, record: dict[str, Any], route: Route) -> bool:
    """Whether the disk holds what a receipt says; a receipt without digests gets those of what it holds."""
    stretches = list(written(job))
    looked = [place for place, one in enumerate(stretches) if one.file not in route.sent]
    found = read_back(route.target, [stretches[place] for place in looked])
    if "digests" not in record and len(looked) == len(stretches):
        record["digests"] = as_text(b"".join(found))
        return True
    try:
        known = list(split(from_text(record["digests"])))
    except (KeyError, ValueError):
        return False
    return len(known) == len(stretches) and [known[place] for place in looked] == found


def changed_since(held: Mapping[str, HeldFile], mark: Mark | None, plan: Plan) -> set[str]:
    """The source files that may have changed since the journal was written; a copy's samples were compared before."""
    if mark is None or not mark.held:
        return set(held)
    return set(touched(held, mark.held)) if mark.place == plan.source else set()


def _there(file: OutFile, target: Path) -> bool:
    """Whether a file with recorded work exists, under either of its names."""
    paths = target / file.name, target / (file.name + PART)
    return any(path.is_file() and not path.is_symlink() and path.stat().st_size == file.size for path in paths)
