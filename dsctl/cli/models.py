"""`dsctl models`: list the known releases."""

from __future__ import annotations

from dsctl.cli.groups import PrintOptions, verb
from dsctl.look.description import of_release
from dsctl.releases import releases
from dsctl.show.releases import as_json, table
from dsctl.show.sections import show


@verb
def models(printing: PrintOptions) -> None:
    """List the releases known by name, oldest first.

    Commands that only read, such as inspect, plan and diff, take these names instead of a folder.

    Examples:

        dsctl models

        dsctl models --json
    """
    known = [of_release(release) for release in releases()]
    output = printing.output()
    output.data([as_json(one) for one in known])
    show([table(known)], output)
