"""Show the machine that `dsctl doctor` measured, as text and as JSON."""

from __future__ import annotations

from typing import Any

from dsctl.core.extras import install_command
from dsctl.look.description import of_release
from dsctl.releases import find
from dsctl.run.doctor import Machine, Processor
from dsctl.show.output import Output, plural, size, span
from dsctl.show.tables import two_columns
from dsctl.version import __version__

# The release of the forecast, with its published bytes.
EXAMPLE = "v3.2"


def as_json(machine: Machine) -> dict[str, Any]:
    """The measurements as stable JSON, in bytes and bytes per second; null if not measured or not installed."""
    hub, hours = machine.hub, {"fp8_to_bf16": machine.per_hour(True), "bf16_to_fp8": machine.per_hour(False)}
    return {
        "dsctl": __version__,
        "python": machine.python,
        "system": machine.system,
        "packages": machine.packages,
        "cores": machine.cores,
        "memory": machine.memory,
        "devices": list(machine.devices),
        "core_bytes_per_second": {
            key: None if speed is None else round(speed) for key, speed in machine.processor._asdict().items()
        },
        "disk": {
            "folder": machine.disk.folder,
            "free": machine.disk.free,
            "write_bytes_per_second": round(machine.disk.write),
            "read_bytes_per_second": round(machine.disk.read),
        },
        "hub": hub and {"endpoint": hub.endpoint, "reached": hub.reached, "why": hub.why, "token": hub.token},
        "source_bytes_per_hour": {key: hour and round(hour[0]) for key, hour in hours.items()},
        "held_by": {key: hour and hour[1] for key, hour in hours.items()},
    }


def show_machine(machine: Machine, output: Output) -> None:
    """Print the measurements, and the time that the conversion of a whole release takes."""
    table = two_columns()
    for name, words in _rows(machine):
        table.add_row(name, words)
    output.text(table)


def _rows(machine: Machine) -> list[tuple[str, str]]:
    installed = [f"{name} {found}" for name, found in machine.packages.items() if found]
    lacking = [name for name, found in machine.packages.items() if not found]
    disk, core = machine.disk, machine.processor
    without = "not checked: torch is not installed"
    if core.decode is not None:
        without = "no CUDA device: everything runs on the processor"
    rows = [
        ("dsctl", f"{__version__}, Python {machine.python}, {machine.system}"),
        ("packages", ", ".join(installed)),
        ("not installed", ", ".join(lacking) or "nothing"),
        ("machine", f"{plural(machine.cores, 'core')}, {size(machine.memory)} of memory"),
        ("devices", ", ".join(machine.devices) or without),
        ("one core", f"{_codecs(core)}BLAKE3 {size(core.blake3)}/s, SHA-256 {size(core.sha256)}/s"),
        ("disk", f"{disk.folder}: {size(disk.free)} free, write {size(disk.write)}/s, read {size(disk.read)}/s"),
    ]
    if machine.hub is not None:
        hub = machine.hub
        token = "with a token" if hub.token else "without a token"
        rows.append(("hub", f"{hub.endpoint}: {'reached' if hub.reached else f'not reached ({hub.why})'}, {token}"))
    return [*rows, *_forecast(machine)]


def _codecs(core: Processor) -> str:
    if core.decode is None or core.encode is None:
        return ""
    return f"FP8 decode {size(core.decode)}/s, FP8 encode {size(core.encode)}/s, "


def _forecast(machine: Machine) -> list[tuple[str, str]]:
    example = of_release(find(EXAMPLE))
    rows = []
    for words, to_bf16, nbytes in (("FP8 to BF16", True, example.nbytes), ("BF16 to FP8", False, example.values * 2)):
        hour = machine.per_hour(to_bf16)
        if hour is None:
            return [("conversion", f"not measured: torch is not installed; {install_command('torch')}")]
        rate, limit = hour
        took = span(nbytes / rate * 3600)
        rows.append((words, f"{size(rate)} per hour, limited by the {limit}: {took} for {example.name}"))
    return rows
