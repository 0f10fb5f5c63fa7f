"""`dsctl graft`: copy parameters of other checkpoints into a checkpoint."""

from __future__ import annotations

from typing import Annotated

import typer

from dsctl.cli import completion
from dsctl.cli.commands import WHAT, WHICH
from dsctl.cli.conversion_options import AllowExtra, AllowMissing
from dsctl.cli.groups import PrintOptions, RunOptions, verb
from dsctl.cli.options import Local, Target

Base = Annotated[
    str,
    typer.Argument(
        metavar="BASE",
        autocompletion=completion.sources,
        help="The checkpoint that takes them: folder, org/name, or a URL such as s3://bucket/path.",
    ),
]
From = Annotated[
    list[str],
    typer.Option(
        "--from",
        metavar="OTHER GLOBS",
        help="Use OTHER's parameters that match these globs (commas between); repeatable, last wins.",
        rich_help_panel=WHICH,
    ),
]
As = Annotated[
    str,
    typer.Option(
        "--as",
        metavar="own|base",
        autocompletion=completion.forms,
        help="Keep the parameters in their own form, or convert them to the form that BASE uses.",
        rich_help_panel=WHAT,
    ),
]


@verb
def graft(
    base: Base,
    target: Target,
    *,
    sources: From,
    forms: As = "own",
    allow_missing: AllowMissing = False,
    allow_extra: AllowExtra = False,
    run: RunOptions,
    local: Local = False,
    printing: PrintOptions,
) -> None:
    """Copy parameters of other checkpoints into a checkpoint, in the place of its own.

    GLOBS match the names of parameters; the word mtp names the drafter. A weight goes with its scales. Shapes and roles
    must agree. If BASE lacks the drafter, or has one of a different kind, config.json gets the fields of the new one.
    config.json and the index are updated to match; all other files are those of BASE. If a run is interrupted, the same
    command resumes it.

    Examples:

        dsctl graft V3.2-trained V3.2-with-mtp --from DeepSeek-V3.2 mtp

        dsctl graft DeepSeek-V3-0324 Chimera --from DeepSeek-R1 'model.layers.*.mlp.experts.*'

        dsctl graft DeepSeek-V4-Flash V4-Flash-dspark --from DeepSeek-V4-Flash-0731 mtp --dry-run

        dsctl graft DeepSeek-V3.2 edited --from V3.2-bf16 'model.layers.1.*,model.norm.*' --as base
    """
    # Loaded late: it takes longer than `--help` itself.
    from dsctl.cli.grafting import graft_to
    from dsctl.plan.graft_options import graft_request, split

    # An option of two words gives pairs; the parser has no type for a list of them.
    named = [(place, split(globs)) for place, globs in map(tuple, sources)]
    request = graft_request(named, forms, allow_missing, allow_extra)
    graft_to(base, target, named, request, run, printing.output(), local)
