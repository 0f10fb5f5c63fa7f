"""An entry of the tables of meanings: how a known difference is found, and what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dsctl.look.diff import Diff

Facts = dict[str, Any]


class Meaning(NamedTuple):
    """A known difference by its key: `facts` finds it and the numbers in its text, or None if it is absent."""

    key: str
    facts: Callable[[Diff], Facts | None]
    text: str
    source: str
