"""The page of a plan: bytes of the fullest rank compared with the memory of accelerators, and the accelerators that
suffice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsctl.look.places import GPU, HOST
from dsctl.show.drawing import page
from dsctl.show.drawing.charts import COLOURS, Chart
from dsctl.show.drawing.lengths import fitted, rules, stacked
from dsctl.show.fits import spread_words
from dsctl.show.output import count, size
from dsctl.show.pages.cards import Card
from dsctl.show.sections import Section, printable

# The verdicts of a plan, the best first.
FITS, TIGHT, NO, SPLIT = "fits", "tight", "no", "cannot be split"
# The part of a bar that stands for tables on the GPUs.
TABLES = "Engram tables"
WITH_TABLES = "The second bar of each has the Engram tables on the GPUs, not in host memory."
# The most accelerators named at a line.
MOST = 3


def capacity(facts: dict[str, Any], origin: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    return page(
        "plan",
        f"Memory needed to serve {facts['source']}",
        list(map(printable, sections)),
        origin=origin,
        cards=list(_cards(facts)),
        charts=list(_charts(facts)),
    )


def _cards(facts: dict[str, Any]) -> Iterator[Card]:
    for name in facts["formats"]:
        yield fits(name, facts["accelerators"])
    cache = facts["cache"]
    if cache:
        each = cache["latent_bytes_per_token"] + cache["index_bytes_per_token"]
        fixed = cache["window_bytes_per_sequence"] + cache["state_bytes_per_sequence"]
        beside = f", {size(fixed)} per sequence" if fixed else ""
        detail = f"{each:,} B per token{beside}, {facts['batch']:,} x {facts['context']:,} tokens"
        yield Card("cache", size(cache["bytes"]), detail)
    if facts["tables"]:
        yield _tables(facts)
    for name, one in facts["formats"].items():
        yield Card(f"on disk, {name}", size(one["disk_bytes"]), f"{count(facts['values'])} values")


def _tables(facts: dict[str, Any]) -> Card:
    """The tables of the stored format, and their place."""
    nbytes = next(iter(facts["formats"].values()))["tables_bytes"]
    held = "in host memory, one copy per node" if facts["tables"]["place"] == HOST else "on the GPUs, split by rows"
    return Card("Engram tables", size(nbytes), held)


def fits(name: str, accelerators: Sequence[dict[str, Any]]) -> Card:
    """The fewest accelerators that hold this format, and the verdicts of all others."""
    found: dict[str, list[tuple[int, str, dict[str, Any]]]] = {}
    for one in accelerators:
        fit = one["formats"][name]
        found.setdefault(_verdict(fit), []).append((fit.get("world", 0), one["name"], fit))
    held = {verdict: sorted(found[verdict], key=lambda one: one[0]) for verdict in (FITS, TIGHT) if verdict in found}
    if not held:
        if list(found) == [SPLIT]:
            return Card(
                f"{name}: {SPLIT}",
                "not possible",
                "These numbers of ranks split heads or quantization blocks.",
                "removed",
            )
        return Card(f"{name}: {NO}", "does not fit", "No accelerator shown holds it with the ranks below.", "removed")
    verdict = next(iter(held))
    world, first, fit = held[verdict][0]
    held[verdict] = held[verdict][1:]
    tokens = f"{fit['tokens']:,} tokens of cache. " if fit.get("tokens") else ""
    rest = [
        f"{'also' if word == verdict else word}: {', '.join(f'{many} x {each}' for many, each, _ in some)}"
        for word, some in held.items()
        if some
    ]
    rest += [f"{word}: {', '.join(each for _, each, _ in found[word])}" for word in (NO, SPLIT) if word in found]
    detail = tokens + ". ".join(words[0].upper() + words[1:] for words in rest)
    return Card(f"{name}: {verdict}", f"{world} x {first}", detail, "changed" if verdict == TIGHT else "")


def _verdict(fit: dict[str, Any]) -> str:
    if "verdict" in fit:
        return str(fit["verdict"])
    return FITS if fit["fits"] else SPLIT if fit["why"] == "cuts" else NO


def _charts(facts: dict[str, Any]) -> Iterator[Chart]:
    memories = {one["name"]: float(one["memory_bytes"]) for one in facts["accelerators"]}
    apart = facts["tables"] is not None and facts["tables"]["place"] == HOST
    colours = {"weights": COLOURS[0], "cache": COLOURS[1]} | ({TABLES: COLOURS[2]} if apart else {})
    for name, one in facts["formats"].items():
        series = _series(one["ranks"], apart)
        axis = fitted([sum(parts.values()) for parts in series.values()], list(memories.values()))
        bars, lines = stacked(series, size, colours, axis), rules(_named(memories), axis)
        rows = tuple((ranks, *(size(nbytes) for nbytes in parts.values())) for ranks, parts in series.items())
        told = f"{WITH_TABLES} " * apart
        told += f"A line marks the memory of one accelerator.{_kept(facts)} The axis is linear, from 0 to {size(axis)}."
        beyond = [f"{each} {size(memory)}" for each, memory in memories.items() if memory > axis]
        told += f" Beyond the axis: {', '.join(beyond)}." if beyond else ""
        told += " An arrow marks a bar that is longer than the axis." if any(bar.cut for bar in bars) else ""
        told += (
            f" * {SPLIT}: splits heads or quantization blocks." if any(rank["cuts"] for rank in one["ranks"]) else ""
        )
        yield Chart(f"Fullest rank, {name}", told, None, ("", *colours), rows, colours, bars=bars, rules=lines)


def _series(ranks: Sequence[dict[str, Any]], apart: bool) -> dict[str, dict[str, float]]:
    """Bytes of the fullest rank by what they are. With `apart`, a second bar has Engram tables on the GPUs too."""
    series: dict[str, dict[str, float]] = {}
    for rank in ranks:
        held: dict[str, float] = {"weights": rank["weights_bytes"], "cache": rank["cache_bytes"]}
        series[spread(rank)] = held | ({TABLES: 0} if apart else {})
        if apart:
            series[f"{spread(rank)} + tables"] = held | {TABLES: rank["tables"][GPU]["bytes"] - rank["bytes"]}
    return series


def _kept(facts: dict[str, Any]) -> str:
    """The relation between the verdicts and the reserve, if there is a reserve."""
    reserve = facts.get("reserve")
    if not reserve:
        return ""
    kept = size(reserve["bytes"]) if reserve["bytes"] is not None else f"{100 * reserve['share']:g} %"
    return f" A format that fits leaves {kept} of it free; one that is tight leaves less."


def _named(memories: Mapping[str, float]) -> dict[str, float]:
    """Lines by name. Memories that print as the same size share a line, at the smallest of them."""
    found: dict[str, list[str]] = {}
    for name, memory in memories.items():
        found.setdefault(size(memory), []).append(name)
    lines = {}
    for words, names in found.items():
        more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
        lines[f"{words}: {', '.join(names[:MOST])}{more}"] = min(memories[name] for name in names)
    return lines


def spread(rank: dict[str, Any]) -> str:
    """TP 8 EP 8, without sizes of 1; a star marks an impossible split."""
    return spread_words(rank) + "*" * bool(rank["cuts"])
