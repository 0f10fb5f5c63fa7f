"""Lists that a caller gives, globs and numbers, are checked here."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index
from typing import Any

from dsctl.core.errors import UsageError


def globs(name: str, given: str | Iterable[str]) -> tuple[str, ...]:
    """The globs of an option. A string is one glob, not a sequence of letters.

    Raises:
        UsageError: an element is not a string.
    """
    found = (given,) if isinstance(given, str) else _members(name, given)
    for glob in found:
        if not isinstance(glob, str):
            raise UsageError(f"{name}: {glob!r} is not a glob", hint='such as ["model.layers.0.*"]')
    return found


def numbers(name: str, given: Iterable[int]) -> tuple[int, ...]:
    """The numbers of an option.

    Raises:
        UsageError: it is a string, or an element is not an integer.
    """
    found = (given,) if isinstance(given, str | bytes) else _members(name, given)
    try:
        return tuple(map(index, found))
    except TypeError:
        raise UsageError(f"{name}: {given!r} is not a sequence of integers", hint="such as [0, 1]") from None


def _members(name: str, given: Iterable[Any]) -> tuple[Any, ...]:
    try:
        return tuple(given)
    except TypeError:
        raise UsageError(f"{name}: {given!r} is not a sequence", hint="give a list") from None
