"""`dsctl convert`, and what every verb that carries out a plan shares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from dsctl.core.errors import LATER, DsctlError, Interrupted, ResumeError, UsageError
from dsctl.show.output import Output, count, line, plural, size, span

if TYPE_CHECKING:
    from dsctl.checkpoint.checkpoint import Checkpoint
    from dsctl.plan.plan import Plan, Recoded
    from dsctl.plan.request import Request
    from dsctl.run.delivery import Delivery
    from dsctl.run.resources import Resources, Speeds
    from dsctl.stores import Store


@dataclass(frozen=True, slots=True)
class How:
    """How a plan is carried out, apart from what it makes."""

    dry_run: bool = False
    workers: int | None = None
    device: str = "cpu"
    max_memory: str | None = None
    force: bool = False
    verbose: bool = False
    consume: bool = False
    engine: str = "processes"
    address: str | None = None


def carry_out(source: str, target: str, request: Request, how: How, output: Output) -> None:
    """Open, plan, show, check, run and report: the way of every verb that writes a checkpoint.

    Raises:
        DsctlError: of every kind; nothing is written where the plan or a check fails.
    """
    from dsctl.checkpoint.opening import open_checkpoint, source_at
    from dsctl.run.consume import beside_others, refuse_link, remembered
    from dsctl.stores.objects import is_url
    from dsctl.stores.places import path_of

    if how.consume:
        refuse_link(path_of(source))
    store, target = source_at(source), path_of(target)
    if is_url(target):
        checkpoint = open_checkpoint(store)
    else:
        store = remembered(store, Path(target), how.force)
        with beside_others(store, Path(target)):
            checkpoint = open_checkpoint(store)
    carry_out_from(checkpoint, target, request, how, output)


def carry_out_from(checkpoint: Checkpoint, target: str, request: Request, how: How, output: Output) -> None:
    """The same from a checkpoint that is open already, or a view of one."""
    from dsctl.plan.planner import make_plan
    from dsctl.run.checks import check_source
    from dsctl.run.delivery import Delivery
    from dsctl.run.resources import allot
    from dsctl.stores.objects import is_url
    from dsctl.stores.places import path_of
    from dsctl.stores.uploads import SENT_BYTES
    from dsctl.work.executors import ENGINES, choose_devices, named_devices
    from dsctl.work.executors.processes import prepare
    from dsctl.work.readahead import WINDOW_BYTES

    store, target = checkpoint.store, path_of(target)
    if how.engine not in ENGINES:
        raise UsageError(f"--engine: {how.engine!r} is unknown", hint=" or ".join(ENGINES))
    if how.address and how.engine != "ray":
        raise UsageError("--address is for --engine ray")
    named_devices(how.device)
    budget = parse_size(how.max_memory, "--max-memory")
    plan = make_plan(checkpoint, request)
    # The nodes of a cluster have processors and memory of their own: what counts is what one task takes.
    resources = allot(
        plan,
        1 if how.engine == "ray" else how.workers,
        budget,
        (WINDOW_BYTES if store.remote else 0) + (SENT_BYTES if is_url(target) else 0),
    )
    delivery = Delivery(target, plan, how.force) if is_url(target) else None
    folder = delivery.folder if delivery else Path(target)
    state = delivery.check(store) if delivery else _look(plan, store, folder, how.force)
    if how.dry_run:
        if not store.remote:
            check_source(plan, store)
        # Only another device than the processor needs torch to be looked for.
        choose_devices(how.device, how.engine)
        show_plan(plan, store, folder, resources, output, target)
        return
    if resources.workers > 1 and state != "complete":
        prepare()
    try:
        audit = _run(plan, store, folder, resources, how, output, delivery, state)
    except Interrupted as interrupted:
        interrupted.hint = "run the same command again: it resumes where it stopped"
        raise
    except DsctlError as error:
        if error.hint == LATER:
            error.hint = f"{LATER}: the same command resumes where it stopped"
        raise
    if state == "complete":
        _refuse_unsound(audit, target)
    warn_of_values(audit, output)
    if output.json:
        output.data(audit)
        return
    if state == "complete":
        _show_found(plan, store, target, how, audit, output)
    show_audit(audit, target, output)


def _show_found(plan: Plan, store: Store, target: str, how: How, audit: dict[str, Any], output: Output) -> None:
    """That there was nothing to do; and that files were kept which someone may think consumed."""
    from dsctl.plan.plan import files_read
    from dsctl.run.consume import gone

    done = "there" if left_out(audit) else "complete"
    output.text(f"{target} is {done} already: the same request made it before")
    if how.consume and any(files_read(job) - gone(store) for job in plan.jobs):
        output.note("--consume deleted nothing: it deletes what a run converts, and this one found nothing to do")


def _look(plan: Plan, store: Store, folder: Path, force: bool) -> str:
    """What carrying the plan out would mean; raises as `dsctl.run.claim.check_target`."""
    from dsctl.run.claim import check_target
    from dsctl.run.consume import beside_others

    with beside_others(store, folder):
        return check_target(plan, store, folder, force)


def _run(
    plan: Plan, store: Store, folder: Path, resources: Resources, how: How, output: Output,
    delivery: Delivery | None, state: str,
) -> dict[str, Any]:  # fmt: skip
    from dsctl.run.delivery import deliver
    from dsctl.run.driver import run
    from dsctl.show.progress import Progress
    from dsctl.work.executors import Executor, choose, choose_devices
    from dsctl.work.tasks import Context

    devices = choose_devices(how.device, how.engine)

    def executor() -> Executor:
        context = Context(store, str(folder), resources.band_bytes, devices)
        asked = how.workers or 0
        each = resources.workers, resources.worker_bytes
        return choose(context, *each, how.engine, how.address or "", asked, output.note)

    with Progress(plan, output, how.verbose) as progress:
        if delivery is None:
            return run(plan, store, folder, executor, progress.report, how.force, how.consume)
        return deliver(delivery, state, executor, store, progress.report, how.consume)


def describe_plan(plan: Plan, folder: Path, resources: Resources, speeds: Speeds | None) -> dict[str, Any]:
    """A plan as stable JSON."""
    import shutil

    from dsctl.core.files import existing

    return {
        "source": plan.source,
        "target": str(folder),
        "request": plan.request.json(),
        "roles": role_bytes(plan),
        "audit": plan.counts,
        "dropped": [[item.name, item.why] for item in plan.dropped],
        "recoded": [kind._asdict() for kind in plan.recoded],
        "bytes_in": plan.bytes_in,
        "bytes_out": plan.bytes_out,
        "bytes_free": shutil.disk_usage(existing(folder)).free,
        "files": {file.name: file.size for file in plan.files},
        "carried": plan.carried,
        "jobs": len(plan.jobs),
        "workers": resources.workers,
        "worker_peak_bytes": resources.worker_bytes,
        "peak_bytes": resources.memory,
        "read_bytes_per_second": speeds and round(speeds.read),
        "write_bytes_per_second": speeds and round(speeds.write),
        "seconds": speeds and round(speeds.seconds(plan, resources.workers), 1),
        "notes": plan.notes,
    }


_WORDS = (
    ("dequantized", "decoded from a quantized format"),
    ("quantized", "encoded into a quantized format"),
    ("requantized", "decoded and encoded again"),
    ("cast", "cast to another float dtype"),
    ("moved", "moved byte for byte"),
    ("dropped", "left out"),
)


def show_plan(plan: Plan, store: Store, folder: Path, resources: Resources, output: Output, target: str = "") -> None:
    """Print what a plan would do; `target` is what a person calls the folder where that is another name."""
    from rich.table import Table

    from dsctl.run.resources import probe

    speeds = probe(plan, store, folder)
    facts = describe_plan(plan, folder, resources, speeds) | ({"target": target} if target else {})
    output.data(facts)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("from", plan.source)
    table.add_row("to", f"{target or folder}{stored_as(plan.request)}{spread(plan.request)}")
    _add_roles(plan, table)
    table.add_row("parameters", f"{plan.counts['parameters']:,} with {count(plan.counts['values'])} values")
    for name, words in _WORDS:
        if plan.counts[name]:
            table.add_row(f"  {name}", f"{plan.counts[name]:,} {words}")
    table.add_row("read", size(plan.bytes_in))
    written = f"{size(plan.bytes_out)} in {plural(len(plan.files), 'file')}, {size(facts['bytes_free'])} free"
    enough = facts["bytes_free"] >= plan.bytes_out
    table.add_row("write", written if enough else line(f"{written}, ", ("too little", "red")))
    carried = plural(len(plan.carried), "other file")
    table.add_row("carried over", f"{carried}, {size(sum(plan.carried.values()))}")
    table.add_row("jobs", f"{len(plan.jobs):,} on {plural(resources.workers, 'worker')}")
    each = f"{size(resources.worker_bytes)} per worker, {size(resources.memory)} in all"
    table.add_row("peak memory", each)
    if speeds:
        rates = f"{size(speeds.read)}/s read, {size(speeds.write)}/s written, measured just now"
        table.add_row("time", f"about {span(speeds.seconds(plan, resources.workers))} ({rates})")
    output.text(table)
    for note in plan.notes:
        output.text(f"note: {note}")
    show_recoded(plan.recoded, output)
    _show_dropped([item.name for item in plan.dropped], output)
    output.note("dry run: nothing was written")


def show_recoded(kinds: Iterable[Recoded], output: Output) -> None:
    """Name what is recoded because of a cut, kind by kind."""
    for kind in kinds:
        output.text("  ", ("~", "yellow"), f" {kind.template}: {plural(kind.parameters, 'parameter')}: {kind.why}")


def stored_as(request: Request) -> str:
    """The format, where one is asked for."""
    from dsctl.plan.request import KEEP

    return "" if request.to == KEEP else f" as {request.to}"


def spread(request: Request) -> str:
    """Layout and sizes where there are ranks."""
    if not request.tp:
        return "" if request.layout == "hf" else f", layout {request.layout}"
    return f", layout {request.layout}, TP {request.tp}, EP {request.ep}, PP {request.pp}"


def _add_roles(plan: Plan, table: Any) -> None:
    """Under a recipe: what each role is stored as, and its bytes."""
    for role, formats in role_bytes(plan).items() if plan.request.rules else ():
        table.add_row(f"  {role}", ", ".join(f"{size(nbytes)} {name}" for name, nbytes in formats.items()))


def role_bytes(plan: Plan) -> dict[str, dict[str, int]]:
    """Bytes written by role and format."""
    found: dict[str, dict[str, int]] = {}
    for step in plan.steps:
        formats = found.setdefault(plan.roles.get(step.name, "other"), {})
        name = step.writes[0].codec.name
        stated = sum(len(data) for write in step.writes for data in write.codec.stated(write.container).values())
        formats[name] = formats.get(name, 0) + step.written_bytes + stated
    return found


def _show_dropped(names: list[str], output: Output, limit: int = 10) -> None:
    for name in names[:limit]:
        output.text("  ", ("-", "yellow"), f" {name}")
    if len(names) > limit:
        output.text(f"  ... and {len(names) - limit:,} more are left out")


def _refuse_unsound(audit: dict[str, Any], target: str) -> None:
    """Refuse a signature that was read from a folder and lacks what is told of it.

    Raises:
        ResumeError: it does.
    """
    counts, notes = audit.get("audit"), audit.get("notes")
    needed = ("parameters", "values", "unexplained", *(name for name, _ in _WORDS))
    if not isinstance(counts, dict) or not all(type(counts.get(name)) is int for name in (*needed, *counts)):
        what = "its audit is not the numbers that dsctl writes"
    elif not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
        what = "its notes are not a list of texts"
    else:
        return
    raise ResumeError(f"{target}/dsctl.json: is not valid: {what}", hint="start over with --force")


def warn_of_values(audit: dict[str, Any], output: Output) -> None:
    """Tell of decoded values that are not finite."""
    from dsctl.work.tasks import INFINITE, NAN

    for name, what in ((NAN, "not a number"), (INFINITE, "infinite")):
        if number := audit["audit"].get(name):
            there = "is" if number == 1 else "are"
            output.warn(f"{plural(number, 'decoded value')} {there} {what}: `dsctl verify --deep` names them")


def show_audit(audit: dict[str, Any], target: str, output: Output) -> None:
    """Print the audit that `dsctl.json` keeps."""
    from dsctl.work.tasks import WORST

    counts = audit["audit"]
    said = [f"{counts[name]:,} {name}" for name, _ in _WORDS if counts[name]]
    blocks = [
        f"{counts[name]:,} {words}"
        for name, words in (
            ("blocks_restored", "blocks with their kept scale"),
            ("blocks_computed", "blocks with a new scale"),
        )
        if counts.get(name)
    ]
    values = f"{counts['parameters']:,} parameters, {counts['values']:,} values"
    output.text(("audit", "bold"), f": {values}: {', '.join(said)}; {counts['unexplained']} unexplained")
    if blocks:
        output.text(f"scales: {', '.join(blocks)}")
    if WORST in counts:
        error = f"{counts[WORST]:,} millionths of the largest value of its part"
        output.text(f"recoded because of a cut: the value furthest from what it was is off by {error}")
    for note in audit["notes"]:
        output.text(f"note: {note}")
    total = sum(file["size"] for file in audit["files"].values())
    left = left_out(audit)
    how = ("in part", "yellow") if left else ("complete", "green")
    files = f"{plural(len(audit['files']), 'file')}, {size(total)} in {target} (digests in dsctl.json)"
    output.text(how, f": {files}" + (f"; left out: {left}" if left else ""))


def left_out(audit: dict[str, Any]) -> str:
    """What a result does not hold of its source: parameters by why, and ranks; empty where it holds all of it."""
    from dsctl.layouts.ranks import Ranks

    why = Counter(why for _, why in audit["dropped"])
    left = [f"{plural(number, 'parameter')} ({what})" for what, number in why.items()]
    request = audit["request"]
    world = Ranks(request["tp"], request["ep"], request["pp"]).world
    if request["ranks"] and len(request["ranks"]) < world:
        left.append(f"{world - len(request['ranks']):,} of {world:,} ranks")
    return ", ".join(left)


def choose_rules(recipe: str | None) -> tuple[tuple[str, str, str], ...]:
    """The rules of --recipe, a ready one or a file.

    Raises:
        UsageError: there is none of this name, or the file is no recipe.
    """
    from dsctl.plan import recipes

    return tuple([(rule.role, rule.match, rule.format) for rule in recipes.recipe(recipe).rules]) if recipe else ()


def choose_format(to: str | None, bf16: bool, fp8: bool) -> str | None:
    """One format from --to and its shorthands.

    Raises:
        UsageError: more than one, or an unknown one.
    """
    from dsctl.codecs import CODECS

    chosen = [name for name, asked in (("bf16", bf16), ("fp8-block", fp8), (to or "", bool(to))) if asked]
    if len(set(chosen)) > 1:
        raise UsageError(f"several formats asked for: {', '.join(chosen)}", hint="name one")
    if not chosen:
        return None
    name = {"fp8": "fp8-block", "fp16": "f16", "fp32": "f32"}.get(chosen[0], chosen[0])
    if name not in CODECS:
        raise UsageError(f"--to: unknown format {name!r}", hint=f"known: {', '.join(CODECS)}")
    return name


def twice(consume: int) -> bool:
    """Whether the source shall be consumed.

    Raises:
        UsageError: it was asked for once only.
    """
    if consume == 1:
        raise UsageError("--consume removes the source's weight files for good", hint="if so, give it twice")
    return consume > 1


Bf16 = Annotated[bool, typer.Option("--bf16", help="Short for --to bf16.")]
Fp8 = Annotated[bool, typer.Option("--fp8", help="Short for --to fp8-block.")]
To = Annotated[
    str | None,
    typer.Option("--to", metavar="FORMAT", help="bf16, fp8-block, int4-group, nvfp4, ...: dsctl formats lists them."),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="Formats by role and name, from a TOML file or a ready one: dsctl formats lists them.",
    ),
]
Search = Annotated[
    bool, typer.Option("--search", help="Choose the scales of four-bit formats by least squared error: slower.")
]
ScaleFmt = Annotated[
    str,
    typer.Option(
        "--scale-fmt",
        metavar="auto|float32|ue8m0",
        help="How FP8 scales are chosen: any float, or powers of two (V3.1 and later).",
    ),
]
ShardSize = Annotated[
    str | None,
    typer.Option("--shard-size", metavar="SIZE", help="Regroup tensors into files of at most this size, such as 5GB."),
]
NoMtp = Annotated[bool, typer.Option("--no-mtp", help="Drop the multi-token-prediction layer.")]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Go on although tensors are missing.")]
AllowExtra = Annotated[
    bool, typer.Option("--allow-extra", help="Carry over tensors that the architecture does not have.")
]
NoKeep = Annotated[
    bool, typer.Option("--no-keep-scales", help="Do not keep the original scales beside decoded weights.")
]
Consume = Annotated[
    int,
    typer.Option(
        "--consume",
        count=True,
        help="Remove each source file once all that is made of it is safe. There is no way back: give it twice.",
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="A line per finished file.")]


def convert(
    source: Source,
    target: Target,
    to: To = None,
    bf16: Bf16 = False,
    fp8: Fp8 = False,
    recipe: Recipe = None,
    search: Search = False,
    scale_fmt: ScaleFmt = "auto",
    shard_size: ShardSize = None,
    only: Only = None,
    skip: Skip = None,
    no_mtp: NoMtp = False,
    allow_missing: AllowMissing = False,
    allow_extra: AllowExtra = False,
    no_keep_scales: NoKeep = False,
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
    """Convert a checkpoint's weights to another format.

    What the release leaves unquantized stays as it is; config, index and every other file are carried over and made
    true. A killed run is resumed by the same command.

    Examples:

        dsctl convert DeepSeek-V3.2 V3.2-bf16 --bf16

        dsctl convert V3.2-bf16 V3.2-fp8 --fp8

        dsctl convert DeepSeek-V3.2 V3.2-int4 --recipe w4a8-experts --search

        dsctl convert DeepSeek-V3.2 first-layers --bf16 --only 'model.layers.0.*' --dry-run
    """
    from dsctl.plan.request import RECIPE, Request

    format_, rules = choose_format(to, bf16, fp8), choose_rules(recipe)
    if rules and format_:
        raise UsageError(f"--recipe and {format_} are both asked for", hint="a recipe names every format itself")
    if format_ is None and not rules:
        raise UsageError("no target format", hint="--bf16, --fp8, --to FORMAT or --recipe NAME")
    request = Request(
        to=format_ or RECIPE,
        rules=rules,
        search=search,
        scale_fmt=scale_fmt,
        shard_size=parse_size(shard_size, "--shard-size"),
        only=tuple(only or ()),
        skip=tuple(skip or ()),
        mtp="drop" if no_mtp else "keep",
        allow_missing=allow_missing,
        allow_extra=allow_extra,
        keep_scales=not no_keep_scales,
    )
    how = How(dry_run, workers, device, max_memory, force, verbose, twice(consume), engine, address)
    carry_out(located(source, local=local), target, request, how, Output(json, quiet))


def add_to(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(convert)
