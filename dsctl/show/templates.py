"""The parameters of a diff as sections: templates by module with their layers, and the changes in each. The largest
changes come first."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dsctl.checkpoint.groups import folded
from dsctl.core.params import OTHER
from dsctl.look.diff import Diff
from dsctl.look.templates import ASPECTS, Template, TemplateChange
from dsctl.look.wording import ranges, short
from dsctl.show.output import count, plural, size
from dsctl.show.sections import Column, Row, Section

VALUE_WIDTH = 44


def parameters(diff: Diff) -> Iterator[Section]:
    """Templates that were added, removed or changed."""
    if diff.same_storage:
        many = f"{plural(len(diff.templates[0]), 'template')}, {plural(diff.a.parameters, 'parameter')}"
        parts = " present on both sides, whole or in part; the missing ones differ" if diff.verdict == "parts" else ""
        yield Section("Parameters", f"no difference in {many}{parts}")
        return
    if diff.added or diff.removed:
        columns = (
            Column("template"), Column("shape"), Column("stored as"), Column("count", True), Column("values", True, 1),
            Column("bytes", True), Column("role", rank=2), Column("scales", rank=3), Column("cut by TP", rank=4),
        )  # fmt: skip
        rows = (*_templates(diff.removed, "removed"), *_templates(diff.added, "added"))
        yield Section("Parameters", _sides(diff), columns, rows)
    if diff.changed:
        rest = (
            Column("aspect"), Column("before → after"), Column("parameters", True, 1), Column("bytes", True, 2),
            Column("templates"),
        )  # fmt: skip
        title = "Different storage format" if diff.same_parameters else "Parameters on both sides"
        many = f"{plural(len(diff.changed), 'template')} of {len(diff.templates[0]) - len(diff.removed)} changed"
        yield Section(title, many, rest, tuple(_changes(diff.changed)))


def _sides(diff: Diff) -> str:
    found = (("added", diff.added), ("removed", diff.removed))
    return "; ".join(
        f"{plural(len(side), 'template')} {word}, {plural(sum(t.count for t in side), 'parameter')}"
        for word, side in found
        if side
    )


def _templates(found: Iterable[Template], kind: str) -> Iterator[Row]:
    """One row per template under its module and layers; modules, and templates in each, by bytes."""
    modules: dict[str, list[tuple[str, Template]]] = {}
    for name, template in _joined(found):
        module, rest = _module(name)
        modules.setdefault(module, []).append((rest, template))
    for module, held in sorted(modules.items(), key=lambda one: -_nbytes(template for _, template in one[1])):
        yield Row((module,))
        for rest, template in sorted(held, key=lambda one: -one[1].nbytes):
            yield Row((rest, *_described(template)), kind)


def _joined(found: Iterable[Template]) -> Iterator[tuple[str, Template]]:
    """Templates by their names with numbers. Those of vision's blocks, each of which has its own, are joined."""
    blocks: dict[tuple[str, tuple[int, ...]], list[tuple[tuple[int, ...], Template]]] = {}
    for template in found:
        name, numbers = folded(template.name) if template.role == "vision" else (template.name, ())
        if numbers:
            blocks.setdefault((name, template.shape), []).append((numbers, template))
        else:
            yield _numbered(template), template
    for (name, _), held in blocks.items():
        layers = f"{{{ranges(number[0] for number, _ in held)}}}"
        yield name.format(layer=layers), Template(name, tuple(group for _, one in held for group in one.groups))


def _nbytes(found: Iterable[Template]) -> int:
    return sum(template.nbytes for template in found)


def _numbered(template: Template) -> str:
    """Its name with the numbers of its layers and experts: model.layers.{3-61}.mlp.experts.{0-255}.up_proj.weight."""
    if template.role == OTHER:
        return template.name
    experts = f"{{0-{template.experts - 1}}}"
    return template.name.format(layer=f"{{{ranges(template.layers)}}}", expert=experts)


def _module(template: str) -> tuple[str, str]:
    """A name before and after its last module: the part that rows can share, and the rest."""
    parts = template.split(".")
    cut = max(len(parts) - (2 if parts[-1] in ("weight", "bias") else 1), 0)
    return ".".join(parts[:cut]) + "." * bool(cut), ".".join(parts[cut:])


def _described(template: Template) -> tuple[str, ...]:
    _, *scales = template.groups[0].specs.values()
    return (
        str(list(template.shape)),
        template.stored,
        f"{template.count:,}",
        count(template.values),
        size(template.nbytes),
        template.role,
        ", ".join(f"{spec.dtype} {list(spec.shape)}" for spec in scales),
        {None: "no", 0: "rows", 1: "columns"}.get(template.split, str(template.split)),
    )


def _changes(changed: Iterable[TemplateChange]) -> Iterator[Row]:
    """One row per difference with all templates that share it, aspect by aspect, in each by bytes."""
    found: dict[tuple[str, str], list[Template]] = {}
    for change in changed:
        for aspect in change.aspects:
            sides = " → ".join(_aspect(side, aspect) for side in (change.before, change.after))
            found.setdefault((aspect, sides), []).append(change.after)
    for (aspect, sides), held in sorted(found.items(), key=lambda one: (ASPECTS.index(one[0][0]), -_nbytes(one[1]))):
        yield Row((aspect, sides, f"{sum(t.count for t in held):,}", size(_nbytes(held)), _named(held)), "changed")


def _aspect(template: Template, aspect: str) -> str:
    value = getattr(template, aspect)
    if aspect == "layers":
        return shortened(ranges(value)) or "none"
    return str(list(value)) if aspect == "shape" else str(value)


def _named(templates: list[Template], limit: int = 3) -> str:
    """Templates in a few words: a few by name, more by their number per role."""
    if len(templates) <= limit:
        return ", ".join(short(t.name) for t in templates)
    roles = [template.role for template in templates]
    return ", ".join(f"{role} ({roles.count(role)})" for role in dict.fromkeys(roles))


def shortened(text: str) -> str:
    """A text, cut if it is long."""
    return text if len(text) <= VALUE_WIDTH else text[: VALUE_WIDTH - 1] + "…"
