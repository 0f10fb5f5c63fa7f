"""`dsctl formats`: the formats that a checkpoint can be converted to, and the ready recipes."""

from __future__ import annotations

from dsctl.cli.groups import PrintOptions, verb
from dsctl.show.formats import as_json, formats_section, recipes_section
from dsctl.show.sections import show


@verb
def formats(printing: PrintOptions) -> None:
    """List the formats that --to takes: bits per value, who loads them, on what, and what they lose.

    The signal-to-noise ratio is that of normally distributed values, in decibels, with --search where there are two.
    `Hopper+` is Hopper and later. "Lossless from" lists the formats whose values this one stores exactly.
    Below are the recipes that --recipe takes by name.

    Examples:

        dsctl formats

        dsctl formats --json
    """
    output = printing.output()
    output.data(as_json())
    show([formats_section(), recipes_section()], output)
