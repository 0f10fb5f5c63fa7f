"""Whether a checkpoint fits, for people: verdicts and tokens by accelerator, the sum of one rank, and demands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from dsctl.core.errors import VerifyFailed
from dsctl.look.accelerators import ACCELERATORS
from dsctl.look.capacity import STORED
from dsctl.look.fitting import FITS, NO, SPLIT, TIGHT
from dsctl.look.places import GPU, HOST
from dsctl.show.output import plural, size
from dsctl.show.sections import Column, Row, Section

# The source of each accelerator's memory is printed for this many.
FEW = 4
COLUMNS = (
    Column("memory", True, 3),
    Column("verdict"),
    Column("ranks"),
    Column("tokens", True, 1),
    Column("sequences", True, 2),
)


def spread_words(rank: dict[str, Any]) -> str:
    """TP 8; TP 8 EP 8 PP 2: sizes of 1 are omitted."""
    sizes = [f"{word.upper()} {rank[word]}" for word in ("tp", "ep", "pp") if rank[word] > 1]
    return " ".join(sizes) or "1 rank"


def fits(facts: dict[str, Any], usual: bool) -> Iterator[Section]:
    """A table per format, or a single one if there is a single accelerator; `usual` accelerators are a selection."""
    devices, names = facts["accelerators"], list(facts["formats"])
    place = {None: "", HOST: ", Engram tables in host memory", GPU: ", Engram tables on the GPUs"}
    where = place[facts["tables"] and facts["tables"]["place"]]
    summary = f"weights and {_batch(facts)}{where}, with {_reserve(facts)} of each GPU kept free"
    notes = tuple(_notes(facts, usual))
    if len(devices) == 1:
        rows = tuple(_row(name, devices[0], name) for name in names)
        yield Section("Fits?", summary, (Column("weights"), *COLUMNS), rows, notes)
        return
    for name in names:
        title = f"Fits {name}?" if name == STORED else f"Fits as {name}?"
        below = notes if name == names[-1] else ()
        if all(one["formats"][name]["verdict"] == SPLIT for one in devices):
            yield Section(title, f"no: {_tried(facts, name)} {SPLIT}", paragraphs=below)
            continue
        rows = tuple(_row(one["name"], one, name) for one in devices)
        yield Section(title, summary, (Column(""), *COLUMNS), rows, below)
        summary = ""


def _tried(facts: dict[str, Any], name: str) -> str:
    return ", ".join(map(spread_words, facts["formats"][name]["ranks"]))


def _row(label: str, device: dict[str, Any], name: str) -> Row:
    fit = device["formats"][name]
    ranks = "" if fit["verdict"] == SPLIT and len(fit["spreads"]) > 1 else spread_words(fit)
    counts = [f"{number:,}" if number is not None else "" for number in (fit["tokens"], fit["sequences"])]
    return Row((label, size(device["memory_bytes"]), _verdict(fit), ranks, *counts))


def _verdict(fit: dict[str, Any]) -> str:
    """Fits, 36.6 GB left; tight, 7.7 GB left; no, 5.1 GB short; cannot be split."""
    if fit["verdict"] == SPLIT:
        return SPLIT
    return f"no, {size(fit['short_bytes'])} short" if fit["verdict"] == NO else _left(fit)


def _left(fit: dict[str, Any]) -> str:
    return f"{fit['verdict']}, {size(fit['left_bytes'])} left"


def _batch(facts: dict[str, Any]) -> str:
    if facts["cache"] is None:
        return "no cache"
    return f"{plural(facts['batch'], 'sequence')} of {facts['context']:,} tokens"


def _reserve(facts: dict[str, Any]) -> str:
    """10%, or 4.3 GB."""
    kept = facts["reserve"]
    return size(kept["bytes"]) if kept["bytes"] is not None else f"{100 * kept['share']:g}%"


def _notes(facts: dict[str, Any], usual: bool) -> Iterator[str]:
    """The meaning of the columns, the default reserve, and how to choose accelerators."""
    devices = facts["accelerators"]
    verdicts = [fit for one in devices for fit in one["formats"].values() if fit["verdict"] != SPLIT]
    if not verdicts:
        return
    held = "weights and cache" if facts["cache"] else "weights"
    words = f"Left: memory minus {held} on the fullest rank"
    words += "; tight: less than the reserve is left." if any(fit["verdict"] == TIGHT for fit in verdicts) else "."
    if facts["cache"]:
        fixed = facts["cache"]["window_bytes_per_sequence"]
        words += " Tokens: KV cache that fits beside weights and reserve, on all ranks together"
        words += f", in whole sequences of {facts['context']:,}." if fixed else "."
    yield words
    if facts["reserve"]["from"] == "default":
        yield (
            f"Reserve: {_reserve(facts)} for activations, buffers and graphs, as vLLM's gpu_memory_utilization of 0.9; "
            "--reserve SIZE|PERCENT changes it."
        )
    yield from _units(facts)
    shared = [one["name"] for one in devices if one["shared_memory"]]
    if shared and facts["tables"] and facts["tables"]["place"] == HOST:
        yield f"{', '.join(shared)}: host and GPU share the memory, so that the Engram tables count there."
    if usual:
        yield (
            f"{len(devices)} of {len(ACCELERATORS)} accelerators are shown. Choose with --gpu NAME, such as gb200, "
            "h100-nvl or 910b, or --gpu NAME=GB."
        )
    elif len(devices) <= FEW:
        yield from (f"{one['name']}: {size(one['memory_bytes'])}, {one['source']}{_label(one)}." for one in devices)


def _label(device: dict[str, Any]) -> str:
    return f" (label {device['label_gb']:g} GB)" if device["label_gb"] else ""


def _units(facts: dict[str, Any]) -> Iterator[str]:
    """The accelerators that hold these weights without units for them."""
    used = {unit for one in facts["formats"].values() for unit in one["units"]}
    for unit in sorted(used, reverse=True):
        lacking = [one["name"] for one in facts["accelerators"] if one[f"{unit}_units"] is False]
        if lacking:
            kind = unit.upper()
            yield f"No {kind} units: {', '.join(lacking)}. They need kernels that decode {kind}; see dsctl formats."


def per_rank(facts: dict[str, Any]) -> Iterator[Section]:
    """The fullest rank as a sum, for a single spread: weights, cache and reserve beside the memory."""
    formats, devices = facts["formats"], facts["accelerators"]
    ranks = {name: of["ranks"][0] for name, of in formats.items() if not of["ranks"][0]["cuts"]}
    if not ranks:
        return
    first = next(iter(ranks.values()))
    cached = (
        "cache, not known"
        if facts["cache"] is None
        else f"cache, {first['sequences']:,} of {plural(facts['batch'], 'sequence')}"
    )
    cached += f", {plural(first['layers'], 'layer')}" if first["pp"] > 1 else ""
    columns = (Column(""), *(Column(name, True, rank=n) for n, name in enumerate(ranks)))
    apart = facts["tables"] is not None and facts["tables"]["place"] == HOST
    rows = [
        Row(
            ("weights, without tables" if apart else "weights", *(size(one["weights_bytes"]) for one in ranks.values()))
        ),
        Row((cached, *(size(one["cache_bytes"]) for one in ranks.values()))),
    ]
    if len(devices) == 1:
        (one,) = devices
        rows.append(Row((f"reserve, {one['name']}", *(size(one["reserve_bytes"]) for _ in ranks))))
        rows.append(Row(("sum", *(size(rank["bytes"] + one["reserve_bytes"]) for rank in ranks.values()))))
        rows.append(Row((f"memory, {one['name']}", *(size(one["memory_bytes"]) for _ in ranks))))
        if apart:
            rows.append(_with_tables(ranks.values(), one["reserve_bytes"]))
    else:
        columns += (Column("memory", True),)
        rows.append(Row(("sum", *(size(rank["bytes"]) for rank in ranks.values()))))
        rows = [Row((*row.cells, "")) for row in rows]
        rows += [_with_reserve(one, list(ranks.values())) for one in devices]
        if apart:
            rows.append(Row((*_with_tables(ranks.values()).cells, "")))
    summary = f"{spread_words(first)}, the fullest of {plural(first['world'], 'rank')}"
    yield Section("Per rank", summary, columns, tuple(rows))


def _with_tables(ranks: Iterable[dict[str, Any]], reserve: int = 0) -> Row:
    sums = (size(rank["tables"][GPU]["bytes"] + reserve) for rank in ranks)
    return Row(("sum with Engram tables on the GPUs", *sums))


def _with_reserve(device: dict[str, Any], ranks: Sequence[dict[str, Any]]) -> Row:
    kept = device["reserve_bytes"]
    sums = (size(rank["bytes"] + kept) for rank in ranks)
    return Row((f"+ {size(kept)} reserve, {device['name']}", *sums, size(device["memory_bytes"])))


def must(facts: dict[str, Any]) -> Section:
    """The answers to demands."""
    rows = tuple(
        Row((f"{one['count']} x {one['name']}", _verdict(one), spread_words(one), _count(one["tokens"])))
        for one in facts["must_fit"]
    )
    columns = (Column(""), Column("verdict"), Column("ranks"), Column("tokens", True))
    form = facts["must_fit"][0]["format"]
    return Section("Must fit", f"{form}, with {_reserve(facts)} of each GPU kept free", columns, rows)


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def unmet(facts: dict[str, Any]) -> VerifyFailed | None:
    """The error of demands that are not met, or None."""
    found = [one for one in facts["must_fit"] if one["verdict"] != FITS]
    if not found:
        return None
    issues = [_unmet(facts["source"], one) for one in found]
    hint = next((_enough(one) for one in found if one["enough"]), None)
    many = f"{len(found)} of {len(facts['must_fit'])} --must-fit are not met"
    tried = "a smaller --context, --batch or --reserve needs less memory"
    return VerifyFailed(
        issues[0] if len(issues) == 1 else many, hint=f"{hint}; {tried}" if hint else tried, issues=issues
    )


def _unmet(source: str, one: dict[str, Any]) -> str:
    place = f"--must-fit {one['asked']}: {source} ({one['format']}) does not fit"
    ranks, kept = spread_words(one), size(one["reserve_bytes"])
    if one["verdict"] == SPLIT:
        return f"{place}: {ranks} splits heads or quantization blocks"
    if one["verdict"] == TIGHT:
        return f"{place}: {ranks} leaves {size(one['left_bytes'])} per GPU, and the reserve is {kept}"
    return f"{place}: {ranks} is {size(one['short_bytes'])} per GPU short, even without the reserve of {kept}"


def _enough(one: dict[str, Any]) -> str:
    return f"{one['enough']} x {one['name']} are enough"
