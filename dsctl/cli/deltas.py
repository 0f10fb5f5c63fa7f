"""The steps of `dsctl delta`: open, plan, show or run, and report the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dsctl.checkpoint.delta import open_delta
from dsctl.checkpoint.opening import source_at
from dsctl.checkpoint.weight_files import open_weights
from dsctl.cli.groups import DeliveryOptions, DeltaRunOptions
from dsctl.cli.hints import resumable
from dsctl.core.errors import PlanError, UsageError, VerifyFailed
from dsctl.core.frames import LEVELS, SPARSE
from dsctl.core.processors import cores
from dsctl.plan.delta_options import DeltaOptions
from dsctl.plan.differing import differing
from dsctl.plan.plan import Plan
from dsctl.run.carry_out import rehearse, set_up
from dsctl.run.claim import check_target
from dsctl.run.delta_apply import Application, apply, check_base, opened
from dsctl.run.delta_delivery import deliver
from dsctl.run.delta_files import Found
from dsctl.run.delta_fold import fold_to, folding
from dsctl.run.delta_in_place import InPlace
from dsctl.run.delta_make import MadeDelta, Order, make, order
from dsctl.run.delta_sampling import Sample, sampled
from dsctl.run.delta_verify import check
from dsctl.run.events import advances
from dsctl.run.how import How
from dsctl.run.speed import probe
from dsctl.show.audits import printed, show_audit, show_found
from dsctl.show.bars import reading
from dsctl.show.deltas import fold_json, show_check, show_fold, show_in_place, show_made, show_order
from dsctl.show.output import Output, plural, size
from dsctl.show.plans import show_plan
from dsctl.show.progress import Progress
from dsctl.stores import Store, store_at
from dsctl.stores.objects import is_url
from dsctl.stores.places import path_of
from dsctl.stores.repositories import is_target, parse

AGAIN = "goes on where it stopped"


def make_delta(
    places: tuple[str, str, str],
    options: DeltaOptions,
    run: DeltaRunOptions,
    public: bool,
    every: bool,
    output: Output,
) -> None:
    """Make a delta of two places in a third.

    Raises:
        DsctlError: of every kind; nothing is written if a check fails.
    """
    how, (old, new, target) = _how(run), places
    sides = open_weights(source_at(old)), open_weights(source_at(new))
    asked = order(*sides, options, differing(*sides, options.encoding, options.checksum))
    _check(target, asked.plan, asked.sources.store, how)
    if run.dry_run:
        show_order(asked, target, output)
        return
    if not options.anyway:
        _refuse_idle(asked, sampled(asked.sources, list(asked.differing.pairs)))
    found: dict[str, Found] = {}
    with resumable(AGAIN), reading(output, asked.differing.bytes_in, "comparing") as advance:

        def made_in(folder: Path) -> dict[str, Any]:
            made = make(asked, folder, how, advances(advance))
            found.update(made.found)
            return made.audit

        audit = _made(target, asked.plan, asked.sources.store, replace(how, public=public), made_in)
    made = MadeDelta(audit, found)
    show_made(asked, made, target, every, output)


def _refuse_idle(asked: Order, sample: Sample) -> None:
    """Refuse a delta that would take as much as the new values.

    Raises:
        PlanError: with the figures of the sample.
    """
    if sample.is_idle:
        share, alone = sample.difference / sample.nbytes, sample.alone / sample.nbytes
        looked = f"in {plural(sample.places, 'sample')} of {size(sample.nbytes)} in all"
        what = f"{looked} the differences take {share:.0%} of the bytes, the new values alone {alone:.0%}"
        hint = "publish the new checkpoint itself, or make the delta all the same with --anyway"
        raise PlanError(f"{asked.sources.new.store.place}: a delta saves nothing: {what}; none was made", hint=hint)


def apply_delta(places: tuple[str, str, str], run: DeltaRunOptions, delivery: DeliveryOptions, output: Output) -> None:
    """Make the result of a delta in a new place.

    Raises:
        DsctlError: of every kind; nothing is written if the base is another one.
    """
    old, changes, target = places
    how = replace(_how(run), staging=delivery.staging, public=delivery.public)
    asked = _opened(old, changes)
    setup = set_up(asked.plan, asked.store, target, how)
    if run.dry_run:
        rehearse(setup)
        show_plan(setup, probe(setup.plan, setup.store, setup.folder, setup.resources), output)
        return
    if setup.state != "complete":
        with reading(output, asked.base.nbytes, "comparing the base") as advance:
            check_base(asked, setup.resources.threads, advances(advance))
    with resumable("resumes where it stopped"), Progress(setup.plan, output, run.verbose) as progress:
        audit, pace = apply(asked, setup, progress.report, output.note)
    if output.json:
        output.data(printed(audit, pace))
        return
    if setup.state == "complete":
        show_found(setup, audit, output)
    show_audit(audit, setup.target, output, pace)


def apply_in_place(old: str, changes: str, run: DeltaRunOptions, output: Output) -> None:
    """Replace the files of a folder by those of the result.

    Raises:
        DsctlError: of every kind; nothing is written if the base is another one.
    """
    how, asked = _how(run), _opened(old, changes, in_place=True)
    if how.force:
        raise UsageError("--force does not work with --in-place", hint="leave it out")
    ahead = InPlace(asked, how.workers or cores(), lambda event: None)
    ahead.check()
    if run.dry_run:
        show_in_place(asked, ahead, output)
        return
    with resumable(AGAIN), reading(output, 3 * asked.base.nbytes, "applying") as advance:
        run_ = InPlace(asked, ahead.workers, advances(advance))
        audit = run_.carry_out()
    if run_.already:
        output.note(f"{run_.folder} has the delta's result already: no weight file was replaced")
    output.data(printed(audit, None))
    if not output.json:
        show_audit(audit, str(ahead.folder), output)


def verify_delta(changes: str, base: str | None, run: DeltaRunOptions, output: Output) -> None:
    """Check a delta, and with a base what becomes of it.

    Raises:
        VerifyFailed: something is wrong. DsctlError: the delta or the base cannot be read.
    """
    how = _how(run)
    if run.dry_run or how.force:
        raise UsageError(
            "delta verify: writes nothing, so that --dry-run and --force have no effect", hint="leave them out"
        )
    asked = _opened(base, changes) if base is not None else None
    delta = asked.delta if asked else open_delta(store_at(changes))
    total = delta.stored_bytes + (2 * asked.base.nbytes if asked else 0)
    with reading(output, total, "checking") as advance:
        found = check(delta, asked, how.workers or cores(), advances(advance))
    show_check(delta, found, output)
    if found.problems:
        number = plural(len(found.problems), "problem")
        raise VerifyFailed(f"{delta.store.place}: {number}", hint="fetch the delta again, or make it again")


def fold_deltas(chain: Sequence[str], level: int | None, run: DeltaRunOptions, public: bool, output: Output) -> None:
    """Fold deltas into one.

    Raises:
        DsctlError: of every kind; nothing is written if they are not a chain.
    """
    if level is not None and level not in LEVELS:
        raise UsageError(f"--level: {level} is not a level of zstd", hint=f"{LEVELS[0]} to {LEVELS[-1]}")
    if len(chain) < 3:
        raise UsageError("delta fold: needs at least two deltas, and a folder to write", hint="D1 D2 ... DST")
    how, (*deltas, target) = _how(run), chain
    asked = folding([store_at(one) for one in deltas], level or SPARSE)
    _check(target, asked.plan(), asked.store, how)
    if run.dry_run:
        output.data(fold_json(asked, target, None))
        show_fold(asked, target, None, output)
        return
    with resumable(AGAIN), reading(output, sum(one.stored_bytes for one in asked.deltas), "folding") as advance:
        audit = _made(
            target,
            asked.plan(),
            asked.store,
            replace(how, public=public),
            lambda one: fold_to(asked, one, how, advances(advance)),
        )
    output.data(fold_json(asked, target, audit))
    show_fold(asked, target, audit, output)


def _how(run: DeltaRunOptions) -> How:
    return How(workers=run.threads, force=run.force)


def _opened(old: str, changes: str, in_place: bool = False) -> Application:
    return opened(source_at(old), store_at(changes), in_place)


def _check(target: str, plan: Plan, store: Store, how: How) -> None:
    """Refuse a target that a run would refuse; what is at a URL is not looked at yet.

    Raises:
        PlanError, ResumeError: as `check_target`. UsageError: the URL is not that of a target.
    """
    place = path_of(target)
    if is_target(place):
        parse(place)
    elif not is_url(place):
        check_target(plan, store, Path(place), how.force)


def _made(target: str, plan: Plan, store: Store, how: How, make: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Make a delta in a folder on this machine, or at a URL."""
    place = path_of(target)
    if how.public and not is_target(place):
        raise UsageError("--public: only a repository on a hub is public or private", hint="leave --public out")
    return deliver(place, plan, store, how, make) if is_url(place) else make(Path(place))
