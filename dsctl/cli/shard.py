"""`dsctl shard`: spread a checkpoint over ranks."""

from __future__ import annotations

from dataclasses import replace

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
from dsctl.cli.options import Local, Mtp, Search, Source, Target


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
    mtp: Mtp = False,
    run: RunOptions,
    local: Local = False,
    printing: PrintOptions,
) -> None:
    """Spread a checkpoint over ranks: every rank's tensors in a folder or file of its own.

    Stored bytes are moved as they are. A cut that would go through blocks is refused before any work, with the sizes
    that fit. SRC may itself be spread over ranks. A killed run is resumed by the same command.

    Examples:

        dsctl shard v3.2 V3.2-tp8 --tp 8 --dry-run

        dsctl shard DeepSeek-V3.2 V3.2-tp2 --tp 2

        dsctl shard DeepSeek-V3.2 V3.2-mp2 --tp 2 --layout deepseek

        dsctl shard DeepSeek-V3.2 V3.2-ep8 --tp 2 --ep 8 --bf16 --dry-run
    """
    # Loaded late: it takes longer than all of `--help`.
    from dsctl.cli.conversion import convert_to
    from dsctl.cli.requests import converted, laid_out, spread

    request = spread(laid_out(converted(formats, part), layout), sizes, which, mtp)
    request = replace(request, search=search)
    convert_to(source, target, request, run, printing.output(), local)
