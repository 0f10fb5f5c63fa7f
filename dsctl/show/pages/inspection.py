"""The page of an inspection: the distribution of bytes, the terminal's sections, and a searchable table of tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from dsctl.checkpoint.groups import NUMBERS, Group
from dsctl.core.params import OTHER, ROLES, in_order
from dsctl.core.visible import visible
from dsctl.look.description import Description
from dsctl.look.diff import Diff
from dsctl.look.diff_facts import BLOCKS
from dsctl.look.halves import passed_layers, prompt_values
from dsctl.look.inspection import Fold, Inspection, fold
from dsctl.look.wording import ranges
from dsctl.show.drawing import page
from dsctl.show.drawing.architecture import last_name
from dsctl.show.drawing.charts import COLOURS, Chart
from dsctl.show.drawing.diagram import diagrams
from dsctl.show.drawing.lengths import Rule, share, shares, stacked
from dsctl.show.output import count, plural, size
from dsctl.show.pages.cards import Card
from dsctl.show.sections import Section, printable

# Other names of a dtype in a search.
DTYPES = {
    "F8_E4M3": "fp8 float8", "F8_E5M2": "fp8 float8", "F8_E8M0": "ue8m0 e8m0", "BF16": "bfloat16",
    "F16": "fp16 float16 half", "F32": "fp32 float32", "F64": "fp64 float64", "I8": "int8", "U8": "uint8",
    "I32": "int32", "I64": "int64",
}  # fmt: skip

# Steps outside of layers. Layers are step 2 and, in a drafter, step 3.
HEAD = "head"
OUTSIDE = {"vision": (0, "vision"), "embedding": (1, "embedding"), HEAD: (4, "last norm and head"), OTHER: (5, "other")}


class TensorRow(NamedTuple):
    """Tensors that differ only in layer or expert number. The search reads `pattern`, in which # marks a number, and
    `numbers`, the ranges of each."""

    dtype: str
    words: str
    shape: str
    number: str
    nbytes: str
    name: str
    pattern: str
    numbers: str


def inspection(seen: Inspection, sections: Sequence[Section]) -> str:
    """The whole page."""
    one = seen.description
    nbytes = sum(total.nbytes for total in seen.dtypes)
    cards = [Card("bytes", size(nbytes), plural(sum(total.number for total in seen.dtypes), "tensor"))]
    if one.model is not None:
        cards += [
            Card("architecture", one.model, _alike(seen)),
            Card("values", count(one.values), plural(one.parameters, "parameter")),
            Card("active per token", count(one.active_values), _multiplied(one)),
        ]
    return page(
        "inspect",
        f"Contents of {visible(one.name)}",
        list(map(printable, sections)),
        origin=visible(one.origin.sentence),
        cards=cards,
        charts=list(_charts(seen)),
        # Compared with itself, a model has no marks.
        sheet=diagrams(Diff(one, one))[0] if one.model is not None else None,
        name=visible(one.name),
        tensors=list(map(_listed, fold(seen.tensors()))),
    )


def _multiplied(one: Description) -> str:
    """The meaning of active values, and their number for a token of a prompt if it is smaller."""
    prompt, passed = prompt_values(one), passed_layers(one)
    half = f"; {count(prompt)} in a prompt, which passes only the first {passed} layers" if prompt else ""
    return f"values that each token is multiplied by{half}"


def _alike(seen: Inspection) -> str:
    derived = f" (configs derived, not read: {', '.join(seen.alike_derived)})" if seen.alike_derived else ""
    return f"parameters as in {', '.join(seen.alike)}{derived}" if seen.alike else ""


def _charts(seen: Inspection) -> Iterator[Chart]:
    groups = seen.description.groups
    colours = dict(zip(in_order([*ROLES, OTHER]), itertools.cycle(COLOURS), strict=False))
    colours |= {group.family.role: colours[OTHER] for group in groups if group.family.role not in colours}
    yield _roles(groups, colours)
    sizes = experts(groups)
    if any(group.layers for group in groups):
        yield _layers(seen, colours, sizes)
    if len(set(sizes.values())) > 1:
        yield _uneven(sizes)
    dtypes = {total.name: float(total.nbytes) for total in seen.dtypes}
    shown = dict(zip(dtypes, itertools.cycle(COLOURS), strict=False))
    yield Chart(
        "Bytes by dtype",
        f"Of {size(sum(dtypes.values()))}, largest first. The axis is linear.",
        None,
        bars=shares(dtypes, size, shown),
    )


def _roles(groups: Sequence[Group], colours: Mapping[str, str]) -> Chart:
    """A bar for each role, however small; the table also has the projections of each role."""
    found: dict[str, dict[str, float]] = {}
    for group in groups:
        _add(found.setdefault(group.family.group, {}), visible(last_name(group.family.template)), group.nbytes)
    totals = {role: sum(parts.values()) for role, parts in found.items()}
    whole, ordered = sum(totals.values()), sorted(found, key=lambda role: -totals[role])
    rows = tuple(
        (role, part, size(nbytes), share(nbytes, whole or 1))
        for role in ordered
        for part, nbytes in sorted(found[role].items(), key=lambda one: -one[1])
    )
    told = f"Of {size(whole)}, largest first. The axis is linear; each bar is at least 3 pixels long."
    return Chart(
        "Bytes by role", told, None, ("role", "part", "size", "share"), rows, bars=shares(totals, size, colours)
    )


class Place(NamedTuple):
    """The position of parameters in the data flow: `step` orders the embedding, layers and the head, `number`
    layers."""

    step: int
    number: int
    name: str


def _place(group: Group, layer: int | None, drafter: str) -> Place:
    """The position of a group's part in one layer; `drafter` is the noun for a layer of a drafter."""
    family = group.family
    if layer is None:
        step, name = OUTSIDE.get(family.role, OUTSIDE[HEAD])
        return Place(step, 0, name)
    if family.mtp:
        return Place(3, layer, f"{drafter} {layer - family.first_layer}")
    return Place(2, layer, f"layer {layer}")


