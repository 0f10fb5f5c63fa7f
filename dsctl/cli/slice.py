"""`dsctl slice`: a small working checkpoint, cut from a real one."""

from __future__ import annotations

from typing import Annotated

import typer

from dsctl.cli.groups import PrintOptions, RunOptions, verb
from dsctl.cli.options import WHAT, WHICH, Bf16, DryRun, Force, Local, Source, Target, Workers
from dsctl.plan.request import KEEP

KeptLayers = Annotated[
    str | None,
    typer.Option(
        "--layers", metavar="NUMBERS", help="Layers to keep, such as 0-4,mtp. [default: all]", rich_help_panel=WHICH
    ),
]
KeptExperts = Annotated[
    str | None,
    typer.Option(
        "--experts",
        metavar="N|NUMBERS",
        help="How many experts, or which: 8 or 0-3,16-19. [default: all]",
        rich_help_panel=WHICH,
    ),
]
To = Annotated[
    str,
    typer.Option("--to", metavar="FORMAT", help="Another format on the way, such as bf16.", rich_help_panel=WHAT),
]


@verb
def slice(  # noqa: A001  what it is called
    source: Source,
    target: Target,
    *,
    layers: KeptLayers = None,
    experts: KeptExperts = None,
    to: To = KEEP,
    bf16: Bf16 = False,
    local: Local = False,
    dry_run: DryRun = False,
    workers: Workers = None,
    force: Force = False,
    printing: PrintOptions,
) -> None:
    """Cut a small working checkpoint from a real one.

    Layers are renumbered, the router keeps the rows of the kept experts, config and index are made to match. From a
    hub only the bytes that are kept are read.

    Examples:

        dsctl slice deepseek-ai/DeepSeek-V3.2 small --layers 0-4,mtp --experts 8

        dsctl slice DeepSeek-V3.2 first-layers --layers 0-3 --bf16
    """
    # Loaded late: it takes longer than all of `--help`.
    from dsctl.cli.requests import choose_format
    from dsctl.cli.slicing import slice_to

    format_ = choose_format(None if to == KEEP else to, bf16) or KEEP
    run = RunOptions(dry_run=dry_run, workers=workers, force=force)
    slice_to(source, target, layers, experts, format_, run, printing.output(), local)
