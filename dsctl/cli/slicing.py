"""The steps of `dsctl slice`: open a checkpoint, cut it, and write the result."""

from __future__ import annotations

from dsctl import releases
from dsctl.checkpoint.opening import open_checkpoint, source_at
from dsctl.checkpoint.slice import SHARD_BYTES
from dsctl.cli.carrying import convert_from
from dsctl.cli.groups import RunOptions
from dsctl.cli.requests import judged
from dsctl.cli.sources import located
from dsctl.look.source import describe
from dsctl.plan.beside import Opened
from dsctl.plan.overview import overview
from dsctl.plan.parts import Part
from dsctl.plan.request import Request
from dsctl.show.output import Output
from dsctl.show.overviews import show_overview


def slice_to(
    source: str,
    target: str,
    part: Part,
    format_: str,
    run: RunOptions,
    output: Output,
    local: bool = False,
) -> None:
    """Write a checkpoint of this part.

    Raises:
        DsctlError: of every kind; nothing is written if the plan or a check fails.
    """
    request = Request(to=format_, shard_size=SHARD_BYTES, keep_scales=False)
    how, source = judged(request, run), located(source, local=local)
    if run.dry_run and releases.meant(source):
        # The description of a release is enough, so nothing is downloaded.
        how.refuse_idle(target)
        described = describe(source)
        small, request = part.described(described.contents, request)
        show_overview(overview(small, request), described.origin, target, output)
        return
    view, request = part.of(open_checkpoint(source_at(source)), request)
    convert_from(Opened(view, request), target, how, run, output)
