"""The page of a diff: what was added, how big it is, what it costs and saves; then both architectures side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from dsctl.checkpoint.groups import Group
from dsctl.look.costs import kept
from dsctl.look.diff import Diff
from dsctl.look.diff_facts import BLOCKS
from dsctl.look.meanings import meanings
from dsctl.look.templates import Template
from dsctl.look.totals import contexts
from dsctl.show.differences import sections, titles
from dsctl.show.drawing import page
from dsctl.show.drawing.charts import Chart, curves
from dsctl.show.drawing.diagram import diagrams
from dsctl.show.output import count, plural, size
from dsctl.show.pages.cards import Card, change
from dsctl.show.sections import printable
from dsctl.show.totals import flop

SHORTEST = 1024
NAMED = 3
# What has a name of its own.
ROLES = {
    "indexer": "a lightning indexer", "mtp": "a projection", "compressor": "compressors",
    "hyper-connections": "hyper-connections", "vision": "a vision tower",
}  # fmt: skip
# And in a drafter of another kind.
DRAFTING = {"mtp": "a block drafter's own parts"}


def difference(diff: Diff, only: str | None, tensors: bool) -> str:
    """The whole page; `only` and `tensors` choose among the terminal's sections, as there."""
    names = titles(diff)
    drawn = only is None and diff.a.model is not None and diff.b.model is not None
    # What it means stands above, with its sources.
    shown = [section for section in sections(diff, only, tensors) if section.title not in ("", "What it means")]
    sides = list(zip(names, diagrams(diff), strict=True)) if drawn else []
    return page(
        "diff",
        f"Diff of {names[0]} and {names[1]}",
        list(map(printable, shown)),
        names=names,
        origin=diff.origin,
        lead=_lead(diff, names),
        cards=list(_cards(diff)),
        meanings=meanings(diff) if only is None else (),
        charts=list(_charts(diff, names)) if only in (None, "totals") else [],
        sides=sides,
        renamed=diff.renamed,
        kinds={box.kind for _, sheet in sides for box in sheet.boxes},
    )


def _lead(diff: Diff, names: tuple[str, str]) -> str:
    """What happened, in a sentence or two, from the differences alone."""
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
        cache = change(_cached(diff)[0], _cached(diff)[1])
        told = "the same cache" if cache == "same" else f"cache per token: {cache}"
        said.append(f"At {context:,} tokens of context, attention arithmetic per token while decoding: {work}; {told}.")
    if any(side.derived for side in (diff.a, diff.b)) and not diff.renamed:
        said.append(diff.headline)
    return " ".join(said)


def _roles(diff: Diff, templates: Iterable[Template]) -> list[tuple[str, str]]:
    """Roles by size, and the layers that they are in: a lightning indexer, 61 layers and MTP."""
    found: dict[str, list[Group]] = {}
    blocks = any(side.traits.drafter == BLOCKS for side in (diff.a, diff.b))
    names = ROLES | (DRAFTING if blocks else {})
    for template in templates:
        for group in template.groups:
            found.setdefault(names.get(template.role, f"{template.role} parameters"), []).append(group)
    largest = sorted(found.items(), key=lambda one: -sum(group.values for group in one[1]))
    return [(role, _where(groups, "drafter" if blocks else "MTP")) for role, groups in largest]


