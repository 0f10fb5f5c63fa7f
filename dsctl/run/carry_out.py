"""Carry a plan out, for the command line and the Python interface. It knows no console and loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.opening import open_checkpoint, source_at
from dsctl.core.errors import PlanError, ResumeError
from dsctl.core.extras import require_torch
from dsctl.core.processors import cores
from dsctl.plan.plan import Plan, files_read
from dsctl.run.checks import check_source
from dsctl.run.claim import check_target
from dsctl.run.consume import beside_others, gone, refuse_link, remembered
from dsctl.run.delivery import Delivery
from dsctl.run.device_choice import Chosen, choose_device
from dsctl.run.driver import run
from dsctl.run.events import EventReport
from dsctl.run.how import How
from dsctl.run.pace import Pace, Watch
from dsctl.run.resources import GPU_THREADS, SMALL_BYTES, THREADS, Resources, allot, allot_bytes
from dsctl.stores import Store
from dsctl.stores.objects import is_url
from dsctl.stores.places import path_of
from dsctl.stores.uploads import SENT_BYTES
from dsctl.work.executors import CPU, Executor, choose
from dsctl.work.executors.processes import prepare
from dsctl.work.executors.threads import ByteThreads
from dsctl.work.readahead import WINDOW_BYTES
from dsctl.work.tasks import Context


@dataclass(frozen=True, slots=True)
class Setup:
    """A plan, its source and target, the resources of a run, and the state of the target.

    Files are written to `folder`: the target itself, or the staging folder of a `delivery` to a URL. `state` is new,
    resume or complete.
    """

    plan: Plan
    store: Store
    target: str
    how: How
    folder: Path
    delivery: Delivery | None
    resources: Resources
    chosen: Chosen
    state: str

    @property
    def spared(self) -> bool:
        """Whether source files still exist that a run with `consume` would have deleted."""
        return self.how.consume and any(files_read(job) - gone(self.store) for job in self.plan.jobs)


class Outcome(NamedTuple):
    """The audit of a finished target, and the pace of the run; None if an earlier run had done all of the work."""

    audit: dict[str, Any]
    pace: Pace | None


def open_source(source: str, target: str, how: How) -> Checkpoint:
    """Open a source for this target; files that an earlier run to this target consumed still count as present.

    Raises:
        SourceError, FormatError: as `open_checkpoint`. PlanError: files would be deleted through a link.
        ResumeError: another run consumes the source now.
    """
    if how.consume:
        refuse_link(path_of(source))
    store, place = source_at(source), path_of(target)
    if is_url(place):
        return open_checkpoint(store)
    store = remembered(store, Path(place), how.force)
    with beside_others(store, Path(place)):
        return open_checkpoint(store)


def prepare_early(checkpoint: Checkpoint, how: How) -> None:
    """Begin to import torch for the workers while the plan is made, if the checkpoint is large enough for several."""
    alone = how.engine != "processes" or how.device != CPU or (how.workers or cores()) == 1
    if not alone and sum(checkpoint.files.values()) >= SMALL_BYTES:
        prepare()


def set_up(plan: Plan, store: Store, target: str, how: How) -> Setup:
    """Check the target, and choose this machine's devices, workers and memory. Nothing is written.

    Raises:
        PlanError: there is not enough memory or no such device, or the target cannot be used.
        ResumeError: the target holds the work of a different request.
    """
    place = path_of(target)
    how.refuse_idle(place)
    delivery = Delivery.to(place, plan, how) if is_url(place) else None
    if delivery is not None:
        plan, how = delivery.plan, delivery.how
        folder, state = delivery.folder, delivery.check(store)
    else:
        folder = Path(place)
        with beside_others(store, folder):
            state = check_target(plan, store, folder, how.force)
    if plan.as_bytes:
        resources = allot_bytes(plan, how.workers, WINDOW_BYTES if store.remote else 0)
        return Setup(plan, store, place, how, folder, delivery, resources, Chosen((CPU,)), state)
    chosen = Chosen((CPU,)) if state == "complete" else choose_device(how.device, how.engine, plan)
    ahead = (WINDOW_BYTES if store.remote else 0) + (SENT_BYTES if delivery else 0)
    # The nodes of a cluster have processors and memory of their own: only the needs of one task count here.
    on_cluster = how.engine == "ray"
    gpus = 0 if on_cluster or chosen.devices == (CPU,) else len(chosen.devices)
    budget = None if how.max_memory is None else int(how.max_memory)
    # A remote source is read ahead over several connections already.
    threads = 1 if on_cluster or store.remote else GPU_THREADS if gpus else THREADS
    resources = allot(plan, 1 if on_cluster else how.workers, budget, ahead, gpus, threads)
    return Setup(plan, store, place, how, folder, delivery, resources, chosen, state)


def rehearse(setup: Setup) -> None:
    """Refuse everything that `carry_out` would refuse before it writes.

    Raises:
        FormatError, SourceError: as `check_source`.
    """
    if not setup.store.remote:
        check_source(setup.plan, setup.store)


def carry_out(
    setup: Setup, report: EventReport = lambda event: None, say: Callable[[str], None] = lambda text: None
) -> Outcome:
    """Carry a plan out, or resume an interrupted run, and return the audit that `dsctl.json` keeps, and the run's pace.

    `report` is called with the events of the run, `say` with an occasional line of text from a cluster.

    Raises:
        PlanError, ResumeError: torch is not installed, no room, no such device or cluster, or another process holds
            the target.
        FormatError: a scale is impossible; nothing was written.
        SourceError, WorkError: reading or writing failed; the same call resumes.
    """
    if not setup.plan.as_bytes:
        require_torch("writing weights")
    plan, store, how, resources = setup.plan, setup.store, setup.how, setup.resources
    if resources.workers > 1 and not plan.as_bytes and setup.state != "complete":
        prepare()

    def executor() -> Executor:
        context = Context(store, str(setup.folder), resources.band_bytes, setup.chosen.devices, resources.threads)
        if plan.as_bytes:
            return ByteThreads(context, resources.threads)
        return choose(
            context, resources.workers, resources.worker_bytes, how.engine, how.address, how.workers or 0, say
        )

    watch = Watch(resources.workers * resources.threads, cores(), store.remote)
    report = watch.beside(report)
    if setup.delivery is not None:
        audit = _deliver(setup.delivery, setup.state, executor, store, report)
    else:
        audit = run(plan, store, setup.folder, executor, report, how)
    if setup.state == "complete" and not all(isinstance(note, str) for note in audit["notes"]):
        what = "is not valid: its notes are not a list of texts"
        raise ResumeError(f"{setup.target}/dsctl.json: {what}", hint="start over with --force")
    return Outcome(audit, watch.pace())


def _deliver(
    delivery: Delivery, state: str, executor: Callable[[], Executor], store: Store, report: EventReport
) -> dict[str, Any]:
    """Carry the plan out, or resume it, and send its files to the target; raises as `run` and `Delivery` do."""
    if state == "complete":
        return delivery.audit()
    if delivery.how.consume:
        raise PlanError("--consume is for a target on this machine")
    try:
        delivery.begin(store)
        both = delivery.beside(report)
        audit = run(delivery.plan, store, delivery.folder, executor, both, delivery.how, delivery.staged)
        delivery.finish(audit)
    finally:
        delivery.close()
    return audit
