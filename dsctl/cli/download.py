"""`dsctl download` and `dsctl slice`: a release from the hub, whole, in part, or cut small."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsctl.cli.options import (
    Debug,
    DryRun,
    Force,
    Json,
    Local,
    Only,
    Quiet,
    Source,
    Target,
    Workers,
    located,
    repository_of,
)  # fmt: skip
from dsctl.core.errors import LATER, DsctlError, Interrupted, UsageError
from dsctl.show.output import Output, plural, size

if TYPE_CHECKING:
    from dsctl.stores.download import CheckedFile, Order

MAX_NUMBER = 1 << 16
SECONDS_BETWEEN_LINES = 15.0

What = Annotated[str, typer.Argument(metavar="RELEASE|REPOSITORY", help="A release, or org/name[@revision].")]
Into = Annotated[str | None, typer.Argument(metavar="[DST]", help="The folder to write. [default: the hub's cache]")]
Include = Annotated[
    list[str] | None, typer.Option("--include", metavar="GLOB", help="Only files whose name matches; repeatable.")
]
Exclude = Annotated[
    list[str] | None, typer.Option("--exclude", metavar="GLOB", help="Leave out files that match; repeatable.")
]
Layers = Annotated[
    str | None, typer.Option("--layers", metavar="NUMBERS", help="Only tensors of these layers, such as 0-3,61.")
]
Experts = Annotated[
    str | None, typer.Option("--experts", metavar="NUMBERS", help="Of routed experts only these, such as 0-7.")
]
VerifyOnly = Annotated[bool, typer.Option("--verify-only", help="Check what is there already, download nothing.")]
KeptLayers = Annotated[
    str | None, typer.Option("--layers", metavar="NUMBERS", help="Layers to keep, such as 0-4,mtp. [default: all]")
]
KeptExperts = Annotated[
    str | None,
    typer.Option("--experts", metavar="N|NUMBERS", help="How many experts, or which: 8 or 0-3,16-19. [default: all]"),
]
To = Annotated[str, typer.Option("--to", metavar="FORMAT", help="Another format on the way, such as bf16.")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Short for --to bf16.")]


def numbers(text: str | None, option: str) -> tuple[int, ...]:
    """0-3,61 as 0, 1, 2, 3, 61.

    Raises:
        UsageError: it is not such a list.
    """
    found: list[int] = []
    for part in text.split(",") if text is not None else ():
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or not (last.isdecimal() if dash else True):
            raise UsageError(f"{option}: {text!r} is not a list of numbers", hint="write it as 0-3,61")
        begin, end = int(first), int(last or first)
        if not begin <= end < MAX_NUMBER:
            raise UsageError(f"{option}: {part.strip()} is not a range of numbers")
        found += range(begin, end + 1)
    return tuple(sorted(set(found)))


def download(
    what: What,
    target: Into = None,
    include: Include = None,
    exclude: Exclude = None,
    layers: Layers = None,
    experts: Experts = None,
    only: Only = None,
    dry_run: DryRun = False,
    verify_only: VerifyOnly = False,
    workers: Workers = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Download a release or a repository and compare every file with the hub's digests.

    With --layers, --experts or --only, just those tensors are read, by byte ranges, and written as a small checkpoint
    with index and config. The hub, its token and its cache are huggingface_hub's (HF_ENDPOINT, HF_TOKEN, HF_HOME).

    Examples:

        dsctl download v3.2 DeepSeek-V3.2

        dsctl download v3.2 indexers --only '*indexer*' --dry-run

        dsctl download deepseek-ai/DeepSeek-V3.2 --verify-only
    """
    from dsctl.stores.hub import show_progress

    output = Output(json, quiet)
    repository = repository_of(what)
    show_progress(output.err.is_terminal and not quiet and not dry_run)
    if layers or experts or only:
        if include or exclude or verify_only:
            raise UsageError("tensors and files cannot be chosen together", hint="leave --include and --exclude out")
        _part(repository, target, layers, experts, only, dry_run, workers, force, output)
        return
    _whole(repository, target, tuple(include or ()), tuple(exclude or ()), dry_run, verify_only, output)


def _part(
    repository: str,
    target: str | None,
    layers: str | None,
    experts: str | None,
    only: list[str] | None,
    dry_run: bool,
    workers: int | None,
    force: bool,
    output: Output,
) -> None:
    from dsctl.cli.convert import How, carry_out
    from dsctl.plan.request import KEEP, Request

    if target is None:
        raise UsageError("part of a checkpoint needs a folder of its own", hint="name one after the repository")
    chosen = numbers(layers, "--layers"), numbers(experts, "--experts")
    request = Request(to=KEEP, only=tuple(only or ()), layers=chosen[0], experts=chosen[1])
    carry_out(repository, target, request, How(dry_run, workers, force=force), output)


