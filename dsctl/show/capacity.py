"""The report of `dsctl plan` as sections for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dsctl.look.capacity import STORED
from dsctl.look.description import Description
from dsctl.look.places import GPU, HOST, PLACES
from dsctl.look.wording import forms, short
from dsctl.show.fits import fits, must, per_rank, spread_words
from dsctl.show.output import plural, size
from dsctl.show.sections import Column, Row, Section

__all__ = ["sections", "spread_words"]

# The rows of the place that was not chosen.
PLACED = {HOST: "  tables in host memory", GPU: "  tables on the GPUs"}


def sections(
    description: Description, facts: dict[str, Any], recipes: Sequence[str], usual: bool = False
) -> Iterator[Section]:
    """The report, section by section, from its numbers.

    `recipes` are broken down by role; `usual` accelerators were not asked for.
    """
    yield Section("", description.origin.sentence)
    yield _weights(description, facts)
    yield from (_roles(name, facts["formats"][name]["roles"]) for name in recipes)
    if facts["must_fit"]:
        yield must(facts)
    yield from fits(facts, usual)
    if len(next(iter(facts["formats"].values()))["ranks"]) == 1:
        yield from per_rank(facts)
    yield from _cache(facts)
    yield _cuts(facts)


def _weights(description: Description, facts: dict[str, Any]) -> Section:
    spreads = next(iter(facts["formats"].values()))["ranks"]
    tables = facts["tables"]
    columns = [Column("weights"), Column("disk", True)]
    columns += [Column("host memory", True)] if tables else []
    first_to_go = {1: 2, 2: 1} if len(spreads) > 1 else {}
    columns += [Column(spread_words(rank), True, first_to_go.get(rank["world"], 0)) for rank in spreads]
    rows = []
    for name, of in facts["formats"].items():
        first = (_format(name, description), size(of["disk_bytes"]))
        if not tables:
            rows.append(Row((*first, *(_held(rank) for rank in of["ranks"]))))
            continue
        # The chosen place of the tables comes first, below it the other one.
        for place in (tables["place"], *(one for one in PLACES if one != tables["place"])):
            there = size(of["tables_bytes"]) if place == HOST else ""
            ranks = (_held(rank | rank["tables"][place]) for rank in of["ranks"])
            rows.append(Row((*(first if place == tables["place"] else (PLACED[place], "")), there, *ranks)))
    if any(rank["cuts"] for of in facts["formats"].values() for rank in of["ranks"]):
        rows.append(Row(("* not possible: splits heads or quantization blocks",), "note"))
    values = f"{facts['values']:,} values, {facts['active_values']:,} active per token"
    values += f" ({facts['prompt_values']:,} in a prompt)" if facts["prompt_values"] else ""
    return Section(description.name, values, tuple(columns), tuple(rows), tuple(_placed(facts)))


def _placed(facts: dict[str, Any]) -> Iterator[str]:
    """The layers that a prompt passes, and the place of Engram tables and its reason."""
    passed = facts["prompt_layers"]
    if passed:
        yield f"A prompt needs to pass only the first {passed} layers; generated tokens pass all of them."
    if facts["tables"] is None:
        return
    on_gpus = facts["tables"]["place"] == GPU
    yield (
        "Engram tables: a token looks up a few of their rows, so that engines can keep them in host memory, one copy "
        "per node. vLLM does by default (--engram-config cpu_offload); SGLang splits their rows over the GPUs by "
        f"default (placement). {'Verdicts count them on the GPUs, as asked' if on_gpus else 'Verdicts do as vLLM'}"
        f"{'.' if on_gpus else '; --tables gpu counts them on the GPUs.'}"
    )


def _roles(name: str, roles: dict[str, dict[str, int]]) -> Section:
    rows = [
        Row((role if not place else "", format_, size(nbytes)))
        for role, formats in roles.items()
        for place, (format_, nbytes) in enumerate(formats.items())
    ]
    columns = (Column("role"), Column("format"), Column("bytes", True))
    return Section(f"Recipe {name}", "the formats of each role", columns, tuple(rows))


def _format(name: str, description: Description) -> str:
    if name != STORED:
        return name
    return f"{name}: {forms(description.known)}"


def _held(rank: dict[str, Any]) -> str:
    return size(rank["weights_bytes"]) + ("*" if rank["cuts"] else "")


def _cache(facts: dict[str, Any]) -> Iterator[Section]:
    cache = facts["cache"]
    if cache is None:
        yield Section("Cache", "dsctl does not know the cache costs of this architecture: no figure includes them")
        return
    growing = (("KV cache", cache["format"], "latent"), ("indexer's keys", cache["index_format"], "index"))
    fixed = (("window", cache["window_format"], "window"), ("compressors' state", "f32", "state"))
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
    # A linear cache has no fixed bytes per sequence.
    places = (0, 1, 2, 3) if per_sequence else (0, 1, 3)
    shown = tuple(Row(tuple(row[place] for place in places)) for row in rows)
    columns = [columns[place] for place in places]
    yield Section("Cache", f"{tokens}; every TP rank keeps all of it", tuple(columns), shown, tuple(_contexts(facts)))


def _contexts(facts: dict[str, Any]) -> Iterator[str]:
    """The published context and the config's."""
    published, positions = facts["published_context"], facts["max_position_embeddings"]
    known = [f"the model card publishes {published:,} tokens"] if published else []
    known += [f"config.json allows {positions:,} (max_position_embeddings)"] if positions else []
    more = (
        f" {facts['context']:,} tokens are more than it allows." if positions and facts["context"] > positions else ""
    )
    default = "" if facts["context_from"] == "asked" else f"; --context defaults to {facts['context']:,}"
    if known:
        yield f"Context: {'; '.join(known)}{default}.{more}"


def _cuts(facts: dict[str, Any]) -> Section:
    rows = []
    for name, of in facts["formats"].items():
        found: dict[tuple[str, str], list[str]] = {}
        for template, (spreads, why) in _refused(of["ranks"]).items():
            found.setdefault((spreads, why), []).append(short(template))
        rows += [Row((name, spreads, why, ", ".join(which))) for (spreads, why), which in found.items()]
    if not rows:
        return Section("Cuts", "all parts are whole heads and quantization blocks")
    columns = (Column("format"), Column("ranks"), Column("each part"), Column("templates"))
    summary = "these split heads or quantization blocks: choose different sizes or a different format"
    return Section("Cannot be split", summary, columns, tuple(rows))


def _refused(ranks: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """By template: the spreads with an illegal cut, and the reason of the first of them."""
    refused: dict[str, list[tuple[int, str]]] = {}
    for place, rank in enumerate(ranks):
        for cut in rank["cuts"]:
            refused.setdefault(cut["template"], []).append((place, cut["why"]))
    reasons = {}
    for template, found in refused.items():
        first, last = found[0][0], found[-1][0]
        names = [spread_words(ranks[place]) for place, _ in found]
        run = len(found) == last - first + 1 > 2
        reasons[template] = (f"{names[0]} to {names[-1].removeprefix('TP ')}" if run else ", ".join(names), found[0][1])
    return reasons
