"""Write docs/reference.md from the commands: run `python -m tests.tools.reference` after you change one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from dsctl.cli.app import VERBS, application
from dsctl.cli.commands import PANELS, called, panel_of

TABLE = "| | |\n|---|---|\n"
GENERAL = """
`dsctl help` or `dsctl --help` lists the commands, `dsctl help COMMAND` or `dsctl COMMAND --help` shows one of them, and
`dsctl version`, `dsctl --version` or `dsctl -V` prints the version. `dsctl --install-completion` lets your shell
complete commands, options, and the names of releases, formats, layouts, recipes, GPUs and findings.
"""
VARIABLES = """## Environment variables

An option that is not given takes its value from its variable, if that is set. Commands without the option ignore it.
"""
PAGE = Path(__file__).parents[2] / "docs" / "reference.md"


def commands() -> dict[str, Any]:
    """Every verb in the order of `--help`, and the actions of those that have some."""
    group: Any = typer.main.get_command(application())
    found: dict[str, Any] = {}
    for verb in VERBS:
        inner = getattr(group.commands[verb], "commands", None)
        found |= {f"{verb} {word}": one for word, one in inner.items()} if inner else {verb: group.commands[verb]}
    return found


def page() -> str:
    """The page as it should be."""
    parts = ["# Commands and options\n\nWritten by `python -m tests.tools.reference` from what `--help` shows.\n"]
    parts += [GENERAL, environment()]
    parts += ["".join(section(verb, command)) for verb, command in commands().items()]
    return "\n".join(parts)


def environment() -> str:
    """The variables that give options a value."""
    found = {option.envvar: option for command in commands().values() for option in command.params if option.envvar}
    rows = "".join(f"| `{name}` | `{max(option.opts, key=len)}` |\n" for name, option in sorted(found.items()))
    return f"{VARIABLES}\n| variable | option |\n|---|---|\n{rows}"


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
    for panel in PANELS:
        shown = [param for param in options if panel_of(param) == panel]
        yield f"\n{panel}:\n\n{TABLE}" if shown else ""
        for param in shown:
            yield f"| `{cell(called(param))}` | {param.help} |\n"


def place(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def cell(text: str) -> str:
    """Text as a table's cell can hold it."""
    return text.replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(page())
