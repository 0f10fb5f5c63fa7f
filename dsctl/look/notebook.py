"""Tables as text for `print` and as HTML for notebooks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from dsctl.core.visible import visible


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A heading and a table under it in HTML, whole numbers with separators; an empty text if there are no rows."""
    lines = ["".join(f"<td>{_cell(value)}</td>" for value in row) for row in rows]
    if not lines:
        return ""
    head = "".join(f"<th>{html(column)}</th>" for column in columns)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<h4>{html(title)}</h4><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def plain(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """The same as text, in aligned columns, numbers to the right."""
    held = [tuple(row) for row in rows]
    if not held:
        return ""
    lines = [tuple(map(visible, columns)), *(tuple(map(_text, row)) for row in held)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = [all(isinstance(row[n], int | float | None) for row in held) for n in range(len(columns))]
    aligned = (
        "  ".join(cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in cells)
        for cells in (zip(line, widths, right, strict=True) for line in lines)
    )
    return "\n".join((title, *(f"  {line}".rstrip() for line in aligned))) + "\n"


def html(text: str) -> str:
    """Text for HTML: without markup, control characters spelled out."""
    return escape(visible(text))


def _cell(value: object) -> str:
    return escape(_text(value))


def _text(value: object) -> str:
    return f"{value:,}" if type(value) is int else visible("" if value is None else str(value))
