"""`dsctl shard`: split a checkpoint into ranks."""

from __future__ import annotations

from dataclasses import replace

from dsctl.cli.conversion_options import Search
from dsctl.cli.groups import (
    FormatOptions,
    LayoutOptions,
    PartOptions,
    PrintOptions,
    RankOptions,
    RunOptions,
    SpreadOptions,
    verb,
)
from dsctl.cli.options import Local, Source, Target


@verb
def shard(
    source: Source,
    target: Target,
    *,
    sizes: RankOptions,
    layout: LayoutOptions,
    which: SpreadOptions,
    formats: FormatOptions,
    search: Search = False,
    part: PartOptions,
    run: RunOptions,
    local: Local = False,
    printing: PrintOptions,
) -> None:
    """Split a checkpoint into tensor-, expert- and pipeline-parallel ranks.

    Each rank's tensors are written to a folder or file of their own, and their bytes are copied unchanged. A split that
    goes through quantization blocks is refused before any work; the error lists the sizes that are possible. SRC may
    itself be sharded. If a run is interrupted, the same command resumes it.

    Examples:

        dsctl shard v3.2 V3.2-tp8 --tp 8 --dry-run

        dsctl shard DeepSeek-V3.2 V3.2-tp2 --tp 2

        dsctl shard DeepSeek-V3.2 V3.2-mp2 --tp 2 --layout deepseek

        dsctl shard DeepSeek-V3.2 V3.2-ep8 --tp 2 --ep 8 --bf16 --dry-run
    """
    # Loaded late: it takes longer than `--help` itself.
    from dsctl.cli.conversion import convert_to
    from dsctl.cli.requests import converted, drafter, laid_out, spread

    asked = drafter(part.mtp, part.no_mtp) is not None
    request = spread(laid_out(converted(formats, part), layout), sizes, which, asked)
    request = replace(request, search=search)
    convert_to(source, target, request, run, printing.output(), local)
