"""The callback that reports finished bytes."""

from __future__ import annotations

from collections.abc import Callable

# Called with the number of bytes finished since the last call.
Advance = Callable[[int], None]
