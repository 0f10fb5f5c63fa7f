"""The steps of `dsctl graft`: open the checkpoints, put them together, and write the result."""

from __future__ import annotations

from dsctl.checkpoint.grafting import grafted
from dsctl.checkpoint.opening import open_checkpoint, source_at
from dsctl.cli.carrying import convert_from
from dsctl.cli.groups import RunOptions
from dsctl.cli.requests import judged
from dsctl.cli.sources import located
from dsctl.core.errors import UsageError
from dsctl.plan.beside import Opened
from dsctl.plan.graft_options import Sources
from dsctl.plan.request import Request
from dsctl.show.output import Output


def graft_to(
    base: str, target: str, sources: Sources, request: Request, run: RunOptions, output: Output, local: bool = False
) -> None:
    """Write a base with parameters of other checkpoints; `request` is that of `graft_request` for these sources.

    Raises:
        DsctlError: of every kind; nothing is written if the plan or a check fails.
    """
    if run.consume:
        hint = "leave it out; delete the base yourself once the result is verified"
        raise UsageError("--consume: does not work with several source checkpoints", hint=hint)
    how = judged(request, run)
    places = [(located(place, local=local), globs) for place, globs in sources]
    checkpoint = open_checkpoint(source_at(located(base, local=local)))
    convert_from(Opened(grafted(checkpoint, places), request), target, how, run, output)
