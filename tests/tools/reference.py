"""docs/reference.md, written from the commands themselves: `python -m tests.tools.reference` after a change of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from dsctl.cli.app import application

TABLE = "| | |\n|---|---|\n"
PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def commands() -> dict[str, Any]:
    """Every verb, in the order of `--help`."""
    group: Any = typer.main.get_command(application())
    return dict(group.commands)


def page() -> str:
    """The page as it should be."""
    parts = ["# Commands and options\n\nWritten by `python -m tests.tools.reference` from what `--help` shows.\n"]
    parts += ["".join(section(verb, command)) for verb, command in commands().items()]
    return "\n".join(parts)


def section(verb: str, command: Any) -> Iterator[str]:
    prose, _, examples = command.help.partition("Examples:")
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option" and param.help]
    yield f"## dsctl {verb}\n\n`{' '.join(['dsctl', verb, *map(place, arguments), '[OPTIONS]'])}`\n\n"
    yield prose.strip() + "\n\n"
    yield "```sh\n" + "".join(f"{line.strip()}\n" for line in examples.splitlines() if line.strip()) + "```\n\n"
    yield TABLE
    for param in arguments:
        yield f"| `{cell(place(param))}` | {param.help} |\n"
    panels = list(dict.fromkeys(param.rich_help_panel for param in options if param.rich_help_panel))
    for panel in (*panels, None):
        yield f"\n{panel or 'Options'}:\n\n{TABLE}" if panels else ""
        for param in options:
            if param.rich_help_panel == panel:
                yield f"| {names(param)} | {param.help} |\n"


def place(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def names(param: Any) -> str:
    value = "" if param.is_flag or param.count else f" {param.metavar or param.name.upper()}"
    forms = sorted(param.opts, key=len, reverse=True)
    return ", ".join(f"`{form}{cell(value) if form.startswith('--') else ''}`" for form in forms)


def cell(text: str) -> str:
    """Text as a table's cell can hold it."""
    return text.replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(page())
