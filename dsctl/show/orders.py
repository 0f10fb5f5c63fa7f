"""Show a download: its files before it starts, and its progress."""

from __future__ import annotations

import time
from typing import Any

from rich.table import Table

from dsctl.show.output import Output, plural, size
from dsctl.stores.download import CheckedFile, Order

SECONDS_BETWEEN_LINES = 15.0


class Lines:
    """Reports the progress of a download: a line on stderr every few seconds."""

    def __init__(self, order: Order, output: Output) -> None:
        self._order, self._output = order, output
        self._files = self._bytes = 0
        self._said = time.monotonic()

    def report(self, checked: CheckedFile) -> None:
        """Count a file that was downloaded and verified."""
        self._files, self._bytes = self._files + 1, self._bytes + checked.size
        if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            of = f"{len(self._order.files):,} files, {size(self._bytes)} of {size(self._order.nbytes)}"
            self._output.note(f"downloaded and verified: {self._files:,} of {of}")


def as_json(order: Order) -> dict[str, Any]:
    """Format an order as stable JSON; sizes are in bytes."""
    return {
        "repository": order.repository.repository,
        "commit": order.repository.commit,
        "folder": str(order.place),
        "bytes": order.nbytes,
        "lacking": sum(listed.size for listed in order.lacking),
        "files": {listed.name: listed.size for listed in order.files},
    }


def show_order(order: Order, output: Output) -> None:
    """Print the files, and how much is left to download."""
    output.data(as_json(order))
    lacking = set(order.lacking)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(no_wrap=True)
    for listed in order.files:
        table.add_row(size(listed.size), listed.name, "" if listed in lacking else "present")
    output.text(table)
    total = f"{size(order.nbytes)} in {plural(len(order.files), 'file')} of {order.repository.place}"
    output.text(f"{total}, {size(sum(listed.size for listed in lacking))} to download into {order.place}")
    output.note("dry run: nothing was downloaded")
