"""Tables as plain text for `print` and as HTML for notebooks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from dsctl.core.visible import visible


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML heading and the table under it; empty if there are no rows. Whole numbers get thousands separators."""
    lines = ["".join(f"<td>{html(_cell(value))}</td>" for value in row) for row in rows]
    if not lines:
        return ""
    head = "".join(f"<th>{html(column)}</th>" for column in columns)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<h4>{html(title)}</h4><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def text_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of the same table as text, numbers on the right; no lines if there are no rows."""
    body = [[visible(_cell(value)) for value in row] for row in rows]
    if not body:
        return []
    cells = [[*columns], *body]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [
        all(text[:1].isdigit() or text in ("", "-", "inf") for text in column) for column in zip(*body, strict=True)
    ]
    lines = (
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in cells
    )
    return [title, *(f"  {line}" for line in lines)]


def html(text: str) -> str:
    """Text as HTML shows it: no markup, control characters spelled out."""
    return escape(visible(text))


def _cell(value: object) -> str:
    return f"{value:,}" if type(value) is int else "" if value is None else str(value)


def _is_number(text: str) -> bool:
    """Whether a cell is an amount, such as 1,234 or 688.6 GB, or stands for one."""
    return text[:1].isdigit() or text in ("", "-", "inf")
