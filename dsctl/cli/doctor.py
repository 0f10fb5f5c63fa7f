"""`dsctl doctor`: measure this machine and estimate how much it converts in an hour."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dsctl.cli.groups import PrintOptions, verb

Folder = Annotated[
    str, typer.Argument(metavar="[FOLDER]", help="A folder on the disk to measure; this folder if you name none.")
]
NoHub = Annotated[bool, typer.Option("--no-hub", help="Do not check whether the Hub can be reached.")]


@verb
def doctor(folder: Folder = ".", *, no_hub: NoHub = False, printing: PrintOptions) -> None:
    """Measure this machine and estimate how much it converts in an hour.

    Versions and devices are listed; disk and processor are measured. This takes some seconds: the codecs run, and up to
    256 MB are written to the folder, synced, read back and removed.

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
