"""The way of every verb that writes a checkpoint: open, plan, show or run, and tell what was made."""

from __future__ import annotations

from dsctl import releases
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.cli.groups import RunOptions
from dsctl.cli.hints import resumable
from dsctl.cli.requests import judged
from dsctl.cli.sources import located
from dsctl.look.source import describe
from dsctl.plan.overview import overview
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.run.carry_out import How, carry_out, open_source, rehearse, set_up
from dsctl.run.resources import probe
from dsctl.show.audits import show_audit, show_found, warn_of_values
from dsctl.show.output import Output
from dsctl.show.overviews import show_overview
from dsctl.show.plans import show_plan
from dsctl.show.progress import Progress


def convert_to(
    source: str, target: str, request: Request, options: RunOptions, output: Output, local: bool = False
) -> None:
    """Make what is asked for of a source; `local` accepts only a source on this machine.

    Raises:
        DsctlError: of every kind; nothing is written where the plan or a check fails.
    """
    how, source = judged(request, options), located(source, local=local)
    if options.dry_run and releases.meant(source):
        # The description of a release is enough for this, so that nothing is fetched.
        described = describe(source)
        show_overview(overview(described.contents, request), described.origin, target, output)
        return
    convert_from(open_source(source, target, how), target, request, how, options, output)


def convert_from(
    checkpoint: Checkpoint, target: str, request: Request, how: How, options: RunOptions, output: Output
) -> None:
    """The same from a checkpoint that is open already, or a view of one."""
    setup = set_up(make_plan(checkpoint, request), checkpoint.store, target, how)
    if options.dry_run:
        rehearse(setup)
        show_plan(setup, probe(setup.plan, setup.store, setup.folder), output)
        return
    with resumable("resumes where it stopped"), Progress(setup.plan, output, options.verbose) as progress:
        audit = carry_out(setup, progress.report, output.note)
    warn_of_values(audit, output)
    if output.json:
        output.data(audit)
        return
    if setup.state == "complete":
        show_found(setup, audit, output)
    show_audit(audit, setup.target, output)
