"""The page of a plan: bytes of the fullest rank beside the memory of accelerators, and what fits on which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dsctl.show.capacity import spread_words
from dsctl.show.drawing import page
from dsctl.show.drawing.charts import Chart, stacks
from dsctl.show.output import count, size
from dsctl.show.pages.cards import Card
from dsctl.show.sections import Section, printable


def capacity(facts: dict[str, Any], origin: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    return page(
        "plan",
        f"What it takes to serve {facts['source']}",
        list(map(printable, sections)),
        origin=origin,
        cards=list(_cards(facts)),
        charts=list(_charts(facts)),
    )


def _cards(facts: dict[str, Any]) -> Iterator[Card]:
    for name, one in facts["formats"].items():
        yield Card(f"on disk, {name}", size(one["disk_bytes"]), f"{count(facts['values'])} values")
    for name in facts["formats"]:
        yield _fits(name, facts["accelerators"])
    cache = facts["cache"]
    if cache:
        each = cache["latent_bytes_per_token"] + cache["index_bytes_per_token"]
        fixed = cache["window_bytes_per_sequence"] + cache["state_bytes_per_sequence"]
        beside = f", {size(fixed)} per sequence" if fixed else ""
        detail = f"{each:,} B per token{beside}, {facts['batch']:,} x {facts['context']:,} tokens"
        yield Card("cache", size(cache["bytes"]), detail)


def _fits(name: str, accelerators: Sequence[dict[str, Any]]) -> Card:
    """The accelerators that hold this format, with the fewest that it takes of each."""
    held = [(one["name"], one["formats"][name]) for one in accelerators if one["formats"][name]["fits"]]
    if not held:
        uncut = all(one["formats"][name]["why"] == "cuts" for one in accelerators)
        detail = "these numbers of ranks need cuts that cannot be made" if uncut else "with the numbers of ranks below"
        return Card(f"{name} fits on", "none of these", detail, "removed")
    told = [f"{fit['world']} x {each}" for each, fit in sorted(held, key=lambda one: one[1]["world"])]
    return Card(f"{name} fits on", told[0], f"also {', '.join(told[1:])}" if told[1:] else "")


def _charts(facts: dict[str, Any]) -> Iterator[Chart]:
    memories: dict[int, list[str]] = {}
    for one in facts["accelerators"]:
        memories.setdefault(one["memory_bytes"], []).append(one["name"])
    marks = {size(memory): memory for memory in memories}
    lines = "; ".join(f"{size(memory)} {', '.join(names)}" for memory, names in memories.items())
    for name, one in facts["formats"].items():
        starred = " * needs cuts that cannot be made." if any(rank["cuts"] for rank in one["ranks"]) else ""
        parts = {what: {spread(rank): rank[f"{what}_bytes"] for rank in one["ranks"]} for what in ("weights", "cache")}
        yield stacks(f"Fullest rank, {name}", parts, marks, size, f"Lines across are memories: {lines}.{starred}")


def spread(rank: dict[str, Any]) -> str:
    """TP 8 EP 8; parts that are 1 go unsaid, and a star marks cuts that cannot be made."""
    return spread_words(rank) + "*" * bool(rank["cuts"])
