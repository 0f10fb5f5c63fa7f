"""`dsctl delta apply`: open base and delta, refuse another base, and make the result in a new place. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsctl.checkpoint.delta import Delta, open_delta
from dsctl.checkpoint.delta_form import SIDES
from dsctl.checkpoint.weight_files import WeightFiles, open_weights
from dsctl.core import digests
from dsctl.plan.patching import PREFIX, check_sides, plan_patch
from dsctl.plan.plan import Plan
from dsctl.run.carry_out import Outcome, Setup, carry_out
from dsctl.run.delta_base import refuse_other_base
from dsctl.run.delta_damage import refuse_damaged
from dsctl.run.events import EventReport
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
    """Refuse a damaged delta, and another base than its own, before anything is written.

    Raises:
        FormatError, SourceError: as `refuse_damaged`. PlanError: as `refuse_other_base`.
    """
    refuse_damaged(application.delta, workers, report)
    refuse_other_base(application.base, application.delta, application.plan, application.store, workers, report)


def apply(
    application: Application, setup: Setup, report: EventReport, say: Callable[[str], None] = lambda text: None
) -> Outcome:
    """Make the result, or resume an interrupted run; no file gets its name before its digest is that of the delta.

    Raises:
        DsctlError: as `carry_out`. FormatError: a file of the result is not the one that the delta was made for.
    """
    return carry_out(setup, report, say)