def _layers(seen: Inspection, colours: Mapping[str, str], sizes: Mapping[str, float]) -> Chart:
    """Bytes from the embedding through the layers in order to the head, by role."""
    groups = seen.description.groups
    drafter = "drafter" if seen.description.traits.drafter == BLOCKS else "MTP"
    drafter += " stage" if any(group.family.first_layer for group in groups) else " layer"
    found: dict[Place, dict[str, float]] = {}
    for group in groups:
        for layer in group.layers or (None,):
            place = _place(group, layer, drafter)
            _add(found.setdefault(place, {}), group.family.role, group.nbytes / max(len(group.layers), 1))
    places = sorted(found)
    present = {role for parts in found.values() for role in parts}
    roles = [role for role in in_order(present) if role in present]
    series = {place.name: {role: found[place].get(role, 0) for role in roles} for place in places}
    axis = max(sum(parts.values()) for parts in series.values()) or 1
    ticks = _ticks({n: place.number for n, place in enumerate(places) if place.step == 2}, len(places))
    ends = [", ".join(place.name for place in places if wanted(place.step)) for wanted in ((2).__gt__, (2).__lt__)]
    told = f"From the embedding to the head. The axis is linear, from 0 to {size(axis)}."
    if len(set(sizes.values())) == 1:
        told += f" The {len(sizes):,} routed experts have the same size, {size(next(iter(sizes.values())))} each"
        told += ", in all layers together."
    return Chart(
        "Bytes by layer", told, None, ("where", "size of each", "share of each"), tuple(_runs(places, series)),
        {role: colours[role] for role in roles}, upright=stacked(series, size, colours, axis), ticks=ticks,
        ends=(ends[0], ends[1]),
    )  # fmt: skip


def _runs(places: Sequence[Place], series: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, ...]]:
    """Join consecutive layers of the same size into one row."""
    whole = sum(sum(parts.values()) for parts in series.values()) or 1
    totals = [(place, sum(series[place.name].values())) for place in places]
    for (step, nbytes), members in itertools.groupby(totals, key=lambda one: (one[0].step, one[1])):
        run = [place for place, _ in members]
        name = f"layers {run[0].number}-{run[-1].number}" if step == 2 and len(run) > 1 else run[0].name
        yield name, size(nbytes), share(nbytes, whole)


def _ticks(numbers: Mapping[int, int], many: int) -> tuple[Rule, ...]:
    """Some of these numbers, depending on the number of bars, `many`: every one, second, fifth or tenth."""
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if len(numbers) <= 8 * step)
    found = {place: number for place, number in numbers.items() if number % every == 0}
    return tuple(Rule(str(number), round(100 * (place + 0.5) / many, 3)) for place, number in found.items())


def _uneven(sizes: Mapping[str, float]) -> Chart:
    """Bytes of each routed expert. Drawn only if they differ."""
    axis, colour = max(sizes.values()) or 1, {"routed expert": COLOURS[0]}
    series = {f"expert {name}": {"routed expert": nbytes} for name, nbytes in sizes.items()}
    ticks = _ticks({n: int(name) for n, name in enumerate(sizes)}, len(sizes))
    told = f"All layers together, from {size(min(sizes.values()))} to {size(axis)}. The axis is linear, from 0."
    rows = tuple((name, size(nbytes)) for name, nbytes in sizes.items())
    upright = stacked(series, size, colour, axis)
    return Chart("Bytes by routed expert", told, None, ("expert", "size"), rows, upright=upright, ticks=ticks)


def _add(found: dict[str, float], name: str, nbytes: float) -> None:
    found[name] = found.get(name, 0) + nbytes


def experts(groups: Sequence[Group]) -> dict[str, float]:
    """Bytes of each routed expert, all layers together."""
    found: dict[str, float] = {}
    for group in groups:
        if not group.family.experts:
            continue
        each = group.nbytes / group.count
        if not group.some:
            for expert in range(group.family.experts):
                _add(found, str(expert), each * group.count / group.family.experts)
            continue
        some = set(group.some)
        for param in group.family.params():
            if param.name in some:
                _add(found, str(param.expert), each)
    return dict(sorted(found.items(), key=lambda one: int(one[0])))


def _listed(folded: Fold) -> TensorRow:
    spec = folded.spec
    numbers = iter(folded.ranges)
    parts = [next(numbers, ()) if part in NUMBERS else part for part in folded.template.split(".")]
    said = [part if isinstance(part, str) else _said(part) for part in parts]
    return TensorRow(
        spec.dtype,
        DTYPES.get(spec.dtype, ""),
        " x ".join(map(str, spec.shape)) or "scalar",
        f"{folded.number:,}",
        size(folded.nbytes),
        visible(".".join(said)),
        visible(".".join("#" if not isinstance(part, str) else part for part in parts)),
        "|".join(ranges(part) for part in folded.ranges),
    )


def _said(numbers: tuple[int, ...]) -> str:
    return f"{{{ranges(numbers)}}}" if len(numbers) > 1 else str(numbers[0]) if numbers else "{}"
