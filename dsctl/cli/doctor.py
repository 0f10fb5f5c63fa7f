"""`dsctl doctor`: what this machine has and what it can convert in an hour."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsctl.cli.groups import PrintOptions, verb

Folder = Annotated[
    str, typer.Argument(metavar="[FOLDER]", help="Folder on the disk to measure. [default: this folder]")
]
NoHub = Annotated[bool, typer.Option("--no-hub", help="Do not check whether the hub can be reached.")]


@verb
def doctor(folder: Folder = ".", *, no_hub: NoHub = False, printing: PrintOptions) -> None:
    """Show versions and devices, measure disk and processor, and tell what this machine converts in an hour.

    Takes some seconds: the codecs run, and up to 256 MB are written to the folder, synced, read back and removed.

    Examples:

        dsctl doctor

        dsctl doctor /dev/shm --no-hub --json
    """
    from dsctl.run.doctor import examine
    from dsctl.show.machine import as_json, show_machine

    output = printing.output()
    machine = examine(Path(folder), not no_hub)
    output.data(as_json(machine))
    show_machine(machine, output)
