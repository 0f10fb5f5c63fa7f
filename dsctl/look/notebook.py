"""Tables as HTML for notebooks: what `_repr_html_` of a diff and of an inspection is made of. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from dsctl.core.visible import visible


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A heading and a table under it, whole numbers with separators; nothing where there are no rows."""
    lines = ["".join(f"<td>{_cell(value)}</td>" for value in row) for row in rows]
    if not lines:
        return ""
    head = "".join(f"<th>{html(column)}</th>" for column in columns)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<h4>{html(title)}</h4><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def html(text: str) -> str:
    """Text as HTML shows it: no markup, control characters spelled out."""
    return escape(visible(text))


def _cell(value: object) -> str:
    return f"{value:,}" if type(value) is int else html("" if value is None else str(value))
