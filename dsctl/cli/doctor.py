"""`dsctl doctor`: what this machine has and what it can convert in an hour."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsctl.cli.options import Debug, Json, Quiet
from dsctl.show.output import Output, plural, size, span

if TYPE_CHECKING:
    from dsctl.run.doctor import Machine

Folder = Annotated[str, typer.Argument(metavar="[FOLDER]", help="Whose disk to measure. [default: this folder]")]
NoHub = Annotated[bool, typer.Option("--no-hub", help="Do not ask whether the hub can be reached.")]
# What is told of: a whole release, by its bytes as published.
EXAMPLE = "v3.2"


def doctor(
    folder: Folder = ".", no_hub: NoHub = False, json: Json = False, quiet: Quiet = False, debug: Debug = False
) -> None:
    """Show versions and devices, measure disk and processor, and tell what this machine converts in an hour.

    Takes some seconds: the codecs run, and up to 256 MB are written to the folder, synced, read back and removed.

    Examples:

        dsctl doctor

        dsctl doctor /dev/shm --no-hub --json
    """
    from dsctl.run.doctor import examine

    output = Output(json, quiet)
    machine = examine(Path(folder), not no_hub)
    output.data(as_json(machine))
    _show(machine, output)


def as_json(machine: Machine) -> dict[str, Any]:
    """What was found as stable JSON: bytes, and bytes per second; null where not asked or not installed."""
    from dsctl.version import __version__

    hub = machine.hub
    return {
        "dsctl": __version__,
        "python": machine.python,
        "system": machine.system,
        "packages": machine.packages,
        "cores": machine.cores,
        "memory": machine.memory,
        "devices": list(machine.devices),
        "core_bytes_per_second": {key: round(value) for key, value in machine.processor._asdict().items()},
        "disk": {
            "folder": machine.disk.folder,
            "free": machine.disk.free,
            "write_bytes_per_second": round(machine.disk.write),
            "read_bytes_per_second": round(machine.disk.read),
        },
        "hub": hub and {"endpoint": hub.endpoint, "reached": hub.reached, "why": hub.why, "token": hub.token},
        "source_bytes_per_hour": {
            "fp8_to_bf16": round(machine.per_hour(True)[0]),
            "bf16_to_fp8": round(machine.per_hour(False)[0]),
        },
        "held_by": {"fp8_to_bf16": machine.per_hour(True)[1], "bf16_to_fp8": machine.per_hour(False)[1]},
    }


def _show(machine: Machine, output: Output) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, said in _rows(machine):
        table.add_row(name, said)
    output.text(table)


def _rows(machine: Machine) -> list[tuple[str, str]]:
    from dsctl.version import __version__

    installed = [f"{name} {found}" for name, found in machine.packages.items() if found]
    lacking = [name for name, found in machine.packages.items() if not found]
    disk, core = machine.disk, machine.processor
    rows = [
        ("dsctl", f"{__version__}, Python {machine.python}, {machine.system}"),
        ("packages", ", ".join(installed)),
        ("not installed", ", ".join(lacking) or "nothing"),
        ("machine", f"{plural(machine.cores, 'core')}, {size(machine.memory)} of memory"),
        ("devices", ", ".join(machine.devices) or "no CUDA device: everything runs on the processor"),
        (
            "one core",
            f"{size(core.decode)}/s FP8 decoded, {size(core.encode)}/s BF16 encoded, {size(core.sha256)}/s hashed",
        ),
        ("disk", f"{disk.folder}: {size(disk.free)} free, {size(disk.write)}/s written, {size(disk.read)}/s read"),
    ]
    if machine.hub is not None:
        hub = machine.hub
        token = "with a token" if hub.token else "without a token"
        rows.append(("hub", f"{hub.endpoint}: {'reached' if hub.reached else f'not reached ({hub.why})'}, {token}"))
    return [*rows, *_forecast(machine)]


def _forecast(machine: Machine) -> list[tuple[str, str]]:
    from dsctl.look.description import of_release
    from dsctl.releases import find

    example = of_release(find(EXAMPLE))
    rows = []
    for words, to_bf16, nbytes in (("FP8 to BF16", True, example.nbytes), ("BF16 to FP8", False, example.values * 2)):
        rate, held = machine.per_hour(to_bf16)
        took = span(nbytes / rate * 3600)
        rows.append((words, f"{size(rate)} an hour, held by the {held}: {took} for {example.name}"))
    return rows


def add_to(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(doctor)
