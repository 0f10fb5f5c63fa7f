"""What a command prints: data on stdout, everything else on stderr. The only room that prints."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from dsctl.errors import DsctlError

PIPE_WIDTH = 100
LONGEST = 2000
# What a shell says of a process that SIGPIPE ended.
UNREAD = 141


class _Console(Console):
    """A console that ends as others do where nobody reads on; 1 would say that a diff differs."""

    def on_broken_pipe(self) -> None:
        end_unread()


def end_unread() -> NoReturn:
    """End where whoever read the output has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(UNREAD)


def _console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream.isatty()
    width = None if terminal or os.environ.get("COLUMNS") else PIPE_WIDTH
    return _Console(file=stream, width=width, highlight=False, soft_wrap=not terminal, no_color=_no_colour(terminal))


def _bounded() -> bool:
    """Whether lines on stdout have a width to keep to: a terminal's, or one that was asked for."""
    return sys.stdout.isatty() or bool(os.environ.get("COLUMNS"))


def _no_colour(terminal: bool) -> bool:
    return not terminal or bool(os.environ.get("NO_COLOR"))


class Output:
    """One command's mouth. `json` replaces the text on stdout by one JSON value; `quiet` silences all but errors."""

    def __init__(self, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        self.out, self.err = _console(), _console(stderr=True)
        self.bounded = _bounded()

    def data(self, value: Any) -> None:
        """The command's result as JSON, where that was asked for."""
        if self.json:
            self.raw(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def text(self, *parts: Any) -> None:
        """The command's result for people: strings with rich markup, or renderables such as tables."""
        if not self.json and not self.quiet:
            self.out.print(*parts)

    def raw(self, text: str) -> None:
        """Text for stdout exactly as it is."""
        # What has no UTF-8 form (half of a surrogate pair in a name) is written as JSON and Python escape it.
        try:
            sys.stdout.write(text.encode("utf-8", "backslashreplace").decode())
            sys.stdout.flush()
        except BrokenPipeError:
            end_unread()

    def note(self, text: str) -> None:
        """Something to know meanwhile, on stderr."""
        if not self.quiet:
            self.err.print(Text(visible(text)))

    def warn(self, text: str) -> None:
        """Something to act on, on stderr."""
        self.err.print(Text.assemble(("warning: ", "yellow"), visible(text)), soft_wrap=True)


def show_error(error: DsctlError, limit: int = 20) -> None:
    """What, where and why in a line; the single faults below it; then a hint."""
    err = _console(stderr=True)
    err.print(Text.assemble(("error: ", "bold red"), visible(error.message)), soft_wrap=True)
    for issue in error.issues[:limit] if len(error.issues) > 1 else ():
        err.print(Text(f"  - {visible(issue)}"), soft_wrap=True)
    if len(error.issues) > limit:
        err.print(Text(f"  ... and {len(error.issues) - limit:,} more"))
    if error.hint:
        err.print(Text.assemble(("\nhint: ", "bold cyan"), visible(error.hint)), soft_wrap=True)


def visible(text: str) -> str:
    """Text whose control characters are spelled out, cut where it is absurdly long.

    Names come from files that anybody may have written: they must not steer a terminal.
    """
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}... ({len(text) - LONGEST:,} characters more)"
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def size(nbytes: float) -> str:
    """Bytes for people, in decimal units as disks and hubs count them: 688.6 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:,.1f} {unit}"
    return f"{nbytes:,.0f} B"


def count(number: float) -> str:
    """Parameters for people: 671.0 B."""
    for unit, factor in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= factor:
            return f"{number / factor:,.1f} {unit}"
    return f"{number:,.0f}"


def span(seconds: float) -> str:
    """A duration for people: 1 h 12 min, 3 min 05 s, 8.1 s."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds:.1f} s"


def plural(number: int, noun: str) -> str:
    """3 files, 1 file."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def listed(lines: Iterable[str]) -> str:
    """Lines with rich's markup characters made harmless."""
    return "\n".join(escape(line) for line in lines)
