"""Sections of aligned rows, for terminals of any width and for Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from rich.text import Text

from dsctl.core.visible import spelled
from dsctl.show.output import Output, stood_in

GAP = 2
# The sign and the colour of a row, by its kind. The section's summary says it in words.
MARKS = {
    "added": ("+", "green"),
    "removed": ("-", "red"),
    "changed": ("~", "yellow"),
    "note": (" ", "dim"),
    "": (" ", ""),
}
# The last column is not narrower than this, as long as other columns can be dropped; nor than that in any case.
LEAST_LAST_COLUMN, NARROWEST = 32, 20
PROSE_WIDTH = 100


class Column(NamedTuple):
    """A column. In a narrow terminal those with a `rank` are dropped, highest rank first. The last column wraps."""

    title: str = ""
    right: bool = False
    rank: int = 0


class Row(NamedTuple):
    """Cells, and the kind of the row (a key of `MARKS`); a single cell is a line of its own."""

    cells: tuple[str, ...]
    kind: str = ""


class Section(NamedTuple):
    """A heading with a few words beside it, rows under columns, and paragraphs below them.

    Without a title, the words stand alone above the rows. Dropped columns follow in a second table if `whole` is set;
    if not, a line below the table names them.
    """

    title: str
    summary: str = ""
    columns: tuple[Column, ...] = ()
    rows: tuple[Row, ...] = ()
    paragraphs: tuple[str, ...] = ()
    whole: bool = False

    @property
    def marked(self) -> bool:
        return any(row.kind in ("added", "removed", "changed") for row in self.rows)


def show(sections: Sequence[Section], output: Output, as_markdown: bool = False) -> None:
    """Print sections with a blank line between them, unless the output is JSON or quiet."""
    if output.json or output.quiet:
        return
    if as_markdown:
        output.raw("\n".join(map(markdown, map(printable, sections))))
        return
    for number, section in enumerate(printable(section, stand_ins=True) for section in sections):
        if number:
            output.text("")
        output.lines(terminal(section, output.out.width, output.bounded))


def printable(section: Section, stand_ins: bool = False) -> Section:
    """Spell out control characters, and write `stand_ins` for stdout's encoding, before columns are measured."""

    def shown(text: str) -> str:
        return stood_in(spelled(text)) if stand_ins else spelled(text)

    rows = tuple(row._replace(cells=tuple(map(shown, row.cells))) for row in section.rows)
    columns = tuple(column._replace(title=shown(column.title)) for column in section.columns)
    paragraphs = tuple(map(shown, section.paragraphs))
    title, summary = shown(section.title), shown(section.summary)
    return section._replace(title=title, summary=summary, columns=columns, rows=rows, paragraphs=paragraphs)


def terminal(section: Section, width: int, bounded: bool = True) -> Iterator[Text]:
    """The section's lines, none longer than `width` if its words allow; every column if not `bounded`."""
    if section.title:
        heading = Text(section.title, "bold")
        fits = len(section.title) + 3 + len(section.summary) <= width
        yield heading.append(f"   {section.summary}", "not bold dim") if section.summary and fits else heading
        if not fits:
            yield from (Text(" " * GAP + line, "dim") for line in textwrap.wrap(section.summary, width - GAP))
    elif section.summary:
        lines = textwrap.wrap(section.summary, width, break_long_words=False, break_on_hyphens=False)
        yield from (Text(line) for line in (lines if bounded else [section.summary]))
    yield from _tables(section, width - GAP, bounded)
    for paragraph in section.paragraphs:
        lines = textwrap.wrap(
            paragraph, max(min(width, PROSE_WIDTH) - 2 * GAP, 40), break_long_words=False, break_on_hyphens=False
        )
        for number, line in enumerate(lines):
            yield Text(("• " if not number else "  ").rjust(GAP + 2) + line)


def _tables(section: Section, width: int, bounded: bool) -> Iterator[Text]:
    rows = [row for row in section.rows if len(row.cells) > 1]
    filled = [n for n in range(len(section.columns)) if any(row.cells[n] for row in rows)]
    shown = _fitting(section, filled, rows, width - (2 if section.marked else 0)) if bounded else filled
    yield from _table(section, shown, width)
    rest = [n for n in filled if n not in shown]
    if rest and section.whole:
        yield Text("")
        # With the first column, which names the subject of each row.
        yield from _table(section, [filled[0], *rest], width)
    elif rest:
        names = ", ".join(section.columns[n].title or "notes" for n in rest)
        for line in textwrap.wrap(f"Not shown at this width: {names}; a wider terminal or a pipe has all.", width):
            yield Text(" " * GAP + line, "dim")


