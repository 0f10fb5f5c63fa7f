"""`dsctl diff`: the changes between two checkpoints, from built-in descriptions of releases and headers of folders."""

from __future__ import annotations

from typing import Annotated

import typer

from dsctl.cli import completion
from dsctl.cli.groups import PrintOptions, verb
from dsctl.cli.options import Html, Local, Remote
from dsctl.cli.sources import located
from dsctl.core.choices import choose
from dsctl.core.errors import DsctlError, UsageError
from dsctl.look import gates
from dsctl.look.diff import PARTS, Diff
from dsctl.look.source import describe
from dsctl.show.difference_facts import as_json
from dsctl.show.differences import sections
from dsctl.show.drawing import ready, save
from dsctl.show.sections import show

Before = Annotated[
    str,
    typer.Argument(
        metavar="A", autocompletion=completion.sources, help="A checkpoint folder or a release, such as v3."
    ),
]
After = Annotated[
    str, typer.Argument(metavar="B", autocompletion=completion.sources, help="The checkpoint to compare with it.")
]
OnlyPart = Annotated[
    str | None,
    typer.Option(
        "--only",
        metavar="PART",
        autocompletion=completion.parts,
        help="Show only this part: config, tensors, totals or files.",
    ),
]
Tensors = Annotated[bool, typer.Option("--tensors", help="List every stored tensor that differs.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]
ExitCode = Annotated[bool, typer.Option("--exit-code", help="Exit with 1 if a part that is shown differs.")]
FailOn = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on",
        metavar="KIND",
        autocompletion=completion.kinds,
        help="Exit with 1 if this kind differs: architecture, config, storage or any; repeatable.",
    ),
]


@verb
def diff(
    a: Before,
    b: After,
    *,
    only: OnlyPart = None,
    tensors: Tensors = False,
    markdown: Markdown = False,
    exit_code: ExitCode = False,
    fail_on: FailOn = None,
    remote: Remote = False,
    local: Local = False,
    html: Html = None,
    printing: PrintOptions,
) -> None:
    """Show what changed between two checkpoints: config, parameters, storage, totals, and what it means.

    Works offline from built-in descriptions and headers. Weights are not read, so their values are not compared. The
    first line shows where each side comes from: the name of a release means its built-in description unless a folder of
    that name exists.

    Kinds for --fail-on: architecture, if parameters differ in name, shape or presence; config, if fields of config.json
    with an effect differ; storage, if parameters are stored in different formats; any, as --exit-code, with a line
    that says why.

    Examples:

        dsctl diff v3 v3.2

        dsctl diff v3.1 v3.2 --only config --markdown

        dsctl diff ./DeepSeek-V3.2 v3.2 --fail-on architecture,config

        dsctl diff v3 v3.2 --html v3-to-v3.2.html
    """
    if only is not None:
        choose(only, PARTS, "part", "--only")
    kinds = _kinds(fail_on)
    if printing.json and markdown:
        raise UsageError("--json and --markdown cannot be combined", hint="choose one of them")
    if html is not None:
        ready(html, (a, b))
    output, found = printing.output(), Diff(*(describe(located(one, remote, local)) for one in (a, b)))
    if (exit_code or kinds) and found.itself and found.a.release:
        _refuse_itself(found, a, b, "--fail-on" if kinds else "--exit-code")
    reasons = gates.found(found, kinds, only)
    if output.json:
        output.data(as_json(found, only, tensors))
    elif not output.quiet:
        show(list(sections(found, only, tensors)), output, markdown)
    if html is not None:
        from dsctl.show.pages.difference import difference

        save(difference(found, only, tensors), html)
    if reasons:
        raise DsctlError(
            f"{a} and {b} differ: {', '.join(reasons)}", hint=f"`dsctl diff {a} {b}` shows the differences"
        )
    if exit_code and found.differs_in(only):
        raise typer.Exit(1)


def _kinds(fail_on: list[str] | None) -> list[str]:
    """The kinds of difference to fail on, each once.

    Raises:
        UsageError: one of them is not known.
    """
    words = [word.strip() for text in fail_on or () for word in text.split(",")]
    return [choose(word, gates.KINDS, "kind", "--fail-on") for word in dict.fromkeys(words)]


def _refuse_itself(found: Diff, a: str, b: str, option: str) -> None:
    """Refuse a check that compares no file: both names mean the same release."""
    what = f"{a} and {b} both mean {found.a.origin.text}, so no file was compared"
    raise UsageError(f"{option}: {what}", hint=f"for a folder write ./{a}, or require folders on both sides by --local")
