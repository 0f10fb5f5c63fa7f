"""What a command prints: data on stdout, everything else on stderr. The only room that prints.

Every word passes `_Console` or `Output.raw`, which spell control characters out. Strings are never read as markup:
what has a style of its own is a pair of words and style.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Iterable
from typing import Any, NoReturn

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from dsctl.core.errors import DsctlError
from dsctl.core.visible import spelled_json, spelled_lines, visible

__all__ = ["Output", "count", "end_unread", "line", "plural", "prepare", "show_error", "show_trace", "size", "span"]

# Words, or words and the style that they are printed in.
Part = str | tuple[str, str]

PIPE_WIDTH = 100
# What a shell says of a process that SIGPIPE ended.
UNREAD = 141


class _Console(Console):
    """A console that prints strings as they are, control characters spelled out, whatever holds them."""

    def on_broken_pipe(self) -> None:
        # End as others do where nobody reads on; 1 would say that a diff differs.
        end_unread()

    def render_str(self, text: str, **options: Any) -> Text:
        """A string, such as a table's cell, as literal text."""
        return super().render_str(visible(text), **options | {"markup": False, "emoji": False, "highlight": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of anything: styled text passes here too, however deep in a table or a tree it lies."""
        if isinstance(renderable, Text) and not renderable.plain.isprintable():
            renderable = Text(visible(renderable.plain), renderable.style, end=renderable.end)
        return super().render(renderable, options)


def end_unread() -> NoReturn:
    """End where whoever read the output has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(UNREAD)


def _console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    terminal = stream.isatty()
    width = None if terminal or os.environ.get("COLUMNS") else PIPE_WIDTH
    return _Console(
        file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=not terminal,
        no_color=_no_colour(terminal),
    )  # fmt: skip


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
            encoding = str(getattr(sys.stdout, "encoding", None) or "utf-8").lower()
            text = json.dumps(value, indent=2, ensure_ascii=False)
            self._write(spelled_json(text, ascii_only=not encoding.startswith("utf")) + "\n")

    def text(self, *parts: Part | RenderableType) -> None:
        """The command's result for people: words as one line, or one renderable such as a table."""
        if self.json or self.quiet:
            return
        words = [part for part in parts if isinstance(part, (str, tuple))]
        self.out.print(line(*words) if len(words) == len(parts) else parts[0])

    def raw(self, text: str) -> None:
        """Lines for stdout, whatever width it has."""
        self._write(spelled_lines(text))

    def _write(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            end_unread()

    def note(self, text: str) -> None:
        """Something to know meanwhile, on stderr."""
        if not self.quiet:
            self.err.print(line(text))

    def warn(self, text: str) -> None:
        """Something to act on, on stderr."""
        self.err.print(line(("warning: ", "yellow"), text), soft_wrap=True)


def line(*parts: Part) -> Text:
    """One line of words, some of them styled; nothing in them is markup."""
    return Text.assemble(*(visible(part) if isinstance(part, str) else (visible(part[0]), part[1]) for part in parts))


def prepare() -> None:
    """Let the streams spell out what their encoding does not have, such as an arrow in ASCII.

    A library's finalizer that fails says so nowhere: Python would print its traceback below our own error line.
    """
    sys.unraisablehook = lambda failed: None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def show_error(error: DsctlError, limit: int = 20) -> None:
    """What, where and why in a line; the single faults below it; then a hint."""
    err = _console(stderr=True)
    err.print(line(("error: ", "bold red"), error.message), soft_wrap=True)
    for issue in error.issues[:limit] if len(error.issues) > 1 else ():
        err.print(line("  - ", issue), soft_wrap=True)
    if len(error.issues) > limit:
        err.print(line(f"  ... and {len(error.issues) - limit:,} more"))
    if error.hint:
        err.print()
        err.print(line(("hint: ", "bold cyan"), error.hint), soft_wrap=True)


def show_trace(error: BaseException) -> None:
    """The traceback of an error, as Python prints it."""
    err = _console(stderr=True)
    for told in "".join(traceback.format_exception(error)).splitlines():
        err.print(line(told), soft_wrap=True)


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
