"""A diff as sections for people: what `dsctl diff` prints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dsctl.core.config_fields import CLERICAL_FIELDS
from dsctl.core.params import OTHER
from dsctl.look.config_changes import ABSENT, FieldChange
from dsctl.look.description import Description, identify
from dsctl.look.diff import Diff
from dsctl.look.meanings import FIELDS, meanings
from dsctl.look.templates import ASPECTS, Template, TemplateChange
from dsctl.look.totals import TotalChange
from dsctl.look.wording import ranges
from dsctl.show.output import count, plural, size
from dsctl.show.sections import Column, Row, Section

if TYPE_CHECKING:
    from dsctl.releases import Release

NAME_WIDTH = 30
VALUE_WIDTH = 44


def sections(diff: Diff, only: str | None, tensors: bool) -> Iterator[Section]:
    """The report's parts, in order; with `only`, that part alone."""
    yield Section("", diff.origin)
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
    if only == "files" or (only is None and diff.files is not None):
        yield _files(diff)
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

    a, b = titles(diff)
    sides = [dict(_facts(side)) for side in (diff.a, diff.b)]
    names = dict.fromkeys([*sides[0], *sides[1]])
    rows = tuple(Row((name, sides[0].get(name, ""), sides[1].get(name, ""))) for name in names)
    notes = [note for side, title in ((diff.a, a), (diff.b, b)) for note in _notes(side, title)]
    if any("*" in cell for row in rows for cell in row.cells):
        notes.append("*: its config was derived, not read.")
    notes.append(f"Compared: {', '.join(diff.compared)}. Not compared: {', '.join(diff.not_compared)}.")
    return Section(f"{a} → {b}", diff.headline, (Column(), Column(a), Column(b)), rows, tuple(notes))


def _facts(side: Description) -> Iterator[tuple[str, str]]:

    kind = side.kind
    label = kind if kind in ("folder", "store") else "repository"
    yield label, _cropped(side.name) if kind == "folder" else side.place
    if side.release:
        yield "published", side.release.date or "date not known"
        yield "licence", side.release.licence or "not known"
    yield "architecture", side.model or "unknown"
    alike = [starred(release, release.alias[0]) for release in identify(side.config) if release is not side.release]
    if alike:
        more = f" and {len(alike) - 3} more" if len(alike) > 4 else ""
        yield "same shapes", ", ".join(alike[: 3 if more else 4]) + more


def starred(release: Release, name: str) -> str:
    """A name, with a star where the release's config was derived: its shapes were not read."""
    return name + "*" * ("config" in release.derived)


def _notes(side: Description, title: str) -> Iterator[str]:
    if side.derived:
        reason = side.release.sources["config"][0].removeprefix("derived: ") if side.release else ""
        yield f"{title}: its config.json was not read, but derived: {reason}."
    for template in side.release.storage.scales_apart if side.release else ():
        yield f"{title}: scales of {template} are no powers of two, unlike all others."
    if side.part:
        yield f"{title}: {side.part}."
    if side.missing:
        first = ", ".join(side.missing[:2]) + (", ..." if len(side.missing) > 2 else "")
        yield f"{title}: {plural(len(side.missing), 'parameter')} of its architecture missing ({first})."
    if side.faults:
        yield f"{title}: {plural(len(side.faults), 'remark')} on its files ({side.faults[0]}); `dsctl verify` has all."


def _config(diff: Diff) -> Section:

    telling = [change for change in diff.config if change.top not in CLERICAL_FIELDS]
    clerical = [change for change in diff.config if change.top in CLERICAL_FIELDS]
    rows = [_field(change) for change in telling] + list(_clerical(clerical))
    columns = (Column("field"), Column("value"), Column("", rank=1))
    unread = [side.name for side in (diff.a, diff.b) if side.derived]
    derived = f"; that of {' and '.join(dict.fromkeys(unread))} is derived, not read" if unread else ""
    summary = (_counted([row.kind for row in rows]) or "no difference") + derived
    return Section("Config", summary, columns, tuple(rows))


def _field(change: FieldChange) -> Row:

    told = [_value(side) for side in (change.before, change.after) if side is not ABSENT]
    return Row((change.field, " → ".join(told), FIELDS.get(change.field, "")), change.kind)


def _clerical(changes: list[FieldChange]) -> Iterator[Row]:
    """Fields that set nothing, one row each whatever lies in them."""

    for top in dict.fromkeys(change.top for change in changes):
        inner = [change for change in changes if change.top == top]
        kinds = {change.kind for change in inner}
        if len(inner) == 1:
            yield _field(inner[0])
        else:
            yield Row((top, plural(len(inner), "field"), ""), kinds.pop())


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        text = value[0]
    return _shortened(text)


def _shortened(text: str) -> str:
    return text if len(text) <= VALUE_WIDTH else text[: VALUE_WIDTH - 1] + "…"


def _counted(kinds: Sequence[str]) -> str:
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("added", "removed", "changed") if kind in kinds)


