"""The `dsctl` application: its verbs, in the order of `--help`."""

from __future__ import annotations

from typing import Annotated

import typer

from dsctl.cli import compare, convert, diff, doctor, download, formats, look, models, plan, shard, tiny, verify
from dsctl.version import __version__

app = typer.Typer(
    name="dsctl",
    help="Convert, check and compare the weights of the DeepSeek family.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"dsctl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Convert, check and compare the weights of the DeepSeek family."""


for group in (compare, convert, diff, doctor, download, formats, look, models, plan, shard, tiny, verify):
    group.add_to(app)
