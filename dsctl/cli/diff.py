"""`dsctl diff`: what changed between two checkpoints, from releases' descriptions and folders' headers."""

from __future__ import annotations

import json as json_
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsctl.cli.options import Debug, Json, Quiet
from dsctl.cli.output import Output, count, plural, size
from dsctl.errors import UsageError

if TYPE_CHECKING:
    from dsctl.cli.sections import Row, Section
    from dsctl.description import Description
    from dsctl.diff import Diff, FieldChange, Template, TemplateChange, Total

PARTS = ("config", "tensors", "totals")
NAME_WIDTH = 30
VALUE_WIDTH = 44

Before = Annotated[str, typer.Argument(metavar="A", help="A checkpoint folder or a release, such as v3.")]
After = Annotated[str, typer.Argument(metavar="B", help="The other one.")]
OnlyPart = Annotated[str | None, typer.Option("--only", metavar="PART", help="config, tensors or totals alone.")]
Tensors = Annotated[bool, typer.Option("--tensors", help="Every stored tensor that differs, by name.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]
ExitCode = Annotated[bool, typer.Option("--exit-code", help="End with 1 where the two differ.")]


def diff(
    a: Before,
    b: After,
    only: OnlyPart = None,
    tensors: Tensors = False,
    markdown: Markdown = False,
    exit_code: ExitCode = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show what changed between two checkpoints: config, parameters, storage, totals, and what it means.

    Works offline from descriptions and headers; weights are not read, so numbers are not compared.

    Examples:

        dsctl diff v3 v3.2

        dsctl diff v3.1 v3.2 --only config --markdown

        dsctl diff DeepSeek-V3.2 v3.2 --exit-code
    """
    from dsctl.cli.sections import show
    from dsctl.description import describe
    from dsctl.diff import Diff

    if only is not None and only not in PARTS:
        raise UsageError(f"--only: {only!r} is unknown", hint=", ".join(PARTS))
    output, found = Output(json, quiet), Diff(describe(a), describe(b))
    output.data(as_json(found, only, tensors))
    if not json and not quiet:
        show(list(sections(found, only, tensors)), output, markdown)
    if exit_code and found.differs:
        raise typer.Exit(1)


def sections(diff: Diff, only: str | None, tensors: bool) -> Iterator[Section]:
    """The report's parts, in order; with `only`, that part alone."""
    if only is None:
        yield _identity(diff)
    if only in (None, "config"):
        yield _config(diff)
    if only in (None, "tensors"):
        yield from _parameters(diff)
        if tensors:
            yield _tensors(diff)
    if only in (None, "totals"):
        yield from _totals(diff)
    if only is None:
        yield from _meanings(diff)


def _short(description: Description) -> str:
    name = description.name if description.release else description.name.rstrip("/").rpartition("/")[2]
    return _cropped(name)


def _cropped(name: str) -> str:
    """A name or path that may be long: its end says most."""
    return name if len(name) <= NAME_WIDTH else "…" + name[-NAME_WIDTH + 1 :]


def titles(diff: Diff) -> tuple[str, str]:
    """What columns call the two sides."""
    a, b = _short(diff.a), _short(diff.b)
    return (a, b) if a != b else (f"{a} (A)", f"{b} (B)")


def _identity(diff: Diff) -> Section:
    from dsctl.cli.sections import Column, Row, Section
    from dsctl.diff import VERDICTS

    a, b = titles(diff)
    sides = [dict(_facts(side)) for side in (diff.a, diff.b)]
    names = dict.fromkeys([*sides[0], *sides[1]])
    rows = tuple(Row((name, sides[0].get(name, ""), sides[1].get(name, ""))) for name in names)
    notes = tuple(note for side, title in ((diff.a, a), (diff.b, b)) for note in _notes(side, title))
    return Section(f"{a} → {b}", VERDICTS[diff.verdict], (Column(), Column(a), Column(b)), rows, notes)


def _facts(side: Description) -> Iterator[tuple[str, str]]:
    from dsctl.description import identify

    where = side.place if side.release else side.name
    yield ("repository" if side.release else "folder"), _cropped(where)
    if side.release:
        yield "published", side.release.date or "date not known"
        yield "licence", side.release.licence or "not known"
    yield "architecture", side.model or "unknown"
    alike = [release.alias[0] for release in identify(side.config) if release is not side.release]
    if alike:
        more = f" and {len(alike) - 3} more" if len(alike) > 4 else ""
        yield "same shapes", ", ".join(alike[: 3 if more else 4]) + more


def _notes(side: Description, title: str) -> Iterator[str]:
    if side.missing:
        first = ", ".join(side.missing[:2]) + (", ..." if len(side.missing) > 2 else "")
        yield f"{title}: {plural(len(side.missing), 'parameter')} of its architecture missing ({first})."
    if side.faults:
        yield f"{title}: {plural(len(side.faults), 'remark')} on its files ({side.faults[0]}); `dsctl verify` has all."


def _config(diff: Diff) -> Section:
    from dsctl.cli.sections import Column, Section
    from dsctl.diff import CLERICAL_FIELDS

    telling = [change for change in diff.config if change.top not in CLERICAL_FIELDS]
    clerical = [change for change in diff.config if change.top in CLERICAL_FIELDS]
    rows = [_field(change) for change in telling] + list(_clerical(clerical))
    columns = (Column("field"), Column("value"), Column("", rank=1))
    return Section("Config", _counted([row.kind for row in rows]) or "no difference", columns, tuple(rows))


def _field(change: FieldChange) -> Row:
    from dsctl.cli.sections import Row
    from dsctl.diff import ABSENT
    from dsctl.meanings import FIELDS

    told = [_value(side) for side in (change.before, change.after) if side is not ABSENT]
    return Row((change.field, " → ".join(told), FIELDS.get(change.field, "")), change.kind)


def _clerical(changes: list[FieldChange]) -> Iterator[Row]:
    """Fields that set nothing, one row each whatever lies in them."""
    from dsctl.cli.sections import Row

    for top in dict.fromkeys(change.top for change in changes):
        inner = [change for change in changes if change.top == top]
        kinds = {change.kind for change in inner}
        if len(inner) == 1:
            yield _field(inner[0])
        else:
            yield Row((top, plural(len(inner), "field"), ""), kinds.pop())


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json_.dumps(value, ensure_ascii=False)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        text = value[0]
    return _shortened(text)


def _shortened(text: str) -> str:
    return text if len(text) <= VALUE_WIDTH else text[: VALUE_WIDTH - 1] + "…"


def _counted(kinds: Sequence[str]) -> str:
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("added", "removed", "changed") if kind in kinds)


def _parameters(diff: Diff) -> Iterator[Section]:
    from dsctl.cli.sections import Column, Section

    if diff.same_storage:
        many = f"{plural(len(diff.templates[0]), 'template')}, {plural(diff.a.parameters, 'parameter')}"
        yield Section("Parameters", f"no difference in {many}")
        return
    if diff.added or diff.removed:
        columns = (
            Column("template"), Column("shape"), Column("stored as"), Column("count", True), Column("values", True, 1),
            Column("bytes", True), Column("role", rank=2), Column("scales", rank=3), Column("cut by TP", rank=4),
        )  # fmt: skip
        rows = (*_templates(diff.removed, "removed"), *_templates(diff.added, "added"))
        yield Section("Parameters", _sides(diff), columns, rows)
    if diff.changed:
        rest = (Column("what"), Column("before → after"), Column("parameters", True, 1), Column("templates"))
        title = "Stored otherwise" if diff.same_parameters else "Parameters on both sides"
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
    """One row per template, below the module and layers that several share."""
    from dsctl.cli.sections import Row

    modules: dict[str, list[Row]] = {}
    for template in found:
        module, name = _module(_numbered(template))
        modules.setdefault(module, []).append(Row((name, *_described(template)), kind))
    for module, rows in modules.items():
        yield Row((module,))
        yield from rows


def _numbered(template: Template) -> str:
    """Its name with the numbers of its layers and experts: model.layers.{3-61}.mlp.experts.{0-255}.up_proj.weight."""
    from dsctl.description import OTHER
    from dsctl.diff import ranges

    if template.role == OTHER:
        return template.name
    experts = f"{{0-{template.experts - 1}}}"
    return template.name.format(layer=f"{{{ranges(template.layers)}}}", expert=experts)


def _module(template: str) -> tuple[str, str]:
    """A name before and after its last module: what rows can share, and what they cannot."""
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
    """One row per difference, with all templates that share it."""
    from dsctl.cli.sections import Row
    from dsctl.diff import ASPECTS

    found: dict[tuple[str, str], list[Template]] = {}
    for change in changed:
        for aspect in change.aspects:
            sides = " → ".join(_aspect(side, aspect) for side in (change.before, change.after))
            found.setdefault((aspect, sides), []).append(change.after)
    for (aspect, sides), templates in sorted(found.items(), key=lambda item: ASPECTS.index(item[0][0])):
        yield Row((aspect, sides, f"{sum(t.count for t in templates):,}", _named(templates)), "changed")


def _aspect(template: Template, aspect: str) -> str:
    from dsctl.diff import ranges

    value = getattr(template, aspect)
    if aspect == "layers":
        return _shortened(ranges(value)) or "none"
    return str(list(value)) if aspect == "shape" else str(value)


def _named(templates: list[Template], limit: int = 3) -> str:
    """Templates in a few words: their names where they are few, else how many of each role."""
    if len(templates) <= limit:
        return ", ".join(t.name.removeprefix("model.layers.{layer}.").removesuffix(".weight") for t in templates)
    roles = [template.role for template in templates]
    return ", ".join(f"{role} ({roles.count(role)})" for role in dict.fromkeys(roles))


def _tensors(diff: Diff) -> Section:
    from dsctl.cli.sections import Column, Row, Section

    rows = []
    for name, before, after in diff.tensors:
        told = [f"{spec.dtype} {list(spec.shape)}" for spec in (before, after) if spec]
        kind = "changed" if before and after else "added" if after else "removed"
        rows.append(Row((name, " → ".join(told)), kind))
    summary = _counted([row.kind for row in rows]) or "no stored tensor differs in name, dtype or shape"
    return Section("Tensors", summary, (Column("tensor"), Column("stored as")), tuple(rows))


# What a total is called, and the heading that it comes under.
TOTALS = {
    "parameters": ("parameters", "Totals"),
    "values": ("values", "Totals"),
    "main_values": ("  without MTP", "Totals"),
    "active_values": ("  active per token", "Totals"),
    "quantized": ("quantized parameters", "Totals"),
    "tensors": ("stored tensors", "Totals"),
    "nbytes": ("stored bytes", "Totals"),
    "files": ("weight files", "Totals"),
    "cache_bytes": ("KV cache", "Per token of context"),
    "index_bytes": ("indexer's keys", "Per token of context"),
    "work": ("arithmetic", "Attention of one new token"),
    "read_bytes": ("cache read", "Attention of one new token"),
}


def _totals(diff: Diff) -> Iterator[Section]:
    from dsctl.cli.sections import Column, Section

    columns = (Column(), *(Column(title, True) for title in titles(diff)), Column("difference", True))
    summaries = {
        "Per token of context": "cache kept for it: latents in BF16, indexer keys in FP8",
        "Attention of one new token": "after so many tokens (docs/costs.md)",
    }
    for heading in dict.fromkeys(heading for _, heading in TOTALS.values()):
        held = [total for total in diff.totals if TOTALS[total.key][1] == heading and (total.before or total.after)]
        if held and heading != "Totals" and all(total.before == total.after for total in held):
            yield Section(heading, "no difference")
        elif held:
            yield Section(heading, summaries.get(heading, ""), columns, tuple(_total(total) for total in held))


def _total(total: Total) -> Row:
    from dsctl.cli.sections import Row

    name = TOTALS[total.key][0] + (f" after {total.context:,}" if total.context else "")
    before, after = (_amount(value, total.unit) for value in (total.before, total.after))
    return Row((name, before, after, _difference(total)))


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "not known"
    if unit == "bytes":
        return size(value) if value >= 100_000 else f"{value:,.0f} B"
    return f"{value:,.0f}" if unit == "count" else _flop(value)


def _flop(number: float) -> str:
    """Floating-point operations for people: 556.7 GFLOP."""
    for unit, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= factor:
            return f"{number / factor:,.1f} {unit}FLOP"
    return f"{number:,.0f} FLOP"


def _difference(total: Total) -> str:
    before, after = total.before, total.after
    if before is None or after is None:
        return ""
    if before == after:
        return "same"
    if total.context and before and after:
        ratio = before / after
        return f"{ratio:.1f}x less" if ratio > 1 else f"{1 / ratio:.1f}x more"
    change = after - before
    return ("+" if change > 0 else "-") + _amount(abs(change), total.unit)


def _meanings(diff: Diff) -> Iterator[Section]:
    from dsctl.cli.sections import Section
    from dsctl.meanings import meanings

    said = meanings(diff)
    if said:
        yield Section("What it means", paragraphs=tuple(meaning.text for meaning in said))


def as_json(diff: Diff, only: str | None, tensors: bool) -> dict[str, Any]:
    """The report as stable JSON: docs/diff.md says what is in it."""
    facts: dict[str, Any] = {"differs": diff.differs, "verdict": diff.verdict}
    if only is None:
        facts |= {"a": _side_json(diff.a), "b": _side_json(diff.b)}
    if only in (None, "config"):
        facts["config"] = _config_json(diff)
    if only in (None, "tensors"):
        facts["templates"] = {
            "added": [_template_json(template) for template in diff.added],
            "removed": [_template_json(template) for template in diff.removed],
            "changed": [_change_json(change) for change in diff.changed],
        }
        if tensors:
            facts["tensors"] = [[name, before, after] for name, before, after in diff.tensors]
    if only in (None, "totals"):
        facts["totals"] = _totals_json(diff)
    if only is None:
        from dsctl.meanings import meanings

        facts["meanings"] = [said._asdict() for said in meanings(diff)]
    return facts


def _side_json(side: Description) -> dict[str, Any]:
    from dsctl.description import identify

    release = side.release
    return {
        "name": side.name,
        "place": side.place,
        "kind": "release" if release else "folder",
        "date": release and release.date,
        "licence": release and release.licence,
        "architecture": side.model,
        "same_shapes": [found.alias[0] for found in identify(side.config)],
        "missing": list(side.missing),
        "faults": list(side.faults),
    }


def _config_json(diff: Diff) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {"added": {}, "removed": {}, "changed": {}}
    for change in diff.config:
        one = {"added": change.after, "removed": change.before}
        kinds[change.kind][change.field] = one.get(change.kind, [change.before, change.after])
    return kinds


def _template_json(template: Template) -> dict[str, Any]:
    fields = ("shape", "stored", "layers", "experts", "split", "role", "count", "values", "tensors", "nbytes")
    return {"template": template.name} | {field: getattr(template, field) for field in fields}


def _change_json(change: TemplateChange) -> dict[str, Any]:
    sides = {aspect: [getattr(change.before, aspect), getattr(change.after, aspect)] for aspect in change.aspects}
    return {"template": change.after.name, "count": change.after.count, "changes": sides}


def _totals_json(diff: Diff) -> dict[str, Any]:
    totals: dict[str, Any] = {}
    for total in diff.totals:
        if total.context is None:
            totals[total.key] = [total.before, total.after]
        else:
            totals.setdefault(total.key, {})[str(total.context)] = [total.before, total.after]
    return totals


def add_to(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(diff)
