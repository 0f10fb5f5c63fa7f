"""`--help` as text: usage, description, examples, arguments, and options by panel."""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from dsctl.show.output import Output

WIDEST = 100
# Narrower than this, the text of an entry stands below its name.
BESIDE = 72
# The column of names is at most this wide; the text of a longer name begins in the next line.
NAMES = 28
# A space at which no line ends.
TIED = "\u00a0"


class Entry(NamedTuple):
    """An argument, an option or a command, and its description."""

    name: str
    text: str


class HelpPage(NamedTuple):
    """The contents of the help page of one command."""

    usage: str
    paragraphs: tuple[str, ...]
    examples: tuple[str, ...]
    panels: tuple[tuple[str, tuple[Entry, ...]], ...]


def show_help(page: HelpPage, output: Output) -> None:
    """Print a page in the terminal's width, at most `WIDEST` columns; an example is never wrapped."""
    width = min(output.out.width, WIDEST)
    output.text(("Usage: ", "bold"), page.usage)
    for paragraph in page.paragraphs:
        output.text("")
        for line in textwrap.wrap(paragraph, width, break_on_hyphens=False):
            output.text(line)
    if page.examples:
        output.text("")
        output.text(("Examples", "bold"))
        for example in page.examples:
            output.text(f"  {example}")
    for title, entries in page.panels:
        output.text("")
        output.text((title, "bold"))
        _show_entries(entries, width, output)


def _show_entries(entries: tuple[Entry, ...], width: int, output: Output) -> None:
    names = min(max(len(entry.name) for entry in entries), NAMES)
    beside = width >= BESIDE
    column = 2 + names + 2 if beside else 6
    for entry in entries:
        wrapped = textwrap.wrap(entry.text, width - column, break_on_hyphens=False)
        lines = [line.replace(TIED, " ") for line in wrapped]
        if beside and len(entry.name) <= names and lines:
            output.text("  ", (entry.name.ljust(names), "cyan"), f"  {lines.pop(0)}")
        else:
            output.text("  ", (entry.name, "cyan"))
        for line in lines:
            output.text(" " * column + line)
