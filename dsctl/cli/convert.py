"""`dsctl convert`: another format."""

from __future__ import annotations

from dataclasses import replace

from dsctl.cli.groups import FormatOptions, PartOptions, PrintOptions, RunOptions, verb
from dsctl.cli.options import Local, NoKeep, Search, Source, Target
from dsctl.core.errors import UsageError
from dsctl.plan.request import KEEP


@verb
def convert(
    source: Source,
    target: Target,
    *,
    formats: FormatOptions,
    search: Search = False,
    no_keep_scales: NoKeep = False,
    part: PartOptions,
    run: RunOptions,
    local: Local = False,
    printing: PrintOptions,
) -> None:
    """Convert a checkpoint's weights to another format.

    Tensors that the release keeps unquantized stay so. config.json and the index are updated; all other files are
    copied. A killed run is resumed by the same command.

    Examples:

        dsctl convert DeepSeek-V3.2 V3.2-bf16 --bf16

        dsctl convert V3.2-bf16 V3.2-fp8 --fp8

        dsctl convert DeepSeek-V3.2 V3.2-int4 --recipe w4a8-experts --search

        dsctl convert DeepSeek-V3.2 first-layers --bf16 --only 'model.layers.0.*' --dry-run
    """
    # Loaded late: it takes longer than all of `--help`.
    from dsctl.cli.conversion import convert_to
    from dsctl.cli.requests import converted

    request = replace(converted(formats, part), search=search, keep_scales=not no_keep_scales)
    if request.to == KEEP:
        raise UsageError("no target format", hint="--bf16, --fp8, --to FORMAT or --recipe NAME")
    convert_to(source, target, request, run, printing.output(), local)
