"""What `--html` writes: the terminal's sections, with drawings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from dsctl.cli.output import count, plural, size
from dsctl.cli.sections import Section, printable
from dsctl.reports import page

if TYPE_CHECKING:
    from markupsafe import Markup

    from dsctl.costs import Attention
    from dsctl.diff import Diff, Template
    from dsctl.inspection import Inspection

Card = tuple[str, str, str]
SHORTEST = 1024


def difference(diff: Diff, sections: Sequence[Section]) -> str:
    """The page of a diff: the answer, what it costs, both architectures, and the terminal's sections."""
    from dsctl.cli.differences import titles
    from dsctl.diff import VERDICTS
    from dsctl.meanings import meanings
    from dsctl.reports.architecture import stages

    drawn = diff.a.model is not None and diff.b.model is not None
    names = titles(diff)
    return page(
        "diff",
        " → ".join(names),
        list(map(printable, sections)),
        verdict=VERDICTS[diff.verdict],
        cards=list(_difference_cards(diff)),
        meanings=meanings(diff),
        charts=list(_costs(diff, names)),
        sides=[(name, stages(diff, side)) for name, side in zip(names, (diff.a, diff.b), strict=True)] if drawn else [],
    )


def _difference_cards(diff: Diff) -> Iterator[Card]:
    for word, templates in (("added", diff.added), ("removed", diff.removed)):
        if templates:
            yield word, f"{count(sum(one.values for one in templates))} values", _counted(templates)
    if diff.changed:
        aspects = list(dict.fromkeys(aspect for change in diff.changed for aspect in change.aspects))
        yield "changed", plural(len(diff.changed), "kind"), f"of parameters: {', '.join(aspects)}"
    a, b = diff.a, diff.b
    yield "bytes", size(b.nbytes), f"before {size(a.nbytes)}{_times(a.nbytes, b.nbytes)}"
    if b.active_values:
        yield "values active per token", count(b.active_values), f"before {count(a.active_values)}"
    before, after = diff.attention
    if before and after:
        longest = _contexts(diff)[-1]
        flops = before.work(longest), after.work(longest)
        where = f"attention per token at {longest:,} tokens"
        yield where, f"{count(flops[1])} flop", f"before {count(flops[0])} flop{_times(*flops)}"
        cache = [one.cache_bytes() + one.index_bytes() for one in (before, after)]
        yield "cache per token", size(cache[1]), f"before {size(cache[0])}{_times(*cache)}"


def _counted(templates: Iterable[Template]) -> str:
    templates = list(templates)
    parameters, nbytes = sum(one.count for one in templates), sum(one.nbytes for one in templates)
    return f"{plural(parameters, 'parameter')} of {plural(len(templates), 'kind')}, {size(nbytes)}"


def _times(before: float, after: float) -> str:
    """How many times more or less, where that is worth a word."""
    if not before or not after or 0.95 < after / before < 1.05:
        return ""
    return f": {after / before:.1f} times as much" if after > before else f": {before / after:.1f} times less"


def _contexts(diff: Diff) -> list[int]:
    """Powers of two up to the longest context that either can hold."""
    told = [side.config.get("max_position_embeddings") for side in (diff.a, diff.b)]
    longest = max([n for n in told if type(n) is int], default=0)
    longest = min(max(longest, SHORTEST * 8), 1 << 24)
    powers = [SHORTEST << step for step in range(15) if SHORTEST << step < longest]
    return [*powers, longest]


def _costs(diff: Diff, names: tuple[str, str]) -> Iterator[Markup]:
    from dsctl.reports.charts import lines

    sides = diff.attention
    if sides[0] is None or sides[1] is None:
        return
    contexts = _contexts(diff)
    labels = [f"{context // 1024}K" for context in contexts]
    known: dict[str, Attention] = {name: side for name, side in zip(names, sides, strict=True) if side}
    work = {name: [side.work(context) for context in contexts] for name, side in known.items()}
    yield lines("Attention's floating-point operations for one more token", labels, work, count)
    read = {name: [side.read_bytes(context) for context in contexts] for name, side in known.items()}
    yield lines("Bytes of cache read for one more token", labels, read, size)
    held = {
        name: [(side.cache_bytes() + side.index_bytes()) * context for context in contexts]
        for name, side in known.items()
    }
    yield lines("Bytes of cache held", labels, held, size)


def inspection(seen: Inspection, sections: Sequence[Section], tensors: Section) -> str:
    """The page of an inspection: where the bytes are, the terminal's sections, and a table of tensors to search."""
    from dsctl.reports.charts import areas

    one = seen.description
    nbytes = sum(total.nbytes for total in seen.dtypes)
    cards: list[Card] = [("bytes", size(nbytes), plural(sum(total.number for total in seen.dtypes), "tensor"))]
    if one.model is not None:
        cards += [
            ("architecture", one.model, ", ".join(seen.alike)),
            ("values", count(one.values), plural(one.parameters, "parameter")),
            ("active per token", count(one.active_values), "values that a token is multiplied with"),
        ]
    by_role: dict[str, dict[str, float]] = {}
    for group in one.groups:
        inside = by_role.setdefault(group.family.group, {})
        name = group.family.template.rpartition("}.")[2].removesuffix(".weight")
        inside[name] = inside.get(name, 0) + group.nbytes
    charts = [
        areas("Bytes by role and projection", by_role, size),
        areas("Bytes by layer", {"layers": _layers(seen)}, size),
        areas("Bytes by dtype", {total.name: {total.name: total.nbytes} for total in seen.dtypes}, size),
    ]
    return page(
        "inspect", one.name, list(map(printable, sections)), cards=cards, charts=charts, tensors=printable(tensors)
    )


def _layers(seen: Inspection) -> dict[str, float]:
    found: dict[str, float] = {}
    for group in seen.description.groups:
        for layer in group.layers:
            name = f"layer {layer}"
            found[name] = found.get(name, 0) + group.nbytes / len(group.layers)
        if not group.layers:
            found["outside of layers"] = found.get("outside of layers", 0) + group.nbytes
    return found
