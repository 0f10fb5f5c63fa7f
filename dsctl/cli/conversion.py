"""Open the source of a verb that writes a checkpoint; a dry run of a release needs only its description."""

from __future__ import annotations

from dsctl import releases
from dsctl.cli.groups import RunOptions
from dsctl.cli.requests import judged
from dsctl.cli.sources import located
from dsctl.core.errors import UsageError
from dsctl.look.source import describe
from dsctl.plan.overview import overview
from dsctl.plan.request import Request
from dsctl.show.output import Output
from dsctl.show.overviews import show_overview


def convert_to(
    source: str, target: str, request: Request, options: RunOptions, output: Output, local: bool = False
) -> None:
    """Carry out a request on a source; `local` accepts only a source on this machine.

    Raises:
        DsctlError: of every kind; nothing is written if the plan or a check fails.
    """
    how, source = judged(request, options), located(source, local=local)
    for option, given in (("--original", request.original), ("--lora", request.lora)):
        if given and how.consume:
            raise UsageError(f"--consume and {option} exclude each other", hint="leave one of them out")
    if options.dry_run and releases.meant(source) and not (request.original or request.lora):
        # The description of a release is enough, so nothing is downloaded.
        how.refuse_idle(target)
        described = describe(source)
        show_overview(overview(described.contents, request), described.origin, target, output)
        return
    from dsctl.cli.carrying import convert_from
    from dsctl.plan.beside import with_places
    from dsctl.run.carry_out import open_source

    opened = with_places(open_source(source, target, how), request)
    convert_from(opened, target, how, options, output)