def _parameters(diff: Diff) -> Iterator[Section]:

    if diff.same_storage:
        many = f"{plural(len(diff.templates[0]), 'template')}, {plural(diff.a.parameters, 'parameter')}"
        parts = " that are on both sides, in part or whole" if diff.verdict == "parts" else ""
        lacking = "; not the same ones are missing" if diff.verdict == "parts" else ""
        yield Section("Parameters", f"no difference in {many}{parts}{lacking}")
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

    modules: dict[str, list[Row]] = {}
    for template in found:
        module, name = _module(_numbered(template))
        modules.setdefault(module, []).append(Row((name, *_described(template)), kind))
    for module, rows in modules.items():
        yield Row((module,))
        yield from rows


def _numbered(template: Template) -> str:
    """Its name with the numbers of its layers and experts: model.layers.{3-61}.mlp.experts.{0-255}.up_proj.weight."""

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

    found: dict[tuple[str, str], list[Template]] = {}
    for change in changed:
        for aspect in change.aspects:
            sides = " → ".join(_aspect(side, aspect) for side in (change.before, change.after))
            found.setdefault((aspect, sides), []).append(change.after)
    for (aspect, sides), templates in sorted(found.items(), key=lambda item: ASPECTS.index(item[0][0])):
        yield Row((aspect, sides, f"{sum(t.count for t in templates):,}", _named(templates)), "changed")


def _aspect(template: Template, aspect: str) -> str:

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

    rows = []
    for name, before, after in diff.tensors:
        told = [f"{spec.dtype} {list(spec.shape)}" for spec in (before, after) if spec]
        kind = "changed" if before and after else "added" if after else "removed"
        rows.append(Row((name, " → ".join(told)), kind))
    summary = _counted([row.kind for row in rows]) or "no stored tensor differs in name, dtype or shape"
    return Section("Tensors", summary, (Column("tensor"), Column("stored as")), tuple(rows))


def _files(diff: Diff) -> Section:
    if diff.files is None:
        return Section("Other files", "not compared: both sides must be folders on this machine")
    rows = []
    for one in diff.files:
        for names, kind, said in (
            (one.same, "", "the same bytes"),
            (one.changed, "changed", "other bytes"),
            (one.removed, "removed", "only in A"),
            (one.added, "added", "only in B"),
        ):
            if names:
                rows.append(Row((one.kind, said, ", ".join(names)), kind))
        if not (one.same or one.differs):
            rows.append(Row((one.kind, "on neither side", "")))
    summary = "different" if diff.differs_in("files") else "no difference in what is there"
    return Section("Other files", summary, (Column("what"), Column("bytes"), Column("files")), tuple(rows))


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

    columns = (Column(), *(Column(title, True) for title in titles(diff)), Column("difference", True))
    summaries = {
        "Per token of context": "cache kept for it: latents in BF16, indexer keys in FP8",
        "Attention of one new token": "while decoding, in MLA's multi-query form, after so many tokens (docs/costs.md)",
    }
    for heading in dict.fromkeys(heading for _, heading in TOTALS.values()):
        held = [total for total in diff.totals if TOTALS[total.key][1] == heading and (total.before or total.after)]
        if held and heading != "Totals" and all(total.before == total.after for total in held):
            yield Section(heading, "no difference")
        elif held:
            yield Section(heading, summaries.get(heading, ""), columns, tuple(_total(total) for total in held))


def _total(total: TotalChange) -> Row:

    name = TOTALS[total.key][0] + (f" after {total.context:,}" if total.context else "")
    before, after = (_amount(value, total.unit) for value in (total.before, total.after))
    return Row((name, before, after, _difference(total)))


def _amount(value: float | None, unit: str) -> str:
    if value is None:
        return "not known"
    if unit == "bytes":
        return size(value) if value >= 100_000 else f"{value:,.0f} B"
    return f"{value:,.0f}" if unit == "count" else flop(value)


def flop(number: float) -> str:
    """Floating-point operations for people: 556.7 GFLOP."""
    for unit, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= factor:
            return f"{number / factor:,.1f} {unit}FLOP"
    return f"{number:,.0f} FLOP"


def _difference(total: TotalChange) -> str:
    before, after = total.before, total.after
    if before is None or after is None:
        return ""
    if before == after:
        return "same"
    if total.context and before and after:
        return _ratio(max(before, after) / min(before, after)) + (" less" if before > after else " more")
    change = after - before
    judged = "" if total.differs else " (not judged)"
    return ("+" if change > 0 else "-") + _amount(abs(change), total.unit) + judged


def _ratio(ratio: float) -> str:
    """How many times as much; a few percent, where that would be once."""
    return f"{ratio:.1f}x" if ratio >= 1.05 else f"{100 * (ratio - 1):.1f}%"


def _meanings(diff: Diff) -> Iterator[Section]:

    said = meanings(diff)
    if said:
        yield Section("What it means", paragraphs=tuple(meaning.text for meaning in said))
