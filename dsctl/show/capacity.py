"""What it takes to hold and serve a checkpoint, as sections for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dsctl.look.capacity import STORED
from dsctl.look.description import Description
from dsctl.look.wording import form, short
from dsctl.show.output import plural, size
from dsctl.show.sections import Column, Row, Section


def sections(description: Description, facts: dict[str, Any], recipes: Sequence[str]) -> Iterator[Section]:
    """The report, part by part, from its numbers; `recipes` are broken down by role."""
    yield Section("", description.origin.sentence)
    yield _weights(description, facts)
    yield from (_roles(name, facts["formats"][name]["roles"]) for name in recipes)
    yield from _cache(facts)
    yield _accelerators(facts)
    yield _cuts(facts)


def _weights(description: Description, facts: dict[str, Any]) -> Section:
    spreads = next(iter(facts["formats"].values()))["ranks"]
    columns = [Column("weights"), Column("disk", True)]
    first_to_go = {1: 2, 2: 1} if len(spreads) > 1 else {}
    columns += [Column(spread_words(rank), True, first_to_go.get(rank["world"], 0)) for rank in spreads]
    rows = [
        Row((_format(name, description), size(of["disk_bytes"]), *(_held(rank) for rank in of["ranks"])))
        for name, of in facts["formats"].items()
    ]
    if any(rank["cuts"] for of in facts["formats"].values() for rank in of["ranks"]):
        rows.append(Row(("* cuts what must stay whole, see below",), "note"))
    values = f"{facts['values']:,} values, {facts['active_values']:,} active per token"
    return Section(description.name, values, tuple(columns), tuple(rows))


def _roles(name: str, roles: dict[str, dict[str, int]]) -> Section:
    rows = [
        Row((role if not place else "", format_, size(nbytes)))
        for role, formats in roles.items()
        for place, (format_, nbytes) in enumerate(formats.items())
    ]
    columns = (Column("role"), Column("format"), Column("bytes", True))
    return Section(f"Recipe {name}", "what each role is stored as", columns, tuple(rows))


def _format(name: str, description: Description) -> str:
    if name != STORED:
        return name
    forms = dict.fromkeys(form(group.codec) for group in description.known if group.family.quantizable)
    return f"{name}: {', '.join(forms)}"


def spread_words(rank: dict[str, Any]) -> str:
    """TP 8; TP 8 EP 8 PP 2: parts that are 1 go unsaid."""
    sizes = [f"{word.upper()} {rank[word]}" for word in ("tp", "ep", "pp") if rank[word] > 1]
    return " ".join(sizes) or "1 rank"


def _held(rank: dict[str, Any]) -> str:
    return size(rank["weights_bytes"]) + ("*" if rank["cuts"] else "")


def _cache(facts: dict[str, Any]) -> Iterator[Section]:
    cache = facts["cache"]
    if cache is None:
        return
    growing = (("KV cache", cache["format"], "latent"), ("indexer's keys", cache["index_format"], "index"))
    fixed = (("window", cache["format"], "window"), ("compressors' state", "f32", "state"))
    tokens = f"{plural(facts['batch'], 'sequence')} of {facts['context']:,} tokens"
    per_sequence = any(cache[f"{key}_bytes"] for _, _, key in fixed)
    columns = [Column(""), Column("per token", True), Column("per sequence", True), Column("all", True)]
    rows = [
        (f"{name}, {format_}", f"{cache[f'{key}_bytes_per_token']:,} B", "", size(cache[f"{key}_bytes"]))
        for name, format_, key in growing
        if cache[f"{key}_bytes_per_token"]
    ]
    rows += [
        (f"{name}, {format_}", "", size(cache[f"{key}_bytes_per_sequence"]), size(cache[f"{key}_bytes"]))
        for name, format_, key in fixed
        if cache[f"{key}_bytes"]
    ]
    # What only grows with tokens has no size per sequence.
    told = (0, 1, 2, 3) if per_sequence else (0, 1, 3)
    shown = tuple(Row(tuple(row[place] for place in told)) for row in rows)
    columns = [columns[place] for place in told]
    yield Section("Cache", f"{tokens}; whole on every TP rank", tuple(columns), shown, tuple(_contexts(facts)))


def _contexts(facts: dict[str, Any]) -> Iterator[str]:
    """The published context and that of the config, both by their names."""
    published, positions = facts["published_context"], facts["max_position_embeddings"]
    told = [f"{published:,} tokens are published (model card)"] if published else []
    told += [f"config.json allows {positions:,} (max_position_embeddings)"] if positions else []
    default = "" if facts["context_from"] == "asked" else f"; --context is {facts['context']:,} unless given"
    if told:
        yield f"Context: {'; '.join(told)}{default}."


def _accelerators(facts: dict[str, Any]) -> Section:
    names = list(facts["formats"])
    columns = (Column(""), Column("memory", True), *(Column(name, rank=n) for n, name in enumerate(names)))
    rows = tuple(
        Row((one["name"], size(one["memory_bytes"]), *(_fit(one["formats"][name]) for name in names)))
        for one in facts["accelerators"]
    )
    return Section("Fits on", "weights and cache; what is left must hold activations and buffers", columns, rows)


def _fit(fit: dict[str, Any]) -> str:
    if not fit["fits"]:
        return "no, cannot be cut so" if fit["why"] == "cuts" else f"no, {size(fit['short_bytes'])} short"
    return f"{spread_words(fit)}, {size(fit['left_bytes'])} left"


def _cuts(facts: dict[str, Any]) -> Section:
    rows = []
    for name, of in facts["formats"].items():
        found: dict[tuple[str, str], list[str]] = {}
        for template, (spreads, why) in _refused(of["ranks"]).items():
            found.setdefault((spreads, why), []).append(short(template))
        rows += [Row((name, spreads, why, ", ".join(which))) for (spreads, why), which in found.items()]
    if not rows:
        return Section("Cuts", "all parts are whole heads and blocks")
    columns = (Column("format"), Column("ranks"), Column("each part"), Column("templates"))
    return Section("Cuts that cannot be made", "choose other sizes, or recode these", columns, tuple(rows))


def _refused(ranks: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """By template: the spreads that cut it wrongly, and why the first of them does."""
    refused: dict[str, list[tuple[int, str]]] = {}
    for place, rank in enumerate(ranks):
        for cut in rank["cuts"]:
            refused.setdefault(cut["template"], []).append((place, cut["why"]))
    said = {}
    for template, found in refused.items():
        first, last = found[0][0], found[-1][0]
        names = [spread_words(ranks[place]) for place, _ in found]
        run = len(found) == last - first + 1 > 2
        said[template] = (f"{names[0]} to {names[-1].removeprefix('TP ')}" if run else ", ".join(names), found[0][1])
    return said
