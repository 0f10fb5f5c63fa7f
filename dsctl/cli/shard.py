"""`dsctl shard` and `dsctl merge`: spread a checkpoint over ranks, and put it together again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsctl.cli.convert import (
    AllowExtra,
    AllowMissing,
    Bf16,
    Consume,
    Fp8,
    How,
    NoMtp,
    Recipe,
    ScaleFmt,
    Search,
    ShardSize,
    To,
    Verbose,
    carry_out,
    choose_format,
    choose_rules,
    show_recoded,
    twice,
)  # fmt: skip
from dsctl.cli.options import (
    Address,
    Debug,
    Device,
    DryRun,
    Engine,
    Force,
    Json,
    Local,
    MaxMemory,
    Only,
    Quiet,
    Skip,
    Source,
    Target,
    Workers,
    located,
    parse_size,
)  # fmt: skip
from dsctl.core.errors import UsageError
from dsctl.show.output import Output, plural, size

if TYPE_CHECKING:
    from dsctl.plan.request import Request

MOST_RANKS = 4096


def _ranks(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", metavar="N", min=1, max=MOST_RANKS, help=what)


Layout = Annotated[
    str, typer.Option("--layout", metavar="NAME", help="How ranks keep their parts: docs/layouts.md tells of each.")
]
Tp = Annotated[int | None, _ranks("tp", "Tensor-parallel ranks: cut matrices by rows or columns.")]
Ep = Annotated[int | None, _ranks("ep", "Expert-parallel parts: deal whole experts out.")]
Pp = Annotated[int | None, _ranks("pp", "Pipeline stages: runs of layers.")]
Rank = Annotated[
    str | None, typer.Option("--rank", metavar="N|A-B", help="Write only these ranks, such as 3 or 0-3,8.")
]
ExpertMap = Annotated[
    str | None,
    typer.Option("--expert-map", metavar="FILE", help="Which experts each part holds, as EPLB gives it in JSON."),
]
Recode = Annotated[
    bool, typer.Option("--recode", help="Where a cut goes through blocks, decode and encode anew instead of refusing.")
]
Mtp = Annotated[bool, typer.Option("--mtp", help="Keep the MTP layer in a layout that leaves it out.")]


def shard(
    source: Source,
    target: Target,
    tp: Tp = None,
    ep: Ep = None,
    pp: Pp = None,
    layout: Layout = "hf",
    rank: Rank = None,
    expert_map: ExpertMap = None,
    recode: Recode = False,
    mtp: Mtp = False,
    no_mtp: NoMtp = False,
    to: To = None,
    bf16: Bf16 = False,
    fp8: Fp8 = False,
    recipe: Recipe = None,
    search: Search = False,
    scale_fmt: ScaleFmt = "auto",
    shard_size: ShardSize = None,
    only: Only = None,
    skip: Skip = None,
    allow_missing: AllowMissing = False,
    allow_extra: AllowExtra = False,
    local: Local = False,
    dry_run: DryRun = False,
    workers: Workers = None,
    engine: Engine = "processes",
    address: Address = None,
    device: Device = "cpu",
    max_memory: MaxMemory = None,
    force: Force = False,
    verbose: Verbose = False,
    consume: Consume = 0,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Spread a checkpoint over ranks: every rank's tensors in a folder or file of its own.

    Stored bytes are moved as they are. A cut that would go through blocks is refused before any work, with the sizes
    that fit. SRC may itself be spread over ranks. A killed run is resumed by the same command.

    Examples:

        dsctl shard v3.2 V3.2-tp8 --tp 8 --dry-run

        dsctl shard DeepSeek-V3.2 V3.2-tp2 --tp 2

        dsctl shard DeepSeek-V3.2 V3.2-mp2 --tp 2 --layout deepseek

        dsctl shard DeepSeek-V3.2 V3.2-ep8 --tp 2 --ep 8 --bf16 --dry-run
    """
    from dsctl.layouts import WITHOUT_MTP, usual_ep
    from dsctl.plan.experts import placement
    from dsctl.plan.request import KEEP, RECIPE, Request

    if not any((tp, ep, pp)):
        raise UsageError("over how many ranks?", hint="--tp N, --ep N, --pp N, or several of them")
    if mtp and no_mtp:
        raise UsageError("--mtp and --no-mtp are both asked for", hint="name one")
    if expert_map and (ep or usual_ep(layout, tp or 1)) == 1:
        raise UsageError("--expert-map: one part would have all experts", hint="name the number of parts by --ep N")
    format_, rules = _chosen(to, bf16, fp8, recipe)
    if mtp and layout == "vllm":
        raise UsageError("--mtp: layout vllm has no place for the MTP layer")
    request = Request(
        to=RECIPE if rules else format_ or KEEP,
        rules=rules,
        search=search,
        scale_fmt=scale_fmt,
        layout=layout,
        shard_size=parse_size(shard_size, "--shard-size"),
        only=tuple(only or ()),
        skip=tuple(skip or ()),
        mtp="drop" if no_mtp or (layout in WITHOUT_MTP and not mtp) else "keep",
        allow_missing=allow_missing,
        allow_extra=allow_extra,
        tp=tp or 1,
        ep=ep or usual_ep(layout, tp or 1),
        pp=pp or 1,
        ranks=chosen_ranks(rank),
        recode=recode,
        placed=placement(expert_map) if expert_map else (),
    )
    output, source = Output(json, quiet), located(source, local=local)
    if dry_run and not (rules or only or skip) and _known(source):
        show_outline(request, source, target, output)
        return
    how = How(dry_run, workers, device, max_memory, force, verbose, twice(consume), engine, address)
    carry_out(source, target, request, how, output)


