"""A diff as sections for people: the output of `dsctl diff`. The answer comes first, then the tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from dsctl.core.config_fields import CLERICAL_FIELDS
from dsctl.look.config_changes import ABSENT, FieldChange
from dsctl.look.description import Description
from dsctl.look.diff import Diff
from dsctl.look.fields import FIELDS
from dsctl.look.meanings import meanings
from dsctl.releases import Release
from dsctl.show.output import plural
from dsctl.show.sections import Column, Row, Section
from dsctl.show.side_files import files
from dsctl.show.templates import parameters, shortened
from dsctl.show.totals import totals

NAME_WIDTH = 30
# Two lists of names of this width fit beside each other in 80 columns.
_NAMES = 30
# A list longer than LONG, such as one with a value per layer, is shown as counts if it has at most FEW values.
LONG, FEW = 12, 4


def sections(diff: Diff, only: str | None, tensors: bool) -> Iterator[Section]:
    """The report's parts, in order; with `only`, that part alone. Without differences, a sentence."""
    yield Section("", diff.origin)
    if only is None and not diff.differs:
        yield Section(" → ".join(titles(diff)), diff.headline, paragraphs=tuple(_compared(diff)))
        return
    if only is None:
        yield Section(" → ".join(titles(diff)), diff.headline)
        yield from _meanings(diff)
        yield _identity(diff)
    if only in (None, "config"):
        yield _config(diff)
    if only in (None, "tensors"):
        yield from parameters(diff)
        if tensors:
            yield _tensors(diff)
    if only in (None, "totals"):
        yield from totals(diff, titles(diff))
    if only == "files" or (only is None and (diff.files is not None or diff.texts.changes)):
        yield from files(diff)


def _short(description: Description) -> str:
    name = description.name if description.release else description.name.rstrip("/").rpartition("/")[2]
    return _cropped(name)


def _cropped(name: str) -> str:
    """A name or path, cut at its beginning if it is long."""
    return name if len(name) <= NAME_WIDTH else "…" + name[-NAME_WIDTH + 1 :]


def titles(diff: Diff) -> tuple[str, str]:
    """The column titles of the two sides."""
    a, b = _short(diff.a), _short(diff.b)
    return (a, b) if a != b else (f"{a} (A)", f"{b} (B)")


def _identity(diff: Diff) -> Section:
    a, b = titles(diff)
    sides = [dict(_facts(side)) for side in (diff.a, diff.b)]
    names = dict.fromkeys([*sides[0], *sides[1]])
    rows = tuple(Row((name, sides[0].get(name, ""), sides[1].get(name, ""))) for name in names)
    notes = ["*: its config was derived, not read."] if any("*" in cell for row in rows for cell in row.cells) else []
    return Section("Sides", "", (Column(), Column(a), Column(b)), rows, (*notes, *_compared(diff)))


def _compared(diff: Diff) -> Iterator[str]:
    """Notes on each side, and what was compared."""
    for side, title in zip((diff.a, diff.b), titles(diff), strict=True):
        yield from _notes(side, title)
    yield f"Compared: {', '.join(diff.compared)}. Not compared: {', '.join(diff.not_compared)}."


def _facts(side: Description) -> Iterator[tuple[str, str]]:
    kind = side.kind
    label = kind if kind in ("folder", "store") else "repository"
    yield label, _cropped(side.name) if kind == "folder" else side.place
    if side.release:
        yield "published", side.release.date or "not known"
        yield "licence", side.release.licence or "not known"
    yield "architecture", side.model or "unknown"
    alike = [starred(release, release.alias[0]) for release in side.alike if release is not side.release]
    if alike:
        yield "same shapes", _some(alike)


def _some(names: Sequence[str]) -> str:
    """The names, or the first ones and how many more there are, in `_NAMES` characters if two or more names fit."""
    shown = len(names) if len(names) <= 4 else 3
    while True:
        more = f" and {len(names) - shown} more" if shown < len(names) else ""
        text = ", ".join(names[:shown]) + more
        if len(text) <= _NAMES or shown == 1:
            return text
        shown -= 1


def starred(release: Release, name: str) -> str:
    """A name, with a star if the release's config was derived, so that its shapes were not read."""
    return name + "*" * ("config" in release.derived)


