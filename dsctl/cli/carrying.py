"""The steps of every verb that writes a checkpoint: plan, show or run, and report the result."""

from __future__ import annotations

from dsctl.cli.groups import RunOptions
from dsctl.cli.hints import resumable
from dsctl.plan.beside import Opened
from dsctl.plan.planner import make_plan
from dsctl.run.carry_out import carry_out, prepare_early, rehearse, set_up
from dsctl.run.how import SHA256, How
from dsctl.run.speed import probe
from dsctl.show.audits import printed, show_audit, show_found, warn, warn_of_values
from dsctl.show.delivered import show_repository
from dsctl.show.merges import warn_of_merge
from dsctl.show.output import Output
from dsctl.show.plans import show_plan
from dsctl.show.progress import Progress


def convert_from(opened: Opened, target: str, how: How, options: RunOptions, output: Output) -> None:
    """Carry out a request on an open checkpoint, or on a view of one.

    Raises:
        DsctlError: of every kind; nothing is written if the plan or a check fails.
    """
    if not options.dry_run:
        prepare_early(opened.checkpoint, how)
    setup = set_up(make_plan(*opened), opened.checkpoint.store, target, how)
    warn(setup.plan.notes, output)
    if setup.chosen.why:
        output.note(setup.chosen.why)
    if options.dry_run:
        rehearse(setup)
        show_plan(setup, probe(setup.plan, setup.store, setup.folder, setup.resources), output)
        return
    with resumable("resumes where it stopped"), Progress(setup.plan, output, options.verbose) as progress:
        audit, pace = carry_out(setup, progress.report, output.note)
    warn_of_values(audit, output)
    warn_of_merge(audit, output)
    repository = setup.delivery.target.facts if setup.delivery else {}
    if output.json:
        output.data(printed(audit, pace) | ({"repository": repository} if repository else {}))
        return
    if setup.state == "complete":
        show_found(setup, audit, output)
        if how.digest == SHA256 and not all("sha256" in file for file in audit["files"].values()):
            output.warn("some of its files have no SHA-256 in dsctl.json: --force makes them again, with it")
    show_audit(audit, setup.target, output, pace)
    show_repository(repository, output)
