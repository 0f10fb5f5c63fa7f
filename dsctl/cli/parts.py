"""The part of a checkpoint that --layers and --experts name."""

from __future__ import annotations

import os

from dsctl.cli.groups import SliceOptions
from dsctl.cli.options import parse_numbers
from dsctl.cli.requests import drafter
from dsctl.core.errors import UsageError
from dsctl.core.params import MTP
from dsctl.plan.expert_plan import read_plan
from dsctl.plan.parts import Part
from dsctl.plan.request import DROPPED, KEPT


def part_of(kept: SliceOptions) -> Part:
    """The part that texts such as 0-4,mtp and 8 name, with its drafter; None keeps all.

    Raises:
        UsageError: a text is not such a list, or options contradict each other. SourceError, FormatError: the plan
            cannot be read.
    """
    words = [word.strip() for word in kept.layers.split(",")] if kept.layers else []
    numbered = parse_numbers(",".join(word for word in words if word != MTP) or None, "--layers", "layers")
    asked = drafter(kept.mtp, kept.no_mtp) or (KEPT if MTP in words else None)
    if asked == DROPPED and MTP in words:
        raise UsageError("--mtp drop and --layers with mtp exclude each other", hint="leave one of them out")
    experts = kept.experts
    plan = read_plan(experts) if experts is not None and _names_a_file(experts) else None
    named = None if kept.layers is None else numbered
    return Part(named, () if plan else _experts(experts), asked, plan, kept.copy_to_drafter)


def _names_a_file(text: str) -> bool:
    """Whether --experts names a plan; numbers never do."""
    word = text.strip()
    numeric = bool(word) and all(character.isdecimal() or character in "-, " for character in word)
    return not numeric and (os.path.exists(text) or os.sep in text or text.lower().endswith(".json"))


def _experts(text: str | None) -> tuple[int, ...]:
    """Return the experts to keep: the first N, or those of a list; empty if all are kept."""
    if text is None:
        return ()
    count = text.strip()
    if count.isdecimal():
        kept = parse_numbers(f"0-{count}", "--experts", "experts")[:-1]
    else:
        try:
            kept = parse_numbers(text, "--experts", "experts")
        except UsageError as error:
            hint = f"{error.hint}, or name a plan: a file such as plan.json"
            raise UsageError(error.message, hint=hint) from None
    if not kept:
        raise UsageError("--experts: at least one must be kept", hint="leave --experts out to keep all")
    return kept
