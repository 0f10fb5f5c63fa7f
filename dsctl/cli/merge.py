"""`dsctl merge`: put a checkpoint that is spread over ranks together again."""

from __future__ import annotations

from dsctl.cli.groups import FormatOptions, LayoutOptions, PartOptions, PrintOptions, RunOptions, verb
from dsctl.cli.options import Local, Source, Target


@verb
def merge(
    source: Source,
    target: Target,
    *,
    layout: LayoutOptions,
    formats: FormatOptions,
    part: PartOptions,
    run: RunOptions,
    local: Local = False,
    printing: PrintOptions,
) -> None:
    """Put a checkpoint that is spread over ranks together again.

    What several ranks hold is compared; a disagreement is an error that names the parameter and the files. Of what
    `dsctl shard` moved, the merged files are those that it was made from, byte for byte.

    Examples:

        dsctl merge V3.2-tp2 DeepSeek-V3.2-merged

        dsctl merge V3.2-mp2 DeepSeek-V3.2-merged-bf16 --bf16
    """
    # Loaded late: it takes longer than all of `--help`.
    from dsctl.cli.conversion import convert_to
    from dsctl.cli.requests import converted, laid_out

    request = laid_out(converted(formats, part), layout)
    convert_to(source, target, request, run, printing.output(), local)
