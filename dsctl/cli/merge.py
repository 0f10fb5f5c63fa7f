"""`dsctl merge`: merge sharded ranks into one checkpoint."""

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
    """Merge sharded ranks into one checkpoint.

    Tensors that several ranks hold are compared; if they differ, the error names the parameter and the files. If
    `dsctl shard` only copied bytes, the merged files equal the original ones byte for byte.

    Examples:

        dsctl merge V3.2-tp2 DeepSeek-V3.2-merged

        dsctl merge V3.2-mp2 DeepSeek-V3.2-merged-bf16 --bf16
    """
    # Loaded late: it takes longer than `--help` itself.
    from dsctl.cli.conversion import convert_to
    from dsctl.cli.requests import converted, laid_out

    request = laid_out(converted(formats, part), layout)
    convert_to(source, target, request, run, printing.output(), local)