def _notes(side: Description, title: str) -> Iterator[str]:
    if side.derived:
        reason = side.release.sources["config"][0].removeprefix("derived: ") if side.release else ""
        yield f"{title}: config.json was derived, not read: {reason}."
    if side.release and "storage.traits.rotary" in side.release.derived:
        yield f"{title}: the bytes of rotary_emb.inv_freq are known; its dtype and shape were not read."
    for template in side.release.storage.scales_apart if side.release else ():
        yield f"{title}: the scales of {template} are not powers of two, unlike all others."
    if side.alone:
        yield f"{title}: a drafter without its model: {side.drafter}."
    if side.part:
        yield f"{title}: {side.part}."
    if side.missing:
        first = ", ".join(side.missing[:2]) + (", ..." if len(side.missing) > 2 else "")
        missing = plural(len(side.missing), "parameter")
        yield f"{title}: {missing} of its architecture {'is' if len(side.missing) == 1 else 'are'} missing ({first})."
    if side.faults:
        problems = plural(len(side.faults), "problem")
        yield f"{title}: {problems} in its files ({side.faults[0]}); `dsctl verify` lists all of them."


def _config(diff: Diff) -> Section:
    telling = [change for change in diff.config if change.top not in CLERICAL_FIELDS]
    clerical = [change for change in diff.config if change.top in CLERICAL_FIELDS]
    rows = [_field(change) for change in telling] + list(_clerical(clerical))
    columns = (Column("field"), Column("value"), Column("", rank=1))
    unread = [side.name for side in (diff.a, diff.b) if side.derived]
    derived = f"; config of {' and '.join(dict.fromkeys(unread))}: derived, not read" if unread else ""
    summary = (_counted([row.kind for row in rows]) or "no difference") + derived
    nested = [title for side, title in zip((diff.a, diff.b), titles(diff), strict=True) if side.nested]
    notes = [f"{' and '.join(nested)}: fields of text_config are shown without this prefix."] if nested and rows else []
    return Section("Config", summary, columns, tuple(rows), tuple(notes))


def _field(change: FieldChange) -> Row:
    sides = [side for side in (change.before, change.after) if side is not ABSENT]
    many = any(isinstance(side, list) and len(side) > LONG for side in sides)
    values = [_value(side, many) for side in sides]
    return Row((change.field, " → ".join(values), FIELDS.get(change.field, "")), change.kind)


def _clerical(changes: list[FieldChange]) -> Iterator[Row]:
    """Fields without effect, one row for each field of the outermost object."""
    for top in dict.fromkeys(change.top for change in changes):
        inner = [change for change in changes if change.top == top]
        kinds = {change.kind for change in inner}
        if len(inner) == 1:
            yield _field(inner[0])
        else:
            yield Row((top, plural(len(inner), "field"), ""), kinds.pop())


def _value(value: Any, many: bool = False) -> str:
    """A value in a few words; with `many`, a list of few different values as how often each occurs."""
    if many and isinstance(value, list) and value and len(counted := _counts(value)) <= FEW:
        return ", ".join(f"{number} x {text}" for text, number in counted.items())
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        text = value[0]
    return shortened(text)


def _counts(values: Sequence[Any]) -> dict[str, int]:
    """How often each value of a list occurs, in the order of first occurrence."""
    return Counter(json.dumps(value, ensure_ascii=False) for value in values)


def _counted(kinds: Sequence[str]) -> str:
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("added", "removed", "changed") if kind in kinds)


def _tensors(diff: Diff) -> Section:
    rows = []
    for name, before, after in diff.tensors:
        specs = [f"{spec.dtype} {list(spec.shape)}" for spec in (before, after) if spec]
        kind = "changed" if before and after else "added" if after else "removed"
        rows.append(Row((name, " → ".join(specs)), kind))
    summary = _counted([row.kind for row in rows]) or "no difference in name, dtype or shape"
    return Section("Tensors", summary, (Column("tensor"), Column("stored as")), tuple(rows))


def _meanings(diff: Diff) -> Iterator[Section]:
    said = meanings(diff)
    if said:
        yield Section("What it means", paragraphs=tuple(meaning.text for meaning in said))
