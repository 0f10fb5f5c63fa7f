"""Progress bars for bytes, on stderr if it is a terminal."""

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
    """Show a bar for bytes read or written, on a terminal only; yields the function that advances it by bytes."""
    if not output.has_bar:
        yield lambda nbytes: None
        return
    with Bar(*columns(), console=output.err, transient=True) as bar:
        task = bar.add_task(what, total=max(total, 1))
        yield lambda nbytes: bar.advance(task, nbytes)


def columns() -> tuple[ProgressColumn, ...]:
    """The columns of a bar."""
    return (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
