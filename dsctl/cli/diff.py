"""`dsctl diff`: what changed between two checkpoints, from releases' descriptions and folders' headers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsctl.cli.options import Debug, Html, Json, Local, Quiet, Remote, located
from dsctl.core.errors import UsageError
from dsctl.show.output import Output

if TYPE_CHECKING:
    from dsctl.look.description import Description
    from dsctl.look.diff import Diff
    from dsctl.look.templates import Template, TemplateChange

Before = Annotated[str, typer.Argument(metavar="A", help="A checkpoint folder or a release, such as v3.")]
After = Annotated[str, typer.Argument(metavar="B", help="The other one.")]
OnlyPart = Annotated[str | None, typer.Option("--only", metavar="PART", help="config, tensors, totals or files alone.")]
Tensors = Annotated[bool, typer.Option("--tensors", help="Every stored tensor that differs, by name.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]
ExitCode = Annotated[bool, typer.Option("--exit-code", help="Exit with 1 if what is shown differs.")]


def diff(
    a: Before,
    b: After,
    only: OnlyPart = None,
    tensors: Tensors = False,
    markdown: Markdown = False,
    exit_code: ExitCode = False,
    remote: Remote = False,
    local: Local = False,
    html: Html = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show what changed between two checkpoints: config, parameters, storage, totals, and what it means.

    Works offline from descriptions and headers; weights are not read, so numbers are not compared. The first line says
    where each side comes from: a release's name stands for dsctl's description of it if there is no such folder.

    Examples:

        dsctl diff v3 v3.2

        dsctl diff v3.1 v3.2 --only config --markdown

        dsctl diff ./DeepSeek-V3.2 v3.2 --exit-code

        dsctl diff v3 v3.2 --html v3-to-v3.2.html
    """
    from dsctl.look.diff import PARTS, Diff
    from dsctl.look.source import describe
    from dsctl.show.sections import show

    if only is not None and only not in PARTS:
        raise UsageError(f"--only: {only!r} is unknown", hint=", ".join(PARTS))
    if html is not None:
        from dsctl.show.drawing import ready

        ready(html, (a, b))
    output, found = Output(json, quiet), Diff(*(describe(located(one, remote, local)) for one in (a, b)))
    if exit_code and found.itself and found.a.release:
        _refuse_itself(found, a, b)
    if json:
        output.data(as_json(found, only, tensors))
    elif not quiet:
        from dsctl.show.differences import sections

        show(list(sections(found, only, tensors)), output, markdown)
    if html is not None:
        from dsctl.show.drawing import save
        from dsctl.show.pages.difference import difference

        save(difference(found, only, tensors), html)
    if exit_code and found.differs_in(only):
        raise typer.Exit(1)


def _refuse_itself(found: Diff, a: str, b: str) -> None:
    """Refuse a check that looks at no file: both names mean one release."""
    what = f"{a} and {b} both mean {found.a.origin.text}: no file was compared"
    raise UsageError(f"--exit-code: {what}", hint=f"for a folder write ./{a}; --local demands folders on both sides")


def as_json(diff: Diff, only: str | None, tensors: bool) -> dict[str, Any]:
    """The report as stable JSON: docs/diff.md says what is in it."""
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
    if only is None:
        from dsctl.look.meanings import meanings

        facts["meanings"] = [said._asdict() for said in meanings(diff)]
    return facts


def _origin_json(side: Description) -> dict[str, Any]:
    return side.origin._asdict()


def _side_json(side: Description) -> dict[str, Any]:
    from dsctl.look.description import identify

    release = side.release
    return {
        "name": side.name,
        "place": side.place,
        "kind": side.kind,
        "date": release and release.date,
        "licence": release and release.licence,
        "architecture": side.model,
        "same_shapes": [found.alias[0] for found in identify(side.config)],
        "same_shapes_derived": [found.alias[0] for found in identify(side.config) if "config" in found.derived],
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
