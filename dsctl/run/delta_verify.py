"""`dsctl delta verify`: the files, frames and digests of a delta; with its base also the result. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from dsctl.checkpoint.delta import Changed, Delta
from dsctl.checkpoint.delta_change import Change
from dsctl.checkpoint.delta_form import OVERWRITE, OVERWRITE_MOST
from dsctl.core.amounts import plural
from dsctl.core.errors import DsctlError
from dsctl.core.frames import Frame
from dsctl.run.delta_apply import Application
from dsctl.run.delta_base import refuse_other_base, result_digests, results
from dsctl.run.delta_damage import damage, listed
from dsctl.run.events import EventReport
from dsctl.run.reading import Reading
from dsctl.stores.blocks import Bytes, in_blocks
from dsctl.stores.threads import threads
from dsctl.work.patching import Overwrites


@dataclass
class DeltaCheck:
    """What was looked at, and what is wrong: problems in one line each."""

    frames: int = 0
    files: int = 0
    results: int = 0
    digests: int = 0
    base: bool = False
    problems: list[str] = field(default_factory=list)


def check(delta: Delta, application: Application | None, workers: int, report: EventReport) -> DeltaCheck:
    """Check a delta; with an application, also its base, and what becomes of it.

    Raises:
        SourceError: a file cannot be read.
    """
    found = DeltaCheck(base=application is not None)
    with threads(workers) as pool, in_blocks(delta.store, workers) as reader:
        reading = Reading(pool, report)
        tasks = (partial(_frame, delta, reader, changed, reading.heed) for changed in delta.tensors.values())
        found.problems += [problem for problem in reading.results(tasks) if problem]
        found.frames = len(delta.tensors)
        files = listed(delta)
        problems = reading.results(partial(damage, delta, name, entry) for name, entry in files.items())
        found.problems += [problem for problem in problems if problem]
        found.files = len(files)
    if application is not None and not found.problems:
        _check_result(application, found, workers, report)
    return found


def _frame(delta: Delta, reader: Bytes, changed: Changed, heed: Callable[[int], None]) -> str:
    """The problem of a frame, or an empty text."""
    ref = changed.ref

    read = reader.read
    try:
        if delta.encoding == OVERWRITE and not changed.whole:
            most = OVERWRITE_MOST - 1
            change = Change(
                ref.name, ref.file, ref.begin, ref.nbytes, most, 1, delta.encoding, delta.checksum, changed.checksum
            )
            overwrites = Overwrites(change, read)
            for positions, _ in overwrites.before(most):
                heed(len(positions))
            overwrites.finish(most)
        else:
            whole = Frame(
                lambda begin, end: read(ref.file, ref.begin + begin, ref.begin + end),
                ref.nbytes,
                f"{ref.file}: {ref.name}",
                None,
            )
            for piece in whole.pieces(1 << 20):
                heed(len(piece))
    except DsctlError as error:
        return error.message
    return ""


def _check_result(application: Application, found: DeltaCheck, workers: int, report: EventReport) -> None:
    """Compare the base with the delta's digests of it, and every changed tensor with its checksum and digest."""
    delta, plan, store = application.delta, application.plan, application.store
    changed = [step for step in plan.steps if step.change is not None]
    if delta.record is not None:
        try:
            refuse_other_base(application.base, delta, plan, store, workers, report)
        except DsctlError as error:
            found.problems.append(error.message)
            return
    made = results(changed, store, workers, report)
    found.results = sum(one.good for one in made)
    differ = [step.name for step, one in zip(changed, made, strict=True) if not one.good]
    if differ:
        what = f"the {delta.checksum} of {plural(len(differ), 'new tensor')} differs, such as {differ[0]}"
        found.problems.append(f"{application.base.store.place}: {what}")
    known = result_digests(delta, plan)
    for step, one in zip(changed, made, strict=True):
        expected = known.get((step.writes[0].parts[0].file, step.name))
        found.digests += expected is not None
        if expected not in (None, one.digest) and step.name not in differ:
            found.problems.append(f"{step.name}: the result has another BLAKE3 than the delta says")
