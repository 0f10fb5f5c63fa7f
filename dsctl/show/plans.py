"""A plan before it is carried out, as text and as JSON."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dsctl.core.files import existing
from dsctl.plan.plan import Plan, Recoded
from dsctl.plan.request import KEEP, Request
from dsctl.run.speed import Speeds
from dsctl.show.audits import DONE, show_notes, show_partial
from dsctl.show.delivered import delivery_rows
from dsctl.show.output import Output, count, line, plural, size, span
from dsctl.show.tables import two_columns

if TYPE_CHECKING:
    from dsctl.run.carry_out import Setup

# The most omitted parameters that are listed by name.
NAMED = 10


def describe_plan(setup: Setup, speeds: Speeds | None) -> dict[str, Any]:
    """A plan as stable JSON: sizes in bytes, speeds in bytes per second, null if nothing could be measured."""
    plan, resources = setup.plan, setup.resources
    return {
        "source": plan.source,
        "target": setup.target,
        "request": plan.request.json(),
        "roles": role_bytes(plan),
        "audit": plan.counts,
        "dropped": [[item.name, item.why] for item in plan.dropped],
        "recoded": [kind._asdict() for kind in plan.recoded],
        "bytes_in": plan.bytes_in,
        "bytes_out": plan.bytes_out,
        "bytes_free": shutil.disk_usage(existing(setup.folder)).free,
        "files": {file.name: file.size for file in plan.files},
        "carried": plan.carried,
        "jobs": len(plan.jobs),
        "workers": resources.workers,
        "devices": list(setup.chosen.devices),
        "device_reason": setup.chosen.why or None,
        "worker_peak_bytes": resources.worker_bytes,
        "peak_bytes": resources.memory,
        "read_bytes_per_second": speeds and round(speeds.read),
        "write_bytes_per_second": speeds and round(speeds.write),
        "seconds": speeds and round(speeds.seconds(plan, resources.workers), 1),
        "notes": plan.notes,
        **({"lora": plan.merge._asdict()} if plan.merge else {}),
        **({"grafts": plan.grafts} if plan.grafts else {}),
        **({"delivery": setup.delivery.facts} if setup.delivery else {}),
    }


def show_plan(setup: Setup, speeds: Speeds | None, output: Output) -> None:
    """Print a plan, and the time that it may take at these speeds."""
    plan, facts = setup.plan, describe_plan(setup, speeds)
    output.data(facts)
    table = two_columns()
    for name, words in _rows(setup, speeds, facts["bytes_free"]):
        table.add_row(name, words)
    output.text(table)
    show_notes(plan.notes, output)
    show_recoded(plan.recoded, output)
    _show_dropped([item.name for item in plan.dropped], output)
    show_partial(plan.notes, output)
    output.note("dry run: nothing was written")


def _rows(setup: Setup, speeds: Speeds | None, free: int) -> Iterator[tuple[str, Any]]:
    """The rows of a plan's table: a name, and words, some of them styled."""
    plan, resources = setup.plan, setup.resources
    yield "from", plan.source
    yield "to", f"{setup.target}{stored_as(plan.request)}{spread(plan.request)}"
    for role, formats in role_bytes(plan).items() if plan.request.rules else ():
        yield f"  {role}", ", ".join(f"{size(nbytes)} {name}" for name, nbytes in formats.items())
    yield "parameters", f"{plan.counts['parameters']:,} with {count(plan.counts['values'])} values"
    for name, words in DONE.items():
        if plan.counts.get(name):
            yield f"  {name}", f"{plan.counts[name]:,} {words}"
    yield "read", size(plan.bytes_in)
    written = f"{size(plan.bytes_out)} in {plural(len(plan.files), 'file')}"
    if setup.delivery:
        yield "write", written
        yield from delivery_rows(setup.delivery.facts, free)
    else:
        written = f"{written}, {size(free)} free"
        yield "write", written if free >= plan.bytes_out else line(f"{written}, ", ("not enough", "red"))
    carried = plural(len(plan.carried), "other file")
    yield "copy", f"{carried}, {size(sum(plan.carried.values()))}"
    yield "jobs", f"{len(plan.jobs):,} on {plural(resources.workers, 'worker')}"
    yield "peak memory", f"{size(resources.worker_bytes)} per worker, {size(resources.memory)} in all"
    if speeds:
        rates = f"{size(speeds.read)}/s read, {size(speeds.write)}/s written, measured just now"
        yield "time", f"about {span(speeds.seconds(plan, resources.workers))} ({rates})"


def show_recoded(kinds: Iterable[Recoded], output: Output) -> None:
    """Name the parameters that are quantized again because of a cut, by kind."""
    for kind in kinds:
        output.text("  ", ("~", "yellow"), f" {kind.template}: {plural(kind.parameters, 'parameter')}: {kind.why}")


def stored_as(request: Request) -> str:
    """The format, if one is requested."""
    return "" if request.to == KEEP else f" as {request.to}"


def spread(request: Request) -> str:
    """Layout and sizes, if there are ranks."""
    if not request.tp:
        return "" if request.layout == "published" else f", layout {request.layout}"
    return f", layout {request.layout}, TP {request.tp}, EP {request.ep}, PP {request.pp}"


def role_bytes(plan: Plan) -> dict[str, dict[str, int]]:
    """Bytes written by role and format."""
    found: dict[str, dict[str, int]] = {}
    for step in plan.steps:
        formats = found.setdefault(plan.roles.get(step.name, "other"), {})
        name = step.writes[0].codec.name
        stated = sum(len(data) for write in step.writes for data in write.codec.stated(write.container).values())
        formats[name] = formats.get(name, 0) + step.written_bytes + stated
    return found


def _show_dropped(names: Sequence[str], output: Output) -> None:
    for name in names[:NAMED]:
        output.text("  ", ("-", "yellow"), f" {name}")
    if len(names) > NAMED:
        output.text(f"  ... and {len(names) - NAMED:,} more are left out")
