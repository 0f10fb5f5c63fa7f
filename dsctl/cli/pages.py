"""What `--html` writes: the terminal's sections, with drawings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dsctl.cli.output import count, plural, size
from dsctl.cli.sections import Column, Row, Section, printable
from dsctl.reports import page

if TYPE_CHECKING:
    from markupsafe import Markup

    from dsctl.compare import Comparison, Sums
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
        yield (
            "changed",
            plural(len(diff.changed), "kind"),
            f"of parameters, in {', '.join('how they are stored' if one == 'stored' else one for one in aspects)}",
        )
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


# Decibels at which a colour begins; below the least one the error is as large as the value.
HEAT = (60.0, 45.0, 30.0, 20.0, 10.0, 0.0)


class Cell(NamedTuple):
    """Of a heat map: what stands in it, and how hot it is, 0 to 6."""

    text: str
    heat: int


def comparison(found: Comparison, names: tuple[str, str], worst: int) -> str:
    """The page of a comparison: error by layer and role, its histogram, the parameters furthest apart."""
    from dsctl.compare import histogram
    from dsctl.reports.charts import bars

    total = found.total
    cards: list[Card] = [
        ("signal to noise", _decibels(total), f"over {count(total.values)} values"),
        ("identical", f"{total.share:.2%}", plural(len(found.compared), "parameter")),
        ("largest error", f"{total.max_abs:.3g}", f"relative: {total.max_rel:.3g}"),
    ]
    missing = len(found.only_ours) + len(found.only_theirs) + len(found.reshaped)
    if missing:
        cards.append(("not compared", plural(missing, "parameter"), "on one side only, or of another shape"))
    shares = {f"2^{power}": number for power, number in histogram(total)}
    return page(
        "compare",
        " and ".join(names),
        [printable(section) for section in (_by_role(found), _furthest(found, worst))],
        cards=cards,
        charts=[bars("Values by relative error", shares, count)] if shares else [],
        roles=list(found.roles),
        heat=list(_heat(found)),
    )


def _heat(found: Comparison) -> Iterator[tuple[str, list[Cell]]]:
    """A row per layer, a cell per role: the sums over its parameters."""
    from dsctl.compare import Sums

    sums: dict[int | None, dict[str, Sums]] = {}
    for one in found.compared:
        sums.setdefault(one.layer, {}).setdefault(one.role, Sums()).add(one.sums)
    for layer in sorted(sums, key=lambda layer: -1 if layer is None else layer):
        name = "outside of layers" if layer is None else f"layer {layer}"
        yield name, [_cell(sums[layer].get(role)) for role in found.roles]


def _cell(sums: Sums | None) -> Cell:
    if sums is None:
        return Cell("", 0)
    snr = None if sums.same else sums.snr
    if snr is None:
        return Cell("same" if sums.same else "no number", 0 if sums.same else len(HEAT))
    return Cell(f"{snr:.1f}", sum(snr < edge for edge in HEAT))


def _decibels(sums: Sums) -> str:
    return "identical" if sums.same else "no number" if sums.snr is None else f"{sums.snr:.1f} dB"


def _by_role(found: Comparison) -> Section:
    columns = (
        Column("role"),
        Column("parameters", True),
        Column("SNR", True),
        Column("identical", True),
        Column("largest error", True),
    )
    rows = [
        Row((role, f"{number:,}", _decibels(sums), f"{sums.share:.2%}", f"{sums.max_abs:.3g}"))
        for role, (number, sums) in found.roles.items()
    ]
    return Section("By role", "", columns, tuple(rows))


def _furthest(found: Comparison, worst: int) -> Section:
    columns = (Column("SNR", True), Column("largest error", True), Column("stored as"), Column("parameter"))
    rows = [
        Row((_decibels(one.sums), f"{one.sums.max_abs:.3g}", " and ".join(dict.fromkeys(one.formats)), one.name))
        for one in found.worst(worst)
    ]
    return Section("Furthest apart", "" if rows else "none: all are identical", columns, tuple(rows))


def capacity(facts: dict[str, Any], sections: Sequence[Section]) -> str:
    """The page of a plan: bytes per rank and format, and the terminal's sections."""
    from dsctl.reports.charts import groups

    ranks = {name: {_spread(rank): rank["bytes"] for rank in one["ranks"]} for name, one in facts["formats"].items()}
    cards: list[Card] = [
        (f"on disk, {name}", size(one["disk_bytes"]), f"{count(facts['values'])} values")
        for name, one in facts["formats"].items()
    ]
    chart = groups("Bytes of the fullest rank: weights and cache", ranks, size)
    return page("plan", facts["source"], list(map(printable, sections)), cards=cards, charts=[chart])


def _spread(rank: dict[str, Any]) -> str:
    return " ".join(f"{name.upper()} {rank[name]}" for name in ("tp", "ep", "pp") if rank[name] > 1) or "1 rank"
