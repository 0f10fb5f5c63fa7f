"""What verbs that write a checkpoint do with a source by its name; a release they can tell without its files."""

from __future__ import annotations

from dsctl import releases
from dsctl.cli.groups import RunOptions
from dsctl.cli.requests import judged
from dsctl.cli.sources import located
from dsctl.look.source import describe
from dsctl.plan.overview import overview
from dsctl.plan.request import Request
from dsctl.show.output import Output
from dsctl.show.overviews import show_overview


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
    from dsctl.cli.carrying import convert_from
    from dsctl.run.carry_out import open_source

    convert_from(open_source(source, target, how), target, request, how, options, output)