def merge(
    source: Source,
    target: Target,
    layout: Layout = "hf",
    recode: Recode = False,
    to: To = None,
    bf16: Bf16 = False,
    fp8: Fp8 = False,
    recipe: Recipe = None,
    scale_fmt: ScaleFmt = "auto",
    shard_size: ShardSize = None,
    only: Only = None,
    skip: Skip = None,
    no_mtp: NoMtp = False,
    allow_missing: AllowMissing = False,
    allow_extra: AllowExtra = False,
    local: Local = False,
    dry_run: DryRun = False,
    workers: Workers = None,
    engine: Engine = "processes",
    address: Address = None,
    device: Device = "cpu",
    max_memory: MaxMemory = None,
    force: Force = False,
    verbose: Verbose = False,
    consume: Consume = 0,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Put a checkpoint that is spread over ranks together again.

    What several ranks hold is compared; a disagreement is an error that names the parameter and the files. Of what
    `dsctl shard` moved, the merged files are those that it was made from, byte for byte.

    Examples:

        dsctl merge V3.2-tp2 DeepSeek-V3.2-merged

        dsctl merge V3.2-mp2 DeepSeek-V3.2-merged-bf16 --bf16
    """
    from dsctl.plan.request import KEEP, RECIPE, Request

    format_, rules = _chosen(to, bf16, fp8, recipe)
    request = Request(
        to=RECIPE if rules else format_ or KEEP,
        rules=rules,
        scale_fmt=scale_fmt,
        layout=layout,
        shard_size=parse_size(shard_size, "--shard-size"),
        only=tuple(only or ()),
        skip=tuple(skip or ()),
        mtp="drop" if no_mtp else "keep",
        allow_missing=allow_missing,
        allow_extra=allow_extra,
        recode=recode,
    )
    how = How(dry_run, workers, device, max_memory, force, verbose, twice(consume), engine, address)
    carry_out(located(source, local=local), target, request, how, Output(json, quiet))


def _chosen(
    to: str | None, bf16: bool, fp8: bool, recipe: str | None
) -> tuple[str | None, tuple[tuple[str, str, str], ...]]:
    """The format asked for, if any, and a recipe's rules."""
    format_, rules = choose_format(to, bf16, fp8), choose_rules(recipe)
    if rules and format_:
        raise UsageError(f"--recipe and {format_} are both asked for", hint="a recipe names every format itself")
    return format_, rules


def _known(source: str) -> bool:
    """Whether a text names a release, and no folder."""
    from dsctl import releases

    return releases.meant(source) is not None


def show_outline(request: Request, source: str, target: str, output: Output) -> None:
    """Print what spreading a release would write: told from its description, so that nothing is fetched."""
    from rich.table import Table

    from dsctl.look.source import describe
    from dsctl.plan.overview import overview

    described = describe(source)
    found = overview(described.contents, request)
    recoded = sum(kind.parameters for kind in found.recoded)
    counts = {"moved": found.counts["moved"], "converted": found.converted, "recoded": recoded}
    ranks = [
        {"rank": rank, "tensors": found.tensors[rank], "weights_bytes": nbytes} for rank, nbytes in found.nbytes.items()
    ]
    facts: dict[str, Any] = {"source": found.source, "origin": described.origin._asdict(), "target": target}
    facts |= {"request": request.json(), "audit": counts}
    facts |= {"recoded": [kind._asdict() for kind in found.recoded], "ranks": ranks, "legal_tp": list(found.legal)}
    output.data(facts | {"bytes_out": sum(found.nbytes.values())})
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("from", described.origin.text)
    table.add_row("to", f"{target}, layout {request.layout}, TP {request.tp}, EP {request.ep}, PP {request.pp}")
    table.add_row("parameters", f"{sum(counts.values()):,}")
    table.add_row("  moved", f"{found.counts['moved']:,} moved byte for byte")
    if found.converted:
        table.add_row("  converted", f"{found.converted:,} converted to another format")
    table.add_row("  recoded", f"{recoded:,} recoded because of a cut")
    sizes = sorted(found.nbytes.values())
    each = size(sizes[-1]) if sizes[0] == sizes[-1] else f"{size(sizes[0])} to {size(sizes[-1])}"
    table.add_row("write", f"{size(sum(sizes))} of weights on {plural(len(sizes), 'rank')}, {each} each")
    table.add_row("legal TP", f"{', '.join(map(str, found.legal))}: sizes that cut no block")
    output.text(table)
    show_recoded(found.recoded, output)
    output.note("dry run: nothing was written")


def chosen_ranks(text: str | None) -> tuple[int, ...]:
    """Ranks from a text such as 3 or 0-3,8, in order; none where none is given.

    Raises:
        UsageError: it is not of this form.
    """
    found: set[int] = set()
    for part in (text or "").split(",") if text else ():
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else not last)) or len(part) > 11:
            raise UsageError(f"--rank: {text!r} is no list of ranks", hint="write it as 3, 0-7 or 0-3,8")
        low, high = int(first), int(last or first)
        if low > high or high >= MOST_RANKS * 16:
            raise UsageError(f"--rank: {part.strip()!r} names no ranks")
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def add_to(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(shard)
    app.command()(merge)