def _whole(
    repository: str,
    target: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    dry_run: bool,
    verify_only: bool,
    output: Output,
) -> None:
    from dsctl.stores.download import download, order, verify

    asked = order(repository, Path(target) if target else None, include, exclude)
    if dry_run:
        _show_order(asked, output)
        return
    missing = asked.lacking
    if missing and not verify_only:
        output.note(
            f"{asked.repository.place}: {size(sum(f.size for f in missing))} in {plural(len(missing), 'file')} "
            f"to download, {plural(len(asked.files) - len(missing), 'file')} to check"
        )
    try:
        found = (verify if verify_only else download)(asked, _Lines(asked, output).report)
    except Interrupted as interrupted:
        interrupted.hint = "run the same command again: it goes on where it stopped"
        raise
    except DsctlError as error:
        if error.hint == LATER:
            error.hint = f"{LATER}: the same command goes on where it stopped"
        raise
    output.data(_facts(asked) | {"verified": {file.name: file.digest for file in found}})
    digests = plural(len(found), "file") + " as the hub lists " + ("it" if len(found) == 1 else "them")
    output.text(("verified", "green"), f": {digests}, {size(asked.nbytes)} in {asked.place}")


class _Lines:
    """A line on stderr now and then."""

    def __init__(self, order: Order, output: Output) -> None:
        self._order, self._output = order, output
        self._files = self._bytes = 0
        self._said = time.monotonic()

    def report(self, checked: CheckedFile) -> None:
        self._files, self._bytes = self._files + 1, self._bytes + checked.size
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            of = f"{len(self._order.files):,} files, {size(self._bytes)} of {size(self._order.nbytes)}"
            self._output.note(f"downloaded and verified: {self._files:,} of {of}")


def _facts(order: Order) -> dict[str, Any]:
    return {
        "repository": order.repository.repository,
        "commit": order.repository.commit,
        "folder": str(order.place),
        "bytes": order.nbytes,
        "lacking": sum(listed.size for listed in order.lacking),
        "files": {listed.name: listed.size for listed in order.files},
    }


def _show_order(order: Order, output: Output) -> None:
    from rich.table import Table

    output.data(_facts(order))
    lacking = set(order.lacking)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column()
    for listed in order.files:
        table.add_row(size(listed.size), listed.name, "" if listed in lacking else "there")
    output.text(table)
    total = f"{size(order.nbytes)} in {plural(len(order.files), 'file')} of {order.repository.place}"
    output.text(f"{total}, {size(sum(listed.size for listed in lacking))} to download into {order.place}")
    output.note("dry run: nothing was downloaded")


def slice_(
    source: Source,
    target: Target,
    layers: KeptLayers = None,
    experts: KeptExperts = None,
    to: To = "keep",
    bf16: Bf16 = False,
    local: Local = False,
    dry_run: DryRun = False,
    workers: Workers = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Cut a small working checkpoint from a real one.

    Layers are renumbered, the router keeps the rows of the kept experts, config and index are made to match. From a
    hub only the bytes that are kept are read.

    Examples:

        dsctl slice deepseek-ai/DeepSeek-V3.2 small --layers 0-4,mtp --experts 8

        dsctl slice DeepSeek-V3.2 first-layers --layers 0-3 --bf16
    """
    from dsctl.checkpoint.opening import open_checkpoint, source_at
    from dsctl.checkpoint.slice import cut_of, sliced
    from dsctl.cli.convert import How, carry_out_from, choose_format
    from dsctl.plan.request import KEEP, Request

    words = [word.strip() for word in layers.split(",")] if layers else []
    plain = ",".join(word for word in words if word != "mtp")
    count = experts is not None and experts.strip().isdecimal()
    kept = tuple(range(int(experts or 0))) if count else numbers(experts, "--experts")
    if experts is not None and not kept:
        raise UsageError("--experts: none would be left")
    format_ = choose_format(None if to == KEEP else to, bf16, False) or KEEP
    checkpoint = open_checkpoint(source_at(located(source, local=local)))
    cut = cut_of(checkpoint, numbers(plain or None, "--layers"), "mtp" in words, kept)
    request = Request(to=format_, shard_size=5 * 10**9, keep_scales=False, slice=str(cut))
    how = How(dry_run, workers, force=force)
    carry_out_from(sliced(checkpoint, cut), target, request, how, Output(json, quiet))


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(download)
    app.command(name="slice")(slice_)
