"""Numbers as people read them: sizes, counts, durations, and nouns in the plural."""

from __future__ import annotations


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
