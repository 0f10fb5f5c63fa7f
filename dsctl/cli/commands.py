"""The commands as the parser sees them: what `--help` shows, the nearest verb, options from the environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperCommand, TyperGroup

from dsctl.core.choices import choose
from dsctl.core.errors import UsageError
from dsctl.show.helps import TIED, Entry, HelpPage, show_help
from dsctl.show.output import Output

# The panels of `--help`, in their order. Options of one verb alone are in `OWN`; those of every verb are in `GENERAL`.
WHAT, WHICH, RANKS, RUNNING, OWN, GENERAL = (
    "What to convert", "Which part", "Ranks", "Running", "Options", "General",
)  # fmt: skip
PANELS = (OWN, WHAT, WHICH, RANKS, RUNNING, GENERAL)
ENVIRONMENT = "ENVIRONMENT"


class Verb(TyperCommand):
    """A verb of the command line. An option whose value has a name of two words takes two words."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        for param in self.params:
            if param.param_type_name == "option" and len((param.metavar or "").split()) == 2:
                param.nargs = 2

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help page; the parser's own formatter stays empty."""
        show_help(page(self, ctx), Output())

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of a command.

        Raises:
            UsageError: a value cannot be; if it comes from the environment, the error names the variable.
        """
        with _named_in_errors(self, ctx):
            rest = super().parse_args(ctx, args)
        if ctx.params.get("engine") != "ray" and _from_environment(ctx, "address"):
            # The variable says where the cluster is if one is asked for, not that one is.
            ctx.params["address"] = None
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; an error about a value from the environment names the variable."""
        with _named_in_errors(self, ctx):
            return super().invoke(ctx)


class Actions(TyperGroup):
    """A group of commands: the whole command line, or the actions of a verb."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help page; the parser's own formatter stays empty."""
        show_help(page(self, ctx), Output())

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the words call.

        Raises:
            UsageError: there is no such command; the hint suggests the nearest one.
        """
        if not ctx.resilient_parsing or args[0] not in self.commands:
            choose(args[0], self.commands, "command")
        return super().resolve_command(ctx, args)


class Verbs(Actions):
    """The whole command line: verbs with actions stand in their place among the others."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        from dsctl.cli.app import ASKED, VERBS

        self.commands = {name: self.commands[name] for name in (*VERBS, *ASKED)}


@contextmanager
def _named_in_errors(command: Any, ctx: Any) -> Iterator[None]:
    """Let an error of the parser know its command, and one about a value from the environment name the variable."""
    try:
        yield
    except Exception as error:
        if getattr(error, "ctx", ctx) is None:
            error.ctx = ctx  # type: ignore[attr-defined]
        if not isinstance(error, UsageError):
            raise
        option, colon, rest = error.message.partition(":")
        for param in command.params:
            if option in param.opts and param.envvar and _from_environment(ctx, param.name):
                error.message = f"{param.envvar} ({option}){colon}{rest}"
        raise


def _from_environment(ctx: Any, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == ENVIRONMENT


def page(command: Any, ctx: Any) -> HelpPage:
    """The help page of a command: its docstring up to `Examples:`, the examples, and its parameters by panel."""
    prose, _, examples = (command.help or "").partition("Examples:")
    params = command.get_params(ctx)
    arguments = [param for param in params if param.param_type_name == "argument"]
    options = [param for param in params if param.param_type_name == "option" and not param.hidden]
    panels = [("Arguments", [Entry(param.metavar, param.help) for param in arguments])]
    panels += [(name, [Entry(called(one), _said(one)) for one in options if panel_of(one) == name]) for name in PANELS]
    words = [param.metavar for param in arguments]
    if isinstance(command, TyperGroup):
        known = command.commands.items()
        panels.append(("Commands", [Entry(name, one.get_short_help_str(200)) for name, one in known]))
        words.append("COMMAND ...")
    return HelpPage(
        usage=" ".join([ctx.command_path, "[OPTIONS]", *words]),
        paragraphs=tuple(" ".join(part.split()) for part in prose.strip().split("\n\n")),
        examples=tuple(line.strip() for line in examples.splitlines() if line.strip()),
        panels=tuple((title, tuple(entries)) for title, entries in panels if entries),
    )


def panel_of(option: Any) -> str:
    """The panel that an option is in."""
    return GENERAL if option.name == "help" else option.rich_help_panel or OWN


def called(option: Any) -> str:
    """An option's names, short ones first, and the name of its value: -n, --dry-run."""
    value = "" if option.is_flag or option.count or not option.metavar else f" {option.metavar}"
    return ", ".join(sorted(option.opts, key=lambda name: name.startswith("--"))) + value


def _said(option: Any) -> str:
    """The help text of an option, its default if that is meaningful, and its environment variable."""
    text = option.help or ""
    if option.show_default and option.default:
        text += f" [default: {option.default}]"
    if option.envvar:
        text += f" [env: {option.envvar}]"
    return text.replace("[default: ", f"[default:{TIED}").replace("[env: ", f"[env:{TIED}")