def _table(section: Section, shown: Sequence[int], width: int) -> Iterator[Text]:
    rows, marked = [row for row in section.rows if len(row.cells) > 1], section.marked
    widths = [_width(section.columns[n], (row.cells[n] for row in rows)) for n in shown]
    indent = " " * GAP + ("  " if marked else "")
    if any(section.columns[n].title for n in shown):
        titles = [section.columns[n].title for n in shown]
        yield Text(indent + _aligned(titles, shown, section.columns, widths).rstrip(), "dim")
    for row in section.rows:
        sign, style = MARKS[row.kind]
        lead = Text(" " * GAP + (f"{sign} " if marked else ""), style)
        if len(row.cells) == 1:
            lines = textwrap.wrap(row.cells[0], width, break_long_words=False, break_on_hyphens=False) or [""]
            yield lead.append(lines[0], style)
            yield from (Text(indent + line, style) for line in lines[1:])
            continue
        cells = [row.cells[n] for n in shown]
        room = max(width - len(lead) + GAP - sum(widths[:-1]) - GAP * (len(widths) - 1), NARROWEST)
        right = section.columns[shown[-1]].right
        last = (
            [cells[-1]]
            if right
            else textwrap.wrap(_parted(cells[-1], room), room, break_long_words=False, break_on_hyphens=False) or [""]
        )
        before = _aligned(cells[:-1], shown[:-1], section.columns, widths[:-1])
        joined = before + " " * GAP * bool(before)
        first = last[0].rjust(widths[-1]) if right else last[0]
        yield lead.append((joined + first).rstrip(), style)
        for line in last[1:]:
            yield Text(" " * (len(indent) + len(joined)) + line, style)


def _parted(text: str, room: int) -> str:
    """A list of names with a space after a point in every name that is longer than the room, so that it can be wrapped.

    A single name stays whole, because a person may want to copy it.
    """
    if " " not in text:
        return text
    words = []
    for word in text.split(" "):
        rest = word
        while len(rest) > room and (cut := rest.rfind(".", 0, room)) > 0:
            words.append(rest[: cut + 1])
            rest = rest[cut + 1 :]
        words.append(rest)
    return " ".join(words)


def _width(column: Column, cells: Iterable[str]) -> int:
    return max([len(column.title), *map(len, cells)])


def _aligned(cells: Sequence[str], shown: Sequence[int], columns: Sequence[Column], widths: Sequence[int]) -> str:
    padded = (
        cell.rjust(width) if columns[n].right else cell.ljust(width)
        for cell, n, width in zip(cells, shown, widths, strict=True)
    )
    return (" " * GAP).join(padded)


def _fitting(section: Section, filled: Sequence[int], rows: Sequence[Row], width: int) -> list[int]:
    """The numbers of the filled columns that fit."""
    columns, shown = section.columns, list(filled)

    def needed() -> int:
        widths = [_width(columns[n], (row.cells[n] for row in rows)) for n in shown]
        if shown and not columns[shown[-1]].right and (section.whole or not columns[shown[-1]].rank):
            widths[-1] = min(widths[-1], LEAST_LAST_COLUMN)
        return sum(widths) + GAP * max(len(widths) - 1, 0)

    while needed() > width and any(columns[n].rank for n in shown):
        shown.remove(max(shown, key=lambda n: columns[n].rank))
    return shown


def markdown(section: Section) -> str:
    """Format the section as Markdown, with every column, and with words instead of marks."""
    parts = [f"## {section.title}\n"] if section.title else []
    if section.summary:
        parts.append(f"{section.summary[0].upper()}{section.summary[1:].rstrip('.')}.\n")
    rows = [row for row in section.rows if len(row.cells) > 1]
    shown = [n for n in range(len(section.columns)) if any(row.cells[n] for row in rows)]
    if rows:
        titles = [section.columns[n].title for n in shown]
        rules = ["---:" if section.columns[n].right else "---" for n in shown]
        lead = ([""], ["---"]) if section.marked else ([], [])
        lines = [_line([*lead[0], *titles]), _line([*lead[1], *rules])]
        above = ""
        for row in section.rows:
            if len(row.cells) == 1:
                above = "" if row.kind else row.cells[0]
                continue
            cells = [row.cells[n] for n in shown]
            cells[0] = f"`{above}{cells[0]}`" if above else cells[0]
            lines.append(_line([*([row.kind] if section.marked else []), *cells]))
        parts.append("\n".join(lines) + "\n")
    parts += [f"{row.cells[0]}\n" for row in section.rows if row.kind == "note" and len(row.cells) == 1]
    parts += [f"- {paragraph}" for paragraph in section.paragraphs]
    return "\n".join(parts) + ("\n" if section.paragraphs else "")


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
