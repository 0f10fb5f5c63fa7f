"""The page of an inspection: where the bytes are, the terminal's sections, and a table of tensors to search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dsctl.checkpoint.groups import NUMBERS, Group
from dsctl.core.visible import visible
from dsctl.look.diff import Diff
from dsctl.look.inspection import Fold, Inspection, fold
from dsctl.look.wording import ranges
from dsctl.show.drawing import page
from dsctl.show.drawing.architecture import last_name
from dsctl.show.drawing.charts import Chart, areas
from dsctl.show.drawing.diagram import diagrams
from dsctl.show.output import count, plural, size
from dsctl.show.pages.cards import Card
from dsctl.show.sections import Section, printable

# What else a search may call a dtype.
DTYPES = {
    "F8_E4M3": "fp8 float8", "F8_E5M2": "fp8 float8", "F8_E8M0": "ue8m0 e8m0", "BF16": "bfloat16",
    "F16": "fp16 float16 half", "F32": "fp32 float32", "F64": "fp64 float64", "I8": "int8", "U8": "uint8",
    "I32": "int32", "I64": "int64",
}  # fmt: skip


class TensorRow(NamedTuple):
    """Tensors alike but for their numbers: their template as names and ranges by turns, which the search goes by."""

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
            Card("active per token", count(one.active_values), "values that a token is multiplied with"),
        ]
    return page(
        "inspect",
        f"Contents of {visible(one.name)}",
        list(map(printable, sections)),
        origin=visible(one.origin.sentence),
        cards=cards,
        charts=list(_charts(seen)),
        # Beside itself nothing is marked.
        sheet=diagrams(Diff(one, one))[0] if one.model is not None else None,
        name=visible(one.name),
        tensors=list(map(_listed, fold(seen.tensors()))),
    )


def _alike(seen: Inspection) -> str:
    derived = f" (configs derived, not read: {', '.join(seen.alike_derived)})" if seen.alike_derived else ""
    return f"parameters as in {', '.join(seen.alike)}{derived}" if seen.alike else ""


def _charts(seen: Inspection) -> Iterator[Chart]:
    groups = seen.description.groups
    by_role: dict[str, dict[str, float]] = {}
    for group in groups:
        _add(by_role.setdefault(group.family.group, {}), visible(last_name(group.family.template)), group.nbytes)
    yield areas("Bytes by role and projection", by_role, size)
    yield areas("Bytes by layer", _layers(groups), size, _evenly("layer", _layers(groups)))
    experts = _experts(groups)
    if experts:
        yield areas("Bytes by routed expert", {"routed experts": experts}, size, _evenly("expert", {"": experts}))
    dtypes: dict[str, dict[str, float]] = {total.name: {total.name: total.nbytes} for total in seen.dtypes}
    yield areas("Bytes by dtype", dtypes, size)


def _add(found: dict[str, float], name: str, nbytes: float) -> None:
    found[name] = found.get(name, 0) + nbytes


def _layers(groups: Sequence[Group]) -> dict[str, dict[str, float]]:
    """Bytes of each layer, those with routed experts apart from the others."""
    routed = {layer for group in groups if group.family.experts for layer in group.layers}
    found: dict[str, dict[str, float]] = {}
    for group in groups:
        for layer in group.layers:
            kind = "layers with experts" if layer in routed else "dense layers"
            first = group.family.first_layer
            kind, name = ("stages that draft", f"{layer - first}") if first else (kind, f"{layer}")
            _add(found.setdefault(kind, {}), name, group.nbytes / len(group.layers))
        if not group.layers:
            _add(found.setdefault("outside of layers", {}), visible(last_name(group.family.template)), group.nbytes)
    return {kind: dict(sorted(members.items(), key=lambda one: one[0].zfill(6))) for kind, members in found.items()}


def _experts(groups: Sequence[Group]) -> dict[str, float]:
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


def _evenly(what: str, parts: dict[str, dict[str, float]]) -> str:
    values = [value for members in parts.values() for name, value in members.items() if name.isdecimal()]
    if not values or min(values) != max(values):
        return f"A {what} has from {size(min(values))} to {size(max(values))}." if values else ""
    return f"Every {what} has {size(values[0])}."


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
