"""The page of a diff: what was added, how big it is, what it costs and saves; then both architectures side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from dsctl.checkpoint.groups import Group
from dsctl.look.diff import Diff
from dsctl.look.meanings import meanings
from dsctl.look.templates import Template
from dsctl.look.totals import CONTEXTS
from dsctl.show.differences import sections, titles
from dsctl.show.drawing import page
from dsctl.show.drawing.charts import Chart, curves
from dsctl.show.drawing.diagram import diagrams
from dsctl.show.output import count, plural, size
from dsctl.show.pages.cards import Card, change
from dsctl.show.sections import printable
from dsctl.show.totals import flop

SHORTEST = 1024
# The one context that cards, sentences and the terminal's table speak of.
CONTEXT = CONTEXTS[-1]
NAMED = 3
# What has a name of its own.
ROLES = {"indexer": "a lightning indexer", "mtp": "a projection"}


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
        kinds={box.kind for _, sheet in sides for box in sheet.boxes},
    )


def _lead(diff: Diff, names: tuple[str, str]) -> str:
    """What happened, in a sentence or two, from the differences alone."""
    said: list[str] = []
    for verb, templates in (("adds", diff.added), ("drops", diff.removed)):
        if templates:
            roles = _listed([f"{role} in {where}" if where else role for role, where in _roles(templates)])
            said.append(f"{'It' if said else names[1]} {verb} {roles}: {_sizes(templates, diff.a.nbytes)}.")
    if not said:
        return diff.headline
    before, after = diff.attention
    if before and after and before.work(CONTEXT) != after.work(CONTEXT):
        work = change(before.work(CONTEXT), after.work(CONTEXT))
        cache = change(_cached(diff)[0], _cached(diff)[1])
        told = "the same cache" if cache == "same" else f"cache per token: {cache}"
        said.append(f"At {CONTEXT:,} tokens of context, attention arithmetic per token while decoding: {work}; {told}.")
    if any(side.derived for side in (diff.a, diff.b)):
        said.append(diff.headline)
    return " ".join(said)


def _roles(templates: Iterable[Template]) -> list[tuple[str, str]]:
    """Roles by size, and the layers that they are in: a lightning indexer, 61 layers and MTP."""
    found: dict[str, list[Group]] = {}
    for template in templates:
        for group in template.groups:
            found.setdefault(ROLES.get(template.role, f"{template.role} parameters"), []).append(group)
    largest = sorted(found.items(), key=lambda one: -sum(group.values for group in one[1]))
    return [(role, _where(groups)) for role, groups in largest]


def _listed(told: Sequence[str]) -> str:
    more = len(told) - NAMED
    return ", ".join(told[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _where(groups: Sequence[Group]) -> str:
    main, predicting = ({n for one in groups if one.family.mtp is mtp for n in one.layers} for mtp in (False, True))
    told = [plural(len(main), "layer")] * bool(main) + ["MTP"] * bool(predicting)
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
        if templates:
            roles = _roles(templates)
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
    before, after = diff.attention
    if not before or not after:
        return
    yield _number(
        f"attention arithmetic while decoding at {CONTEXT:,} tokens",
        before.work(CONTEXT), after.work(CONTEXT), flop,
    )  # fmt: skip
    yield _number(
        f"cache read while decoding at {CONTEXT:,} tokens", before.read_bytes(CONTEXT), after.read_bytes(CONTEXT), size
    )


def _cached(diff: Diff) -> tuple[int, int]:
    a, b = (one.cache_bytes() + one.index_bytes() if one else 0 for one in diff.attention)
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
    contexts = _contexts(diff)
    places = [(context, f"{context // 1024:,}K") for context in contexts]
    sides = dict(zip(names, (before, after), strict=True))
    work = {name: [side.work(context) for context in contexts] for name, side in sides.items()}
    read = {name: [side.read_bytes(context) for context in contexts] for name, side in sides.items()}
    held = {
        name: [(side.cache_bytes() + side.index_bytes()) * context for context in contexts]
        for name, side in sides.items()
    }
    axis, at = "tokens of context", contexts.index(CONTEXT) if CONTEXT in contexts else len(contexts) - 1
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
