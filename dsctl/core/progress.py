"""How work tells of bytes that are done."""

from __future__ import annotations

from collections.abc import Callable

# Called with the number of bytes that were done since the last call.
Advance = Callable[[int], None]
