"""The page of a diff: the changes and their meaning, both architectures side by side, costs, and tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from dsctl.checkpoint.groups import Group
from dsctl.look.costs import Attention, kept
from dsctl.look.description import Description
from dsctl.look.diff import Diff
from dsctl.look.diff_facts import BLOCKS
from dsctl.look.meanings import meanings
from dsctl.look.templates import Template, TemplateChange
from dsctl.look.totals import contexts
from dsctl.show.differences import sections, titles
from dsctl.show.drawing import page
from dsctl.show.drawing.charts import Chart, curves
from dsctl.show.drawing.diagram import diagrams
from dsctl.show.drawing.lengths import Words
from dsctl.show.drawing.sheet import Sheet
from dsctl.show.output import count, plural, size
from dsctl.show.pages.cards import Card, change
from dsctl.show.sections import Section, printable
from dsctl.show.totals import flop

SHORTEST = 1024
NAMED = 3
# Sections about stored formats of parameters on both sides: alone, and among other changes.
STORAGE = ("Different storage format", "Parameters on both sides")
# Roles with their own phrases.
ROLES = {
    "engram tables": "Engram tables", "engram": "Engram projections",
    "indexer": "a lightning indexer", "mtp": "a projection", "compressor": "compressors",
    "hyper-connections": "hyper-connections", "vision": "a vision tower",
}  # fmt: skip
# The same for a block drafter.
DRAFTING = {"mtp": "a block drafter's own parts"}


def difference(diff: Diff, only: str | None, tensors: bool) -> str:
    """The whole page. `only` and `tensors` choose among the terminal's sections, as they do in the terminal. Without
    differences, the page is one sentence and a list of the compared parts."""
    names, whole = titles(diff), only is None
    shown, stored = _sections(diff, only, tensors)
    known = whole and diff.differs and diff.a.model is not None and diff.b.model is not None
    sides = _sides(diff, names) if known and not diff.same_parameters else []
    charts = list(_charts(diff, names)) if diff.differs and only in (None, "totals") else []
    return page(
        "diff",
        f"Diff of {names[0]} and {names[1]}",
        list(map(printable, shown)) if diff.differs_in(only) else [],
        stored=list(map(printable, stored)) if diff.differs_in(only) else [],
        names=names,
        source=diff.origin,
        # The tables contain it as well.
        compared="" if diff.differs_in(only) else _compared(diff),
        lead=_lead(diff, names),
        cards=list(_cards(diff)) if diff.differs else [],
        meanings=meanings(diff) if whole else (),
        charts=charts if any(chart.drawing for chart in charts) else [],
        sides=sides,
        same=diagrams(diff)[1] if known and not sides else None,
        renamed=diff.renamed,
        kinds={box.kind for _, sheet, _ in sides for box in sheet.boxes},
    )


def _sides(diff: Diff, names: tuple[str, str]) -> list[tuple[str, Sheet, Sheet]]:
    """Each side with its drawing to stand beside the other's, and with the one for a page of one column."""
    beside, alone = (diagrams(diff, storage=False, beside=beside) for beside in (True, False))
    return list(zip(names, beside, alone, strict=True))


def _compared(diff: Diff) -> str:
    return f"Compared: {', '.join(diff.compared)}. Not compared: {', '.join(diff.not_compared)}."


def _sections(diff: Diff, only: str | None, tensors: bool) -> tuple[list[Section], list[Section]]:
    """The terminal's sections, and separately those about stored formats, which a page shows on demand. The page has
    the origin, the headline, and the meanings with their sources above."""
    shown: list[Section] = []
    stored: list[Section] = []
    for section in sections(diff, only, tensors):
        if section.title == "Tensors":
            stored.append(section)
        elif section.title in STORAGE:
            apart = tuple(row for row in section.rows if row.cells[0] == "stored")
            rest = tuple(row for row in section.rows if row.cells[0] != "stored")
            if rest:
                shown.append(section._replace(rows=rest))
            if apart:
                stored.append(section._replace(title=STORAGE[0], summary="", rows=apart))
        elif section.title not in ("", "What it means") and (section.rows or section.summary != diff.headline):
            shown.append(section)
    return shown, stored


