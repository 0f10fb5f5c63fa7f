"""The part of a checkpoint that --layers and --experts name."""

from __future__ import annotations

import os

from dsctl.cli.options import parse_numbers
from dsctl.core.errors import UsageError
from dsctl.plan.expert_plan import read_plan
from dsctl.plan.parts import Part


def part_of(layers: str | None, experts: str | None, copy: bool) -> Part:
    """The part that these texts name, such as 0-4,mtp and 8; None keeps all.

    Raises:
        UsageError: a text is not such a list. SourceError, FormatError: the plan cannot be read.
    """
    words = [word.strip() for word in layers.split(",")] if layers else []
    numbered = parse_numbers(",".join(word for word in words if word != "mtp") or None, "--layers", "layers")
    plan = read_plan(experts) if experts is not None and _names_a_file(experts) else None
    named = None if layers is None else numbered
    return Part(named, () if plan else _experts(experts), "mtp" in words or None, plan, copy)


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
