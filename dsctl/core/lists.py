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
    return _strings(name, given, "a glob", 'such as ["model.layers.0.*"]')


def names(name: str, given: str | Iterable[str]) -> tuple[str, ...]:
    """The names of an option, such as formats; a string is one name.

    Raises:
        UsageError: a member is not a string.
    """
    return _strings(name, given, "a name", 'such as ["bf16", "fp8-block"]')


def _strings(name: str, given: str | Iterable[str], what: str, hint: str) -> tuple[str, ...]:
    found = (given,) if isinstance(given, str) else _members(name, given)
    for member in found:
        if not isinstance(member, str):
            raise UsageError(f"{name}: {member!r} is not {what}", hint=hint)
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
