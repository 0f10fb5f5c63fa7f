"""`dsctl diff`: what changed between two checkpoints, from releases' descriptions and folders' headers."""

from __future__ import annotations

from typing import Annotated

import typer

from dsctl.cli.groups import PrintOptions, verb
from dsctl.cli.options import Html, Local, Remote
from dsctl.cli.sources import located
from dsctl.core.errors import UsageError
from dsctl.look.diff import PARTS, Diff
from dsctl.look.source import describe
from dsctl.show.difference_facts import as_json
from dsctl.show.differences import sections
from dsctl.show.drawing import ready, save
from dsctl.show.sections import show

Before = Annotated[str, typer.Argument(metavar="A", help="A checkpoint folder or a release, such as v3.")]
After = Annotated[str, typer.Argument(metavar="B", help="What it is compared with.")]
OnlyPart = Annotated[
    str | None, typer.Option("--only", metavar="PART", help="Show only config, tensors, totals or files.")
]
Tensors = Annotated[bool, typer.Option("--tensors", help="List every stored tensor that differs.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]
ExitCode = Annotated[bool, typer.Option("--exit-code", help="Exit with 1 if what is shown differs.")]


@verb
def diff(
    a: Before,
    b: After,
    *,
    only: OnlyPart = None,
    tensors: Tensors = False,
    markdown: Markdown = False,
    exit_code: ExitCode = False,
    remote: Remote = False,
    local: Local = False,
    html: Html = None,
    printing: PrintOptions,
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
    if only is not None and only not in PARTS:
        raise UsageError(f"--only: {only!r} is unknown", hint=", ".join(PARTS))
    if html is not None:
        ready(html, (a, b))
    output, found = printing.output(), Diff(*(describe(located(one, remote, local)) for one in (a, b)))
    if exit_code and found.itself and found.a.release:
        _refuse_itself(found, a, b)
    if output.json:
        output.data(as_json(found, only, tensors))
    elif not output.quiet:
        show(list(sections(found, only, tensors)), output, markdown)
    if html is not None:
        from dsctl.show.pages.difference import difference

        save(difference(found, only, tensors), html)
    if exit_code and found.differs_in(only):
        raise typer.Exit(1)


def _refuse_itself(found: Diff, a: str, b: str) -> None:
    """Refuse a check that looks at no file: both names mean one release."""
    what = f"{a} and {b} both mean {found.a.origin.text}: no file was compared"
    raise UsageError(f"--exit-code: {what}", hint=f"for a folder write ./{a}; --local demands folders on both sides")
