"""The `dsctl` application: its verbs in the order of `--help`, and a verb's file loaded only if the verb is called."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import Annotated

import typer

from dsctl.version import __version__

# Every verb, which is a function of the module of its name, with the first line of that function's docstring.
VERBS = {
    "compare": "Compare the numbers of two checkpoints, in any formats.",
    "convert": "Convert a checkpoint's weights to another format, or give its tensors other names.",
    "diff": "Show what changed between two checkpoints: config, parameters, storage, totals, and what it means.",
    "doctor": "Show versions and devices, measure disk and processor, and tell what this machine converts in an hour.",
    "download": "Download a release or a repository and compare every file with the hub's digests.",
    "slice": "Cut a small working checkpoint from a real one.",
    "formats": "List the formats that --to takes: bits per value, who loads them, on what, and what they lose.",
    "inspect": "Show what a checkpoint is and what it holds, from its headers alone.",
    "models": "List the releases known by name, oldest first.",
    "plan": "Estimate disk, memory per rank and KV cache, and check which sizes of TP, EP and PP are possible.",
    "shard": "Spread a checkpoint over ranks: every rank's tensors in a folder or file of its own.",
    "merge": "Put a checkpoint that is spread over ranks together again.",
    "tiny": "Make a faithful small checkpoint of a release, with random weights.",
    "verify": "Check a checkpoint against its config, its index and its architecture.",
}


def application(loaded: Collection[str] = tuple(VERBS)) -> typer.Typer:
    """The command line, in which these verbs can be called; of all others it knows the name and the help line."""
    app = typer.Typer(
        name="dsctl",
        help="Convert, check and compare the weights of the DeepSeek family.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for verb, line in VERBS.items():
        if verb in loaded:
            app.command(verb)(function(verb))
        else:
            app.command(verb, help=line)(_named)
    return app


def called(words: Sequence[str]) -> Collection[str]:
    """The verbs to load for these words: the one that they call, if any. A shell that completes a line may ask for all.

    No option before the verb has a value of its own, so that the first word without a dash is the verb.
    """
    if "_DSCTL_COMPLETE" in os.environ:
        return tuple(VERBS)
    return [word for word in words if not word.startswith("-")][:1]


def function(verb: str) -> Callable[..., None]:
    """The function of a verb, from its file."""
    return getattr(import_module(f"dsctl.cli.{verb}"), verb)  # type: ignore[no-any-return]


def _named() -> None:
    """What stands for a verb that is named in `--help` and not called."""
    raise AssertionError("a verb that is not loaded was called")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"dsctl {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Convert, check and compare the weights of the DeepSeek family."""
