"""Names of tensors of unknown making, folded for display: their numbers as marks. Pure."""

from __future__ import annotations

# What a folded name calls its numbers, in their order.
MARKS = ("{layer}", "{expert}")


def folded(name: str) -> tuple[str, tuple[int, ...]]:
    """A name of unknown making for display: its numbers as marks, and the numbers."""
    parts = name.split(".")
    numbers: list[int] = []
    for place, part in enumerate(parts):
        if part.isdecimal() and part.isascii() and len(part) < 10:
            parts[place] = MARKS[min(len(numbers), 1)]
            numbers.append(int(part))
    return ".".join(parts), tuple(numbers)