def _lead(diff: Diff, names: tuple[str, str]) -> str:
    """The changes in a sentence or two, from the differences alone."""
    said = [f"{diff.headline} No parameter has the same name on both sides."] if diff.renamed else []
    for verb, templates in (("adds", diff.added), ("drops", diff.removed)):
        if templates and not diff.renamed:
            roles = _listed([f"{role} in {where}" if where else role for role, where in _roles(diff, templates)])
            said.append(f"{'It' if said else names[1]} {verb} {roles}: {_sizes(templates, diff.a.nbytes)}.")
    if not said:
        return diff.headline
    context, (before, after) = _context(diff), diff.attention
    if before and after and before.work(context) != after.work(context):
        work = change(before.work(context), after.work(context))
        whole = change(_token(diff.a, before, context), _token(diff.b, after, context))
        cache = change(*_cached(diff))
        held = "the cache per token stays the same" if cache == "same" else f"cache per token: {cache}"
        said.append(
            f"A new token after {context:,} tokens: attention arithmetic {work}, all arithmetic {whole}; {held}."
        )
    if any(side.derived for side in (diff.a, diff.b)) and not diff.renamed:
        said.append(diff.headline)
    return " ".join(said)


def _roles(diff: Diff, templates: Iterable[Template]) -> list[tuple[str, str]]:
    """Roles by size, and their layers: a lightning indexer, 61 layers and MTP."""
    found: dict[str, list[Group]] = {}
    blocks = any(side.traits.drafter == BLOCKS for side in (diff.a, diff.b))
    names = ROLES | (DRAFTING if blocks else {})
    for template in templates:
        for group in template.groups:
            found.setdefault(names.get(template.role, f"{template.role} parameters"), []).append(group)
    largest = sorted(found.items(), key=lambda one: -sum(group.values for group in one[1]))
    return [(role, _where(groups, "the drafter" if blocks else "the MTP layer")) for role, groups in largest]


