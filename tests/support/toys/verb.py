"""`dsctl toy`: how many layers a release has."""

from __future__ import annotations

from typing import Annotated

import typer

from dsctl.cli.groups import PrintOptions, verb
from dsctl.releases import find
from dsctl.show.sections import Section, show


@verb
def toy(
    release: Annotated[str, typer.Argument(metavar="RELEASE", help="A release known by name.")],
    *,
    printing: PrintOptions,
) -> None:
    """Count the layers of a release.

    Examples:

        dsctl toy v3.2
    """
    known, output = find(release), printing.output()
    layers = known.config["num_hidden_layers"]
    output.data({"release": known.name, "layers": layers})
    show([Section("", f"{known.name}: {layers} layers")], output)
