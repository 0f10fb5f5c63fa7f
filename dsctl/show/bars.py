"""Bars for bytes, on a terminal and on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bar

from dsctl.show.output import Output


@contextmanager
def reading(output: Output, total: int, what: str) -> Iterator[Callable[[int], None]]:
    """A bar for bytes read, on a terminal only: gives the function to tell of each further number of them."""
    if not output.err.is_terminal or output.quiet:
        yield lambda nbytes: None
        return
    with Bar(*columns(), console=output.err, transient=True) as bar:
        task = bar.add_task(what, total=max(total, 1))
        yield lambda nbytes: bar.advance(task, nbytes)


def columns() -> tuple[ProgressColumn, ...]:
    """What a bar says beside itself."""
    return (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
