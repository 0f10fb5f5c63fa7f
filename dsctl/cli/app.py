"""The `dsctl` application: its verbs in the order of `--help`, and a verb's file loaded only if the verb is called."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from dsctl.cli import completion
from dsctl.cli.commands import Actions, Verb, Verbs
from dsctl.core.errors import UsageError
from dsctl.version import __version__

# The verbs with the first lines of their docstrings. Each verb is a function in the module with its name.
VERBS = {
    "card": "Print a stub of a model card for a folder that dsctl made.",
    "compare": "Compare the values of two checkpoints, in any formats.",
    "convert": "Convert a checkpoint to another format, or rename its tensors.",
    "delta": "Make a delta of two checkpoints, apply it, check it, or fold several into one.",
    "diff": "Show what changed between two checkpoints: config, parameters, storage, totals, and what it means.",
    "doctor": "Measure this machine and estimate how much it converts in an hour.",
    "download": "Download a release or a repository and verify the hash of every file.",
    "slice": "Cut a small working checkpoint out of a large one, or prune experts by a plan.",
    "graft": "Copy parameters of other checkpoints into a checkpoint, in the place of its own.",
    "formats": "List the formats of --to: bits per value, loaders, hardware and loss.",
    "inspect": "Show the contents of a checkpoint, from its headers alone.",
    "models": "List the releases known by name, oldest first.",
    "plan": "Estimate disk, memory per rank and KV cache, and check which sizes of TP, EP and PP are possible.",
    "shard": "Split a checkpoint into tensor-, expert- and pipeline-parallel ranks.",
    "merge": "Merge sharded ranks into one checkpoint.",
    "upload": "Upload a finished folder to a repository on a hub.",
    "tiny": "Make a small checkpoint of a release, with random weights.",
    "verify": "Check a checkpoint against its config, its index and its architecture.",
}
# Verbs with actions of their own, each a function in the verb's module.
ACTIONS = {"delta": ("make", "apply", "verify", "fold")}
# Words that ask about dsctl itself; they are not verbs.
ASKED = {
    "help": "Show the help of a command, or this page.",
    "version": "Print the version.",
}


def application(loaded: Collection[str] = tuple(VERBS)) -> typer.Typer:
    """The command line, in which these verbs can be called; of all others it knows the name and the help line."""
    app = typer.Typer(
        name="dsctl",
        cls=Verbs,
        help="Convert, check and compare the weights of the DeepSeek family.",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for verb, line in VERBS.items():
        if verb not in loaded:
            app.command(verb, cls=Verb, help=line)(_named)
        elif verb in ACTIONS:
            app.add_typer(_group(verb), name=verb)
        else:
            app.command(verb, cls=Verb)(function(verb))
    app.command("help", cls=Verb)(_help)
    app.command("version", cls=Verb)(_version)
    return app


def _group(verb: str) -> typer.Typer:
    """The actions of a verb."""
    group = typer.Typer(cls=Actions, context_settings={"help_option_names": ["-h", "--help"]})
    group.callback()(function(verb))
    for action, function_ in actions(verb).items():
        group.command(action.removeprefix(f"{verb} "), cls=Verb)(function_)
    return group


def actions(verb: str) -> dict[str, Callable[..., None]]:
    """The functions that a verb stands for, by the words that call them: its own, or those of its actions."""
    if verb not in ACTIONS:
        return {verb: function(verb)}
    module = import_module(f"dsctl.cli.{verb}")
    return {f"{verb} {action}": getattr(module, action) for action in ACTIONS[verb]}


def called(words: Sequence[str]) -> Collection[str]:
    """The verbs to load for these words: the one that they call, or whose help they ask for, if any.

    No option before the verb has a value of its own, so that the first word without a dash is the verb. A shell that
    completes a line gives its words in the environment.
    """
    if "_DSCTL_COMPLETE" in os.environ:
        words = (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or "").split()[1:]
    named = [word for word in words if not word.startswith("-")]
    return [word for word in (named[1:2] if named[:1] == ["help"] else named[:1]) if word in VERBS]


def function(verb: str) -> Callable[..., None]:
    """The function of a verb, from its file."""
    return getattr(import_module(f"dsctl.cli.{verb}"), verb)  # type: ignore[no-any-return]


def _named() -> None:
    """Represent a verb that `--help` lists and that is not called."""
    raise AssertionError("a verb that is not loaded was called")


def _help(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COMMAND ...]", help="A command.", autocompletion=completion.commands),
    ] = None,
) -> None:
    """Show the help of a command, or this page.

    Examples:

        dsctl help

        dsctl help convert

        dsctl help delta make
    """
    asked: Any = ctx.find_root()
    for word in words or ():
        if not hasattr(asked.command, "resolve_command"):
            raise UsageError(f"help: {word!r} is not a command of {asked.command_path}")
        name, command, _ = asked.command.resolve_command(asked, [word])
        asked = command.make_context(name, [], parent=asked, resilient_parsing=True)
    asked.get_help()


def _version() -> None:
    """Print the version.

    Examples:

        dsctl version
    """
    typer.echo(f"dsctl {__version__}")


def _print_version(asked: bool) -> None:
    if asked:
        _version()
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Convert, check and compare the weights of the DeepSeek family."""
