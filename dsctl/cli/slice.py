"""`dsctl slice`: cut a small working checkpoint out of a large one."""

from __future__ import annotations

from typing import Annotated

import typer

from dsctl.cli import completion
from dsctl.cli.commands import WHAT
from dsctl.cli.conversion_options import Bf16
from dsctl.cli.groups import PrintOptions, RunOptions, SliceOptions, verb
from dsctl.cli.options import DryRun, Force, Local, Source, Target, Workers
from dsctl.plan.request import KEEP

To = Annotated[
    str,
    typer.Option(
        "--to",
        metavar="FORMAT",
        autocompletion=completion.formats,
        show_default=False,
        help="Convert to this format as well, such as bf16: see `dsctl formats`.",
        rich_help_panel=WHAT,
    ),
]


@verb
def slice(  # noqa: A001  the name of the verb
    source: Source,
    target: Target,
    *,
    kept: SliceOptions,
    to: To = KEEP,
    bf16: Bf16 = False,
    local: Local = False,
    dry_run: DryRun = False,
    workers: Workers = None,
    force: Force = False,
    printing: PrintOptions,
) -> None:
    """Cut a small working checkpoint out of a large one, or prune experts by a plan.

    Layers are renumbered, the router keeps the rows of the kept experts, and config and index are updated to match.
    From the Hub, only the bytes that are kept are downloaded.

    A plan is a JSON file with the experts that each layer keeps, such as {"layers": {"3": [0, 2, 5], ...}}: as REAP and
    similar tools publish them, or in a new order.

    Examples:

        dsctl slice deepseek-ai/DeepSeek-V3.2 small --layers 0-4,mtp --experts 8

        dsctl slice DeepSeek-V3.2 first-layers --layers 0-3 --bf16

        dsctl slice DeepSeek-V3.2 small-draft --layers 0-1 --experts 4 --mtp only

        dsctl slice v4-flash-0731 pruned --experts reap_plan.json --copy-to-drafter --dry-run
    """
    # Loaded late: it takes longer than `--help` itself.
    from dsctl.cli.parts import part_of
    from dsctl.cli.requests import choose_format
    from dsctl.cli.slicing import slice_to

    format_ = choose_format(None if to == KEEP else to, bf16) or KEEP
    run = RunOptions(dry_run=dry_run, workers=workers, force=force)
    part = part_of(kept)
    slice_to(source, target, part, format_, run, printing.output(), local)
