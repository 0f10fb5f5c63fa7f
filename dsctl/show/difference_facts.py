"""A diff as stable JSON, described in docs/diff.md."""

from __future__ import annotations

from typing import Any

from dsctl.look.config_changes import ABSENT
from dsctl.look.description import Description
from dsctl.look.diff import Diff
from dsctl.look.meanings import meanings
from dsctl.look.side_texts import TextChange
from dsctl.look.templates import Template, TemplateChange


def as_json(diff: Diff, only: str | None, tensors: bool) -> dict[str, Any]:
    """The report as stable JSON, described in docs/diff.md."""
    facts: dict[str, Any] = {
        "origins": {"a": _origin_json(diff.a), "b": _origin_json(diff.b), "same": diff.itself},
        "differs": diff.differs_in(only),
        "verdict": diff.verdict,
        "headline": diff.headline,
        "compared": list(diff.compared),
        "not_compared": list(diff.not_compared),
    }
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
    if only in (None, "files"):
        facts["files"] = None if diff.files is None else [one._asdict() for one in diff.files]
        facts["contents"] = [_content_json(change) for change in diff.texts.changes]
        facts["unread"] = list(diff.texts.problems)
    if only is None:
        facts["meanings"] = [said._asdict() for said in meanings(diff)]
    return facts


def _origin_json(side: Description) -> dict[str, Any]:
    return side.origin._asdict()


def _side_json(side: Description) -> dict[str, Any]:
    release = side.release
    return {
        "name": side.name,
        "place": side.place,
        "kind": side.kind,
        "date": release and release.date,
        "licence": release and release.licence,
        "architecture": side.model,
        "same_shapes": [found.alias[0] for found in side.alike],
        "same_shapes_derived": [found.alias[0] for found in side.alike if "config" in found.derived],
        "missing": list(side.missing),
        "faults": list(side.faults),
    }


def _config_json(diff: Diff) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {"added": {}, "removed": {}, "changed": {}}
    for change in diff.config:
        one = {"added": change.after, "removed": change.before}
        kinds[change.kind][change.field] = one.get(change.kind, [change.before, change.after])
    return kinds


def _content_json(change: TextChange) -> dict[str, Any]:
    sides = {side: None if value is ABSENT else value for side, value in zip("ab", change[2:4], strict=True)}
    return {"kind": change.kind, "field": change.what, "change": change.sign or "moved"} | sides


def _template_json(template: Template) -> dict[str, Any]:
    fields = ("shape", "stored", "layers", "experts", "split", "role", "count", "values", "tensors", "nbytes")
    return {"template": template.name} | {field: getattr(template, field) for field in fields}


def _change_json(change: TemplateChange) -> dict[str, Any]:
    sides = {aspect: [getattr(change.before, aspect), getattr(change.after, aspect)] for aspect in change.aspects}
    return {"template": change.after.name, "count": change.after.count, "changes": sides}


def _totals_json(diff: Diff) -> dict[str, Any]:
    formats = diff.cache_formats
    totals: dict[str, Any] = {"cache_format": formats[0] if len({*formats}) == 1 else None, "cache_formats": formats}
    for total in diff.totals:
        if total.context is None:
            totals[total.key] = [total.before, total.after]
        else:
            totals.setdefault(total.key, {})[str(total.context)] = [total.before, total.after]
    return totals
