"""The progress of a run: one bar on a terminal, occasional plain lines elsewhere. On stderr."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.progress import Progress as Bar

from dsctl.plan.plan import Plan
from dsctl.run.events import Advanced, Committed, Event, ReadBack, Resumed, Saved, Torn, Uploaded, Uploading
from dsctl.show.bars import columns
from dsctl.show.delivered import show_event
from dsctl.show.output import Output, plural, size, span

SECONDS_BETWEEN_LINES = 15.0
# The time left is shown once this share is done: the first reads of files say nothing about later ones.
TOLD_FROM = 0.02


class Progress:
    """Shows the events of one run."""

    def __init__(self, plan: Plan, output: Output, verbose: bool = False) -> None:
        self._output, self._verbose = output, verbose
        self._total, self._done = max(plan.bytes_in, 1), 0
        self._said = time.monotonic()
        self._began: float | None = None
        self._before = 0
        self._bar: Bar | None = None
        self._task: Any = None
        if output.has_bar:
            self._bar = Bar(*columns(), console=output.err, transient=True)
            self._task = self._bar.add_task("converting", total=self._total)

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def report(self, event: Event) -> None:
        """Take one event of `dsctl.run.run`."""
        if isinstance(event, Advanced):
            self._advance(event.nbytes)
        elif isinstance(event, Committed):
            if self._verbose:
                entry = event.entry
                self._output.note(f"finished {event.file}: {size(entry.size)}, {entry.kind} {entry.digest}")
        elif isinstance(event, Uploading):
            if time.monotonic() - self._said >= SECONDS_BETWEEN_LINES:
                self._said = time.monotonic()
                self._output.note(f"uploading: {size(event.nbytes)} of {size(event.of)}")
        elif isinstance(event, (Uploaded, Saved)):
            show_event(event, self._output, self._verbose)
        elif isinstance(event, ReadBack):
            what = "that an interrupted run wrote, because the system was restarted"
            self._output.note(f"reading back {size(event.nbytes)} {what}")
        elif isinstance(event, Torn):
            self._output.warn(f"{plural(event.jobs, 'job')} must be done again: the disk does not hold their output")
        elif isinstance(event, Resumed):
            self._output.note(f"resumed: {event.jobs:,} of {plural(event.of, 'job')} were done already")
            self._done += event.nbytes

    def _advance(self, nbytes: int) -> None:
        self._done += nbytes
        now = time.monotonic()
        if self._began is None:
            # The time before the first bytes is spent on starting processes.
            self._began, self._before = now, self._done
        if self._bar:
            self._bar.update(self._task, completed=self._done)
        elif now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            self._output.note(self._line(self._done - self._before, now - self._began))

    def _line(self, nbytes: int, seconds: float) -> str:
        """The line of progress, after `nbytes` bytes in `seconds` seconds."""
        line = f"converting: {size(self._done)} of {size(self._total)}"
        if seconds <= 0 or nbytes < TOLD_FROM * self._total:
            return line
        speed = nbytes / seconds
        return f"{line}, {size(speed)}/s, {span((self._total - self._done) / speed)} left"
