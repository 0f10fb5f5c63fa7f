"""`dsctl delta apply`: open base and delta, refuse another base, and make the result in a new place. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsctl.checkpoint.delta import Delta, open_delta
from dsctl.checkpoint.delta_form import SIDES
from dsctl.checkpoint.weight_files import WeightFiles, open_weights
from dsctl.core import digests
from dsctl.core.errors import FormatError
from dsctl.plan.patching import PREFIX, check_sides, plan_patch
from dsctl.plan.plan import Plan
from dsctl.run.carry_out import Outcome, Setup, carry_out
from dsctl.run.delta_base import refuse_other_base
from dsctl.run.events import Committed, Event, EventReport
from dsctl.stores import Store
from dsctl.stores.joined import Joined


@dataclass(frozen=True)
class Application:
    """A delta on a base: both opened, as one store, and the plan of the result."""

    base: WeightFiles
    delta: Delta
    store: Store
    plan: Plan


def opened(base: Store, delta: Store, in_place: bool = False) -> Application:
    """Open a base and a delta, and plan the result; with `in_place` the delta may be half applied.

    Raises:
        SourceError, FormatError: one of them cannot be read, or is damaged. PlanError: they do not fit.
    """
    weights, found = open_weights(base, in_place), open_delta(delta)
    names = found.record.sides if found.record else {}
    sides = {name: delta.read(f"{SIDES}/{name}", 0, entry.size) for name, entry in names.items()}
    check_sides(found, sides, {name: digests.digest(data).hex() for name, data in sides.items()})
    return Application(weights, found, Joined(base, delta, PREFIX), plan_patch(weights, found, sides))


def check_base(application: Application, workers: int, report: EventReport) -> None:
    """Refuse another base than that of the delta, as `refuse_other_base`."""
    refuse_other_base(application.base, application.delta, application.plan, application.store, workers, report)


def apply(
    application: Application, setup: Setup, report: EventReport, say: Callable[[str], None] = lambda text: None
) -> Outcome:
    """Make the result, or resume an interrupted run; each finished file is compared with the delta's digest of it.

    Raises:
        DsctlError: as `carry_out`. FormatError: a file of the result is not the one that the delta was made for.
    """
    return carry_out(setup, compared(application.delta, report), say)


def compared(delta: Delta, report: EventReport) -> EventReport:
    """A report that compares every finished file with the delta's record before it passes the event on."""
    known = delta.record.result if delta.record else {}

    def heed(event: Event) -> None:
        if isinstance(event, Committed) and event.file in known and event.entry.tree != known[event.file].tree:
            what = "is not the file that the delta was made for: the base or the delta changed meanwhile"
            raise FormatError(f"{event.file}: {what}", hint="verify both, then start over with --force")
        report(event)

    return heed