def _listed(told: Sequence[str]) -> str:
    more = len(told) - NAMED
    return ", ".join(told[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _where(groups: Sequence[Group], drafting: str) -> str:
    main, predicting = ({n for one in groups if one.family.mtp is mtp for n in one.layers} for mtp in (False, True))
    return " and ".join([plural(len(main), "layer")] * bool(main) + [drafting] * bool(predicting))


def _sizes(templates: Iterable[Template], whole: int) -> str:
    templates = list(templates)
    values, nbytes = sum(one.values for one in templates), sum(one.nbytes for one in templates)
    share = f" ({100 * nbytes / whole:.2f} % of the bytes before)" if whole else ""
    return (
        f"{count(values)} values in {plural(sum(one.count for one in templates), 'parameter')}, {size(nbytes)}{share}"
    )


def _cards(diff: Diff) -> Iterator[Card]:
    """Added and removed parts, costs with the largest change first, and stored formats."""
    for kind, templates in (("added", diff.added), ("removed", diff.removed)):
        if templates and not diff.renamed:
            roles = _roles(diff, templates)
            where = f"in {roles[0][1]}: " if len(roles) == 1 and roles[0][1] else ""
            yield Card(kind, _listed([role for role, _ in roles]), where + _sizes(templates, diff.a.nbytes), kind)
    structural = [one for one in diff.changed if one.structural]
    if structural:
        yield Card("changed", plural(len(structural), "kind") + " of parameters", _changed(structural), "changed")
    costs = sorted(_costs(diff), key=lambda cost: -_factor(cost[1], cost[2]))
    yield from (_number(*cost) for cost in costs if cost[1] != cost[2])
    stored = [one for one in diff.changed if one.before.stored != one.after.stored]
    if stored:
        forms = Counter(f"{one.before.stored} → {one.after.stored}" for one in stored)
        detail = _listed([f"{form} ({number})" for form, number in forms.most_common()])
        yield Card("different storage format", plural(len(stored), "kind") + " of parameters", detail, "changed")
    yield from (_number(*cost) for cost in costs if cost[1] == cost[2])


def _changed(changed: Iterable[TemplateChange]) -> str:
    """The aspects in which parameters of both sides differ, the most frequent first."""
    found = Counter(aspect for one in changed for aspect in one.aspects if aspect != "stored")
    return _listed([f"{aspect} ({number})" for aspect, number in found.most_common()])


def _costs(diff: Diff) -> Iterator[tuple[str, float, float, Words]]:
    """Names and numbers of both sides, each with the function that formats them."""
    context, held, (before, after) = _context(diff), diff.cache_formats, diff.attention
    if before and after:
        at = f"while decoding at {context:,} tokens"
        whole = _token(diff.a, before, context), _token(diff.b, after, context)
        yield f"attention arithmetic {at}", before.work(context), after.work(context), flop
        yield f"all arithmetic of a token {at}", *whole, flop
        yield f"cache read {at}", before.read_bytes(context, held[0]), after.read_bytes(context, held[1]), size
    yield "cache per token", *_cached(diff), size
    yield "active values per token", diff.a.active_values, diff.b.active_values, count
    yield "stored bytes", diff.a.nbytes, diff.b.nbytes, size


def _factor(before: float, after: float) -> float:
    """The logarithm of the factor between two values; infinite if only one side has a value."""
    if not before or not after:
        return math.inf if before != after else 0.0
    return abs(math.log(after / before))


def _token(side: Description, cost: Attention, context: int) -> int:
    """Operations for one token after `context` others: two for each active value, and attention's (docs/costs.md)."""
    return 2 * side.active_values + cost.work(context)


def _context(diff: Diff) -> int:
    """The context that cards and sentences refer to: the longest of the terminal's table."""
    return contexts(diff.a, diff.b)[-1]


def _cached(diff: Diff) -> tuple[float, float]:
    sides = zip(diff.attention, diff.cache_formats, strict=True)
    a, b = (one.cache_bytes(held) + one.index_bytes() if one else 0 for one, held in sides)
    return a, b


def _number(what: str, before: float, after: float, words: Callable[[float], str]) -> Card:
    """A number of both sides: a smaller one saves, a larger one costs."""
    if not before or not after:
        return Card(what, words(after) if after else "not known", f"before: {words(before) if before else 'not known'}")
    if before == after:
        return Card(what, words(after), "as before")
    kind, sign = ("costs", "+") if after > before else ("saves", "\N{MINUS SIGN}")
    detail = f"{words(before)} → {words(after)}: {sign}{words(abs(after - before))}"
    return Card(f"{kind}: {what}", change(before, after), detail, kind)


def _charts(diff: Diff, names: tuple[str, str]) -> Iterator[Chart]:
    """Costs over the context, the largest change first."""
    before, after = diff.attention
    if before is None or after is None:
        return
    powers, context = _contexts(diff), _context(diff)
    pairs = list(zip(names, (diff.a, diff.b), (before, after), diff.cache_formats, strict=True))
    costs: dict[str, tuple[Callable[[Description, Attention, str, int], float], Words]] = {
        "Attention arithmetic of one new token": (lambda _, cost, held, n: cost.work(n), flop),
        "All arithmetic of one new token": (lambda side, cost, held, n: _token(side, cost, n), flop),
        "Cache read by one new token": (lambda _, cost, held, n: cost.read_bytes(n, held), size),
        "Cache held": (lambda _, cost, held, n: kept(cost, n, held).nbytes, size),
    }
    at = powers.index(context) if context in powers else len(powers) - 1
    found = []
    for title, (of, words) in costs.items():
        series = {name: [of(side, cost, held, n) for n in powers] for name, side, cost, held in pairs}
        change = _factor(*(values[at] for values in series.values()))
        found.append((change, curves(title, powers, series, words, "tokens of context", at)))
    yield from (chart for _, chart in sorted(found, key=lambda one: -one[0]))


def _contexts(diff: Diff) -> list[int]:
    """Powers of two up to the longest context that either side allows."""
    told = [side.config.get("max_position_embeddings") for side in (diff.a, diff.b)]
    longest = max([n for n in told if type(n) is int], default=0)
    longest = min(max(longest, SHORTEST * 8), 1 << 24)
    powers = [SHORTEST << step for step in range(15) if SHORTEST << step < longest]
    return [*powers, longest]
