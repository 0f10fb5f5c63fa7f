"""`dsctl convert`: convert a checkpoint to another format."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from dsctl.cli.commands import WHAT
from dsctl.cli.conversion_options import Names, NoKeep, Search
from dsctl.cli.groups import FormatOptions, LayoutOptions, PartOptions, PrintOptions, RunOptions, verb
from dsctl.cli.options import Local, Source, Target
from dsctl.core.errors import UsageError
from dsctl.plan.request import KEEP, KEPT

Original = Annotated[
    str | None,
    typer.Option(
        "--original",
        metavar="FOLDER",
        help="Use the original scales of this checkpoint or a folder with original.dsctl.",
        rich_help_panel=WHAT,
    ),
]

Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FOLDER",
        help="Merge this PEFT adapter (LoRA) into the weights.",
        rich_help_panel=WHAT,
    ),
]


@verb
def convert(
    source: Source,
    target: Target,
    *,
    formats: FormatOptions,
    layout: Names = None,
    search: Search = False,
    no_keep_scales: NoKeep = False,
    original: Original = None,
    lora: Lora = None,
    part: PartOptions,
    run: RunOptions,
    local: Local = False,
    printing: PrintOptions,
) -> None:
    """Convert a checkpoint to another format, or rename its tensors.

    Tensors that the release keeps unquantized stay unquantized. config.json and the index are updated; all other files
    are copied. If a run is interrupted, the same command resumes it.

    Examples:

        dsctl convert DeepSeek-V3.2 V3.2-bf16 --bf16

        dsctl convert V3.2-bf16 V3.2-fp8 --fp8

        dsctl convert DeepSeek-V3.2 V3.2-int4 --recipe int4-experts-fp8 --search

        dsctl convert DeepSeek-V4-Flash V4-Flash-hf --bf16 --layout transformers

        dsctl convert DeepSeek-V3.2 V3.2-tuned --lora my-adapter

        dsctl convert DeepSeek-V3.2 first-layers --bf16 --only 'model.layers.0.*' --dry-run

        dsctl convert DeepSeek-V3.2 V3.2-draft --mtp only

        dsctl convert DeepSeek-V3.2 hf://me/V3.2-bf16 --bf16 --staging 30GB
    """
    # Loaded late: it takes longer than `--help` itself.
    from dsctl.cli.conversion import convert_to
    from dsctl.cli.requests import converted, laid_out

    if len(adapters := lora or [""]) > 1:
        raise UsageError("--lora: several adapters", hint="merge them one after another, or into one with PEFT")
    request = replace(converted(formats, part), search=search, keep_scales=not no_keep_scales, original=original or "")
    request = replace(request, lora=adapters[0])
    if layout is not None:
        request = laid_out(request, LayoutOptions(layout))
    elif request.to == KEEP and request.mtp == KEPT and not request.lora:
        hint = "--bf16, --fp8, --to FORMAT, --recipe NAME or --layout NAME; --lora and --mtp drop|only need no format"
        raise UsageError("no target format", hint=hint)
    convert_to(source, target, request, run, printing.output(), local)
