"""`dsctl formats`: list the formats that a checkpoint can be converted to, and the built-in recipes."""

from __future__ import annotations

from dsctl.cli.groups import PrintOptions, verb
from dsctl.show.formats import as_json, formats_section, recipes_section
from dsctl.show.sections import show


@verb
def formats(printing: PrintOptions) -> None:
    """List the formats of --to: bits per value, loaders, hardware and loss.

    The loss is the signal-to-noise ratio of normally distributed values, in decibels; a second figure in brackets is
    with --search. `Hopper+` means Hopper and later. "Lossless from" lists the formats whose values this one stores
    exactly. A second table lists the recipes of --recipe.

    Examples:

        dsctl formats

        dsctl formats --json
    """
    output = printing.output()
    output.data(as_json())
    show([formats_section(), recipes_section()], output)
