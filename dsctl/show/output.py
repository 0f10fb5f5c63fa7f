"""Print the output of a command: data on stdout, everything else on stderr. No other module prints.

Every word passes `_Console` or `Output.raw`, which spell out control characters. Strings are never read as markup: text
with a style is a pair of words and style. A stream that cannot encode a character gets an ASCII stand-in.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
import traceback
from collections.abc import Iterable
from typing import Any, NoReturn

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.text import Text

from dsctl.core.amounts import count, plural, size, span
from dsctl.core.errors import DsctlError
from dsctl.core.visible import clipped, spelled_json, spelled_lines, visible

__all__ = [
    "Output", "count", "end_unread", "line", "plural", "prepare", "show_error", "show_error_as_json", "show_trace",
    "size", "span", "stood_in",
]  # fmt: skip

# Words, or words and the style that they are printed in.
Part = str | tuple[str, str]

PIPE_WIDTH = 100
# The exit code that a shell reports for a process that SIGPIPE ended.
UNREAD = 141
# ASCII for what dsctl prints beyond it; rich has its own boxes and trees for such streams.
STAND_INS = {
    "→": "->", "…": "...", "•": "*", "█": "#", "≥": ">=", "≤": "<=", "\u00d7": "x", "\u2013": "-",
}  # fmt: skip


class _Console(Console):
    """A console that prints strings literally, with control characters spelled out, in any renderable."""

    def on_broken_pipe(self) -> None:
        # End as other programs do; 1 would mean that a diff differs.
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
    """End because the reader closed the pipe."""
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
    """Whether lines on stdout have a width to keep to: that of the terminal, or COLUMNS."""
    return sys.stdout.isatty() or bool(os.environ.get("COLUMNS"))


def _no_colour(terminal: bool) -> bool:
    return not terminal or bool(os.environ.get("NO_COLOR"))


class Output:
    """The output of one command. `json` replaces the text on stdout by one JSON value; `quiet` prints only errors."""

    def __init__(self, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        self.out, self.err = _console(), _console(stderr=True)
        self.bounded = _bounded()

    @property
    def has_bar(self) -> bool:
        """Whether stderr is a terminal on which a bar can move, and may show one."""
        return self.err.is_terminal and not self.err.is_dumb_terminal and not self.quiet

    def data(self, value: Any) -> None:
        """Print the command's result as JSON, if --json was given."""
        if self.json:
            text = json.dumps(value, indent=2, ensure_ascii=False)
            self._write(spelled_json(text, ascii_only=not _encoding(sys.stdout).startswith("utf")) + "\n")

    def text(self, *parts: Part | RenderableType) -> None:
        """Print the command's result for people: words as one line, or one renderable such as a table."""
        if self.json or self.quiet:
            return
        words = [part for part in parts if isinstance(part, (str, tuple))]
        if len(words) == len(parts):
            self.out.print(line(*words))
        else:
            # A line that was measured before is printed as it is; a table or a tree is wrapped, never cropped.
            self._padded(parts[0], isinstance(parts[0], Text))

    def _padded(self, renderable: Any, soft_wrap: bool) -> None:
        """Print one renderable, in a pipe without the spaces that pad its lines."""
        if self.out.is_terminal:
            self.out.print(renderable, soft_wrap=soft_wrap)
            return
        with self.out.capture() as caught:
            self.out.print(renderable, soft_wrap=soft_wrap)
        self._write("".join(f"{text.rstrip()}\n" for text in caught.get().splitlines()))

    def lines(self, lines: Iterable[Text]) -> None:
        """Print lines of the result that were measured before, as they are; together, because there may be 90,000."""
        if not self.json and not self.quiet:
            self.out.print(Group(*lines), soft_wrap=True)

    def raw(self, text: str) -> None:
        """Print lines on stdout without wrapping them."""
        self._write(spelled_lines(text))

    def _write(self, text: str) -> None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            end_unread()

    def note(self, text: str) -> None:
        """Print a remark on stderr."""
        if not self.quiet:
            self.err.print(line(text))

    def warn(self, text: str) -> None:
        """Print a warning on stderr."""
        self.err.print(line(("warning: ", "yellow"), text), soft_wrap=True)


def line(*parts: Part) -> Text:
    """One line of words, some of them styled; nothing in them is markup."""
    return Text.assemble(*(visible(part) if isinstance(part, str) else (visible(part[0]), part[1]) for part in parts))


def prepare() -> None:
    """Let the streams write stand-ins for characters that their encoding lacks, such as -> for an arrow in ASCII.

    Streams that the caller closed are opened on the null device: a file that dsctl opens must never become one of them.
    A library's finalizer fails silently: Python would print its traceback below our own error line.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  open until the end
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.unraisablehook = lambda failed: None
    codecs.register_error(_STOOD_IN, _stand_in)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_STOOD_IN)


_STOOD_IN = "dsctl.stood_in"


def _stand_in(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that cannot be encoded; those without a stand-in are spelled out as Python escapes them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(STAND_INS.get(c) or ascii(c)[1:-1] for c in lacking), error.end


def stood_in(text: str) -> str:
    """Text as stdout will write it, so that its columns can be measured before."""
    if text.isascii():
        return text
    encoding = _encoding(sys.stdout)
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        codecs.register_error(_STOOD_IN, _stand_in)
        return text.encode(encoding, _STOOD_IN).decode(encoding)
    return text


def _encoding(stream: Any) -> str:
    return str(getattr(stream, "encoding", None) or "utf-8").lower()


def show_error_as_json(error: DsctlError) -> None:
    """Print an error as one JSON object in one line of stderr, with all of its issues."""
    said = {
        "kind": type(error).__name__,
        "exit_code": error.exit_code,
        "message": clipped(error.message),
        "issues": [clipped(issue) for issue in error.issues],
        "hint": error.hint,
    }
    sys.stderr.write(json.dumps({"error": said}) + "\n")


def show_error(error: DsctlError, limit: int = 20) -> None:
    """Print the error in one line (where, what, why); then its issues if there are several; then the hint."""
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
    for text in "".join(traceback.format_exception(error)).splitlines():
        err.print(line(text), soft_wrap=True)
