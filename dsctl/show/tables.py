"""Tables of facts, as several verbs print them."""

from __future__ import annotations

from rich.table import Table


def two_columns() -> Table:
    """Make a table of names and their descriptions."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table
