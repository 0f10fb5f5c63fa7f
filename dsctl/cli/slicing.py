"""The steps of `dsctl slice`: open a checkpoint, cut it, and write the result."""

from __future__ import annotations

from dataclasses import replace

from dsctl.checkpoint.opening import open_checkpoint, source_at
from dsctl.checkpoint.slice import SHARD_BYTES, cut_of, sliced
from dsctl.cli.carrying import convert_from
from dsctl.cli.groups import RunOptions
from dsctl.cli.options import parse_numbers
from dsctl.cli.requests import judged
from dsctl.cli.sources import located
from dsctl.core.errors import UsageError
from dsctl.plan.request import Request
from dsctl.show.output import Output


def slice_to(
    source: str,
    target: str,
    layers: str | None,
    experts: str | None,
    format_: str,
    run: RunOptions,
    output: Output,
    local: bool = False,
) -> None:
    """Write a checkpoint of these layers and experts, given as texts such as 0-4,mtp and 8; None keeps all.

    Raises:
        DsctlError: of every kind; nothing is written if the plan or a check fails.
    """
    words = [word.strip() for word in layers.split(",")] if layers else []
    numbered = parse_numbers(",".join(word for word in words if word != "mtp") or None, "--layers", "layers")
    kept, request = _experts(experts), Request(to=format_, shard_size=SHARD_BYTES, keep_scales=False)
    how = judged(request, run)
    checkpoint = open_checkpoint(source_at(located(source, local=local)))
    cut = cut_of(checkpoint, numbered, "mtp" in words, kept)
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
