"""Whether a checkpoint fits, for people: verdicts and tokens by accelerator, the sum of one rank, and demands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dsctl.core.errors import VerifyFailed
from dsctl.look.accelerators import ACCELERATORS
from dsctl.look.capacity import STORED
from dsctl.look.fitting import FITS, NO, SPLIT, TIGHT
from dsctl.show.output import plural, size
from dsctl.show.sections import Column, Row, Section

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
    summary = f"weights and {_batch(facts)}, with {_reserve(facts)} of each GPU kept free"
    notes = tuple(_notes(facts, usual))
    if len(devices) == 1:
        rows = tuple(_row(name, devices[0], name) for name in names)
        yield Section("Fits?", summary, (Column("weights"), *COLUMNS), rows, notes)
        return
    for number, name in enumerate(names):
        rows = tuple(_row(one["name"], one, name) for one in devices)
        words, told = (summary, ()) if not number else ("", ())
        told = notes if number == len(names) - 1 else ()
        title = f"Fits {name}?" if name == STORED else f"Fits as {name}?"
        yield Section(title, words, (Column(""), *COLUMNS), rows, told)


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
    return f"{plural(facts['batch'], 'sequence')} of {facts['context']:,} tokens"


def _reserve(facts: dict[str, Any]) -> str:
    """10%, or 4.3 GB."""
    kept = facts["reserve"]
    return size(kept["bytes"]) if kept["bytes"] is not None else f"{100 * kept['share']:g}%"


def _notes(facts: dict[str, Any], usual: bool) -> Iterator[str]:
    """How to read the table: the fewest words that make every column unambiguous."""
    devices = facts["accelerators"]
    each = [fit for one in devices for fit in one["formats"].values()]
    words = "Left: memory minus weights and cache on the fullest rank"
    words += "; tight: less than the reserve is left." if any(fit["verdict"] == TIGHT for fit in each) else "."
    if any(fit["tokens"] is not None for fit in each):
        fixed = facts["cache"]["window_bytes_per_sequence"]
        words += " Tokens: KV cache that fits beside weights and reserve, on all ranks together"
        words += f", as whole sequences of {facts['context']:,}." if fixed else "."
    yield words
    if facts["reserve"]["from"] == "default":
        yield (
            "Reserve: 10% for activations, buffers and graphs, as vLLM's gpu_memory_utilization of 0.9; "
            "--reserve SIZE|PERCENT changes it."
        )
    yield from _units(facts)
    if usual:
        yield (
            f"{len(devices)} of {len(ACCELERATORS)} accelerators are shown. Choose with --gpu NAME, such as gb200, "
            "h100-nvl or 910b, or --gpu NAME=GB."
        )
    elif len(devices) <= 4:
        yield from (f"{one['name']}: {size(one['memory_bytes'])}, {one['source']}{_label(one)}." for one in devices)


def _label(device: dict[str, Any]) -> str:
    return f" (label {device['label_gb']:g} GB)" if device["label_gb"] else ""


def _units(facts: dict[str, Any]) -> Iterator[str]:
    """The accelerators that hold these weights without units for them."""
    used = {form for one in facts["formats"].values() for form in one["units"]}
    for form in sorted(used, reverse=True):
        lacking = [one["name"] for one in facts["accelerators"] if one[f"{form}_units"] is False]
        if lacking:
            name = form.upper()
            yield f"No {name} units: {', '.join(lacking)}. Kernels that decode {name} must exist there; see dsctl formats."


def per_rank(facts: dict[str, Any]) -> Section:
    """The fullest rank as a sum, for one spread: weights, cache and reserve beside the memory."""
    names, devices = list(facts["formats"]), facts["accelerators"]
    ranks = [facts["formats"][name]["ranks"][0] for name in names]
    first = ranks[0]
    label = f"cache, {first['sequences']:,} of {plural(facts['batch'], 'sequence')}"
    if first["pp"] > 1:
        label += f", {first['layers']} layers"
    rows = [
        Row(("weights", *(size(one["weights_bytes"]) for one in ranks))),
        Row((label, *(size(one["cache_bytes"]) for one in ranks))),
    ]
    if len(devices) == 1:
        (one,) = devices
        kept, memory = one["reserve_bytes"], size(one["memory_bytes"])
        rows += [
            Row((f"reserve, {one['name']}", *(size(kept) for _ in ranks))),
            Row(("sum", *(size(rank["bytes"] + kept) for rank in ranks))),
            Row((f"memory, {one['name']}", *(memory for _ in ranks))),
        ]
    else:
        rows.append(Row(("sum", *(size(rank["bytes"]) for rank in ranks))))
        rows += [_with_reserve(one, ranks) for one in devices]
    columns = (Column(""), *(Column(name, True, rank=n) for n, name in enumerate(names)))
    return Section("Per rank", f"{spread_words(first)}, the fullest of {plural(first['world'], 'rank')}", columns, tuple(rows))


def _with_reserve(device: dict[str, Any], ranks: Sequence[dict[str, Any]]) -> Row:
    kept, memory = device["reserve_bytes"], size(device["memory_bytes"])
    sums = (f"{size(rank['bytes'] + kept)} of {memory}" for rank in ranks)
    return Row((f"+ {size(kept)} reserve, {device['name']}", *sums))


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
    return f"{place}: {ranks} is {size(one['short_bytes'])} per GPU short, without the reserve of {kept}"


def _enough(one: dict[str, Any]) -> str:
    return f"{one['enough']} x {one['name']} are enough"