def _listed(told: Sequence[str]) -> str:
    more = len(told) - NAMED
    return ", ".join(told[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _where(groups: Sequence[Group], drafting: str) -> str:
    main, predicting = ({n for one in groups if one.family.mtp is mtp for n in one.layers} for mtp in (False, True))
    told = [plural(len(main), "layer")] * bool(main) + [drafting] * bool(predicting)
    return " and ".join(told)


def _sizes(templates: Iterable[Template], whole: int) -> str:
    templates = list(templates)
    values, nbytes = sum(one.values for one in templates), sum(one.nbytes for one in templates)
    share = f" ({100 * nbytes / whole:.2f} % of the bytes before)" if whole else ""
    return (
        f"{count(values)} values in {plural(sum(one.count for one in templates), 'parameter')}, {size(nbytes)}{share}"
    )


def _cards(diff: Diff) -> Iterator[Card]:
    for kind, templates in (("added", diff.added), ("removed", diff.removed)):
        if templates and not diff.renamed:
            roles = _roles(diff, templates)
            where = f"in {roles[0][1]}: " if len(roles) == 1 and roles[0][1] else ""
            yield Card(kind, _listed([role for role, _ in roles]), where + _sizes(templates, diff.a.nbytes), kind)
    if diff.changed:
        yield Card("changed", plural(len(diff.changed), "kind") + " of parameters", _changed(diff), "changed")
    yield from _attention(diff)
    yield _number("cache per token", *_cached(diff), size)
    yield _number("active values per token", diff.a.active_values, diff.b.active_values, count)
    yield _number("stored bytes", diff.a.nbytes, diff.b.nbytes, size)


def _changed(diff: Diff) -> str:
    """In what parameters on both sides differ, the commonest first; how they are stored from what to what."""
    found: Counter[str] = Counter()
    for one in diff.changed:
        found.update(f"{one.before.stored} → {one.after.stored}" if a == "stored" else a for a in one.aspects)
    return _listed([f"{what} ({number})" for what, number in found.most_common()])


def _attention(diff: Diff) -> Iterator[Card]:
    context, held, (before, after) = _context(diff), diff.cache_format, diff.attention
    if not before or not after:
        return
    yield _number(
        f"attention arithmetic while decoding at {context:,} tokens",
        before.work(context), after.work(context), flop,
    )  # fmt: skip
    read = [one.read_bytes(context, held) for one in (before, after)]
    yield _number(f"cache read while decoding at {context:,} tokens", read[0], read[1], size)


def _context(diff: Diff) -> int:
    """The one context that cards and sentences speak of: the longest of the terminal's table."""
    return contexts(diff.a, diff.b)[-1]


def _cached(diff: Diff) -> tuple[float, float]:
    a, b = (one.cache_bytes(diff.cache_format) + one.index_bytes() if one else 0 for one in diff.attention)
    return a, b


def _number(what: str, before: float, after: float, words: Callable[[float], str]) -> Card:
    """A number of both sides: less of it saves, more of it costs."""
    if not before or not after:
        return Card(what, words(after) if after else "not known", f"before: {words(before) if before else 'not known'}")
    if before == after:
        return Card(what, words(after), "as before")
    kind, sign = ("costs", "+") if after > before else ("saves", "\N{MINUS SIGN}")
    detail = f"{words(before)} → {words(after)}: {sign}{words(abs(after - before))}"
    return Card(f"{kind}: {what}", change(before, after), detail, kind)


def _charts(diff: Diff, names: tuple[str, str]) -> Iterator[Chart]:
    before, after = diff.attention
    if before is None or after is None:
        return
    powers, told, form = _contexts(diff), _context(diff), diff.cache_format
    places = [(context, f"{context // 1024:,}K") for context in powers]
    sides = dict(zip(names, (before, after), strict=True))
    work = {name: [side.work(context) for context in powers] for name, side in sides.items()}
    read = {name: [side.read_bytes(context, form) for context in powers] for name, side in sides.items()}
    held = {name: [kept(side, context, form).nbytes for context in powers] for name, side in sides.items()}
    axis, at = "tokens of context", powers.index(told) if told in powers else len(powers) - 1
    yield curves("Attention's arithmetic for one more token, while decoding", places, work, flop, axis, at)
    yield curves("Cache read for one more token, while decoding", places, read, size, axis, at)
    yield curves("Cache held", places, held, size, axis, at)


def _contexts(diff: Diff) -> list[int]:
    """Powers of two up to the longest context that either can hold."""
    told = [side.config.get("max_position_embeddings") for side in (diff.a, diff.b)]
    longest = max([n for n in told if type(n) is int], default=0)
    longest = min(max(longest, SHORTEST * 8), 1 << 24)
    powers = [SHORTEST << step for step in range(15) if SHORTEST << step < longest]
    return [*powers, longest]
