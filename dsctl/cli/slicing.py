"""The steps of `dsctl slice`: open a checkpoint, cut it, and write the result."""

from __future__ import annotations

from dataclasses import replace

from dsctl.checkpoint.opening import open_checkpoint, source_at
from dsctl.checkpoint.slice import SHARD_BYTES, cut_of, sliced
from dsctl.cli.carrying import convert_from
from dsctl.cli.groups import RunOptions, SliceOptions
from dsctl.cli.options import parse_numbers
from dsctl.cli.requests import drafter, judged
from dsctl.cli.sources import located
from dsctl.core.errors import UsageError
from dsctl.core.params import MTP
from dsctl.layouts.ranks import main_layers
from dsctl.plan.request import DROPPED, KEPT, ONLY, Request
from dsctl.show.output import Output


def slice_to(
    source: str,
    target: str,
    kept: SliceOptions,
    format_: str,
    run: RunOptions,
    output: Output,
    local: bool = False,
) -> None:
    """Write a checkpoint of the kept layers and experts, or the drafter of such a checkpoint.

    Raises:
        DsctlError: of every kind; nothing is written if the plan or a check fails.
    """
    words = [word.strip() for word in kept.layers.split(",")] if kept.layers else []
    numbered = parse_numbers(",".join(word for word in words if word != MTP) or None, "--layers", "layers")
    asked = drafter(kept.mtp, kept.no_mtp)
    if asked == DROPPED and MTP in words:
        raise UsageError("--mtp drop and --layers with mtp exclude each other", hint="leave one of them out")
    request = Request(to=format_, shard_size=SHARD_BYTES, keep_scales=False, mtp=ONLY if asked == ONLY else KEPT)
    experts, how = _experts(kept.experts), judged(request, run)
    checkpoint = open_checkpoint(source_at(located(source, local=local)))
    if asked == DROPPED and not numbered:
        numbered = main_layers(checkpoint.families)
    with_drafter = MTP in words or (asked in (KEPT, ONLY) and bool(words))
    cut = cut_of(checkpoint, numbered, with_drafter, experts)
    convert_from(sliced(checkpoint, cut), target, replace(request, slice=str(cut)), how, run, output)


def _experts(text: str | None) -> tuple[int, ...]:
    """Return the experts to keep: the first N, or those of a list; empty if all are kept."""
    if text is None:
        return ()
    count = text.strip()
    if count.isdecimal():
        kept = parse_numbers(f"0-{count}", "--experts", "experts")[:-1]
    else:
        kept = parse_numbers(text, "--experts", "experts")
    if not kept:
        raise UsageError("--experts: at least one must be kept", hint="leave --experts out to keep all")
    return kept
