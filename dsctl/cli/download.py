"""`dsctl download`: download a release from the Hub, whole or in part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsctl.checkpoint.names import repository_of
from dsctl.cli import completion
from dsctl.cli.commands import RUNNING, WHICH
from dsctl.cli.groups import PrintOptions, RunOptions, verb
from dsctl.cli.hints import resumable
from dsctl.cli.options import DryRun, Force, Only, Workers, parse_numbers
from dsctl.core.errors import UsageError
from dsctl.plan.request import KEEP, Request
from dsctl.show.orders import Lines, as_json, show_order
from dsctl.show.output import Output, plural, size
from dsctl.stores.download import Order, order
from dsctl.stores.download import download as downloaded
from dsctl.stores.download import verify as verified
from dsctl.stores.hub import show_progress

What = Annotated[
    str,
    typer.Argument(
        metavar="RELEASE|REPOSITORY",
        autocompletion=completion.repositories,
        help="A release, or org/name[@revision].",
    ),
]
Into = Annotated[
    str | None, typer.Argument(metavar="[DST]", help="The folder to write; the Hub's cache if you name none.")
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include", metavar="GLOB", help="Download only files whose name matches; repeatable.", rich_help_panel=WHICH
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="GLOB", help="Leave out files whose name matches; repeatable.", rich_help_panel=WHICH
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="NUMBERS",
        help="Download only tensors of these layers, such as 0-3,61.",
        rich_help_panel=WHICH,
    ),
]
Experts = Annotated[
    str | None,
    typer.Option(
        "--experts", metavar="NUMBERS", help="Download only these routed experts, such as 0-7.", rich_help_panel=WHICH
    ),
]
VerifyOnly = Annotated[
    bool,
    typer.Option("--verify-only", help="Check the files that are there and download nothing.", rich_help_panel=RUNNING),
]


@verb
def download(
    what: What,
    target: Into = None,
    *,
    include: Include = None,
    exclude: Exclude = None,
    layers: Layers = None,
    experts: Experts = None,
    only: Only = None,
    dry_run: DryRun = False,
    verify_only: VerifyOnly = False,
    workers: Workers = None,
    force: Force = False,
    printing: PrintOptions,
) -> None:
    """Download a release or a repository and verify the hash of every file.

    With --layers, --experts or --only, only those tensors are downloaded, by byte ranges, and written as a small
    checkpoint with index and config. huggingface_hub's settings apply: HF_ENDPOINT, HF_TOKEN and HF_HOME.

    Examples:

        dsctl download v3.2 DeepSeek-V3.2

        dsctl download v3.2 indexers --only '*indexer*' --dry-run

        dsctl download deepseek-ai/DeepSeek-V3.2 --verify-only
    """
    output, repository = printing.output(), repository_of(what)
    show_progress(output.has_bar and not dry_run)
    if layers or experts or only:
        if include or exclude or verify_only:
            raise UsageError(
                "tensors and files cannot be chosen together", hint="leave out --include, --exclude and --verify-only"
            )
        chosen = parse_numbers(layers, "--layers"), parse_numbers(experts, "--experts")
        request = Request(to=KEEP, only=tuple(only or ()), layers=chosen[0], experts=chosen[1])
        _part(repository, target, request, RunOptions(dry_run=dry_run, workers=workers, force=force), output)
        return
    asked = order(repository, Path(target) if target else None, tuple(include or ()), tuple(exclude or ()))
    if dry_run:
        show_order(asked, output)
    else:
        _whole(asked, verify_only, output)


def _part(repository: str, target: str | None, request: Request, run: RunOptions, output: Output) -> None:
    """Download tensors: a conversion that copies them unchanged."""
    # Loaded late: downloading files does not need it, and it takes longer than `--help` itself.
    from dsctl.cli.conversion import convert_to

    if target is None:
        raise UsageError("a part of a checkpoint needs a target folder", hint="name the folder after the repository")
    convert_to(repository, target, request, run, output)


def _whole(asked: Order, verify_only: bool, output: Output) -> None:
    """Download files and compare them with the hub's digests."""
    missing = asked.lacking
    if missing and not verify_only:
        output.note(
            f"{asked.repository.place}: {size(sum(f.size for f in missing))} in {plural(len(missing), 'file')} "
            f"to download, {plural(len(asked.files) - len(missing), 'file')} to verify"
        )
    with resumable("continues where it stopped"):
        found = (verified if verify_only else downloaded)(asked, Lines(asked, output).report)
    output.data(as_json(asked) | {"verified": {file.name: file.digest for file in found}})
    match = "matches" if len(found) == 1 else "match"
    files = f"{plural(len(found), 'file')} {match} the Hub's hashes"
    output.text(("verified", "green"), f": {files}, {size(asked.nbytes)} in {asked.place}")
