"""Values that come from a table: refuse one that is not in it, and suggest the nearest."""

from __future__ import annotations

from collections.abc import Iterable

from dsctl.core.errors import UsageError


def choose(value: str, known: Iterable[str], what: str, option: str = "") -> str:
    """Return `value` if it is one of `known`; `what` names such a value, such as "format", and `option` its option.

    Raises:
        UsageError: it is not; the hint suggests the nearest known value and lists all of them.
    """
    table = list(known)
    if value in table:
        return value
    where = f"{option}: " if option else ""
    raise UsageError(f"{where}unknown {what} {value!r}", hint=suggestion(value, table))


def suggestion(value: str, known: Iterable[str]) -> str:
    """The suggestion in place of `value`: known values that begin with it or are near, if any, and all."""
    # Loaded late: only a refusal needs it.
    from difflib import get_close_matches

    table = list(known)
    word = value.strip().lower()
    longer = [known for known in table if word and known.startswith(word)]
    near = list(dict.fromkeys((*longer, *get_close_matches(word, table, n=3, cutoff=0.6))))[:3]
    listed = f"known: {', '.join(table)}"
    return f"did you mean {' or '.join(near)}? {listed}" if near else listed
