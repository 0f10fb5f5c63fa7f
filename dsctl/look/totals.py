"""Numbers of two descriptions side by side: counts, bytes, and what a token costs at some contexts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dsctl.look.costs import Attention
from dsctl.look.description import Description

# Tokens of context at which the costs of one more token are told.
CONTEXTS = (4_096, 32_768, 131_072)


class TotalChange(NamedTuple):
    """One number on both sides; `unit` is count, bytes or flop. None where it is not known.

    `context` is the number of tokens before the one that is counted for.
    """

    key: str
    unit: str
    before: int | None
    after: int | None
    context: int | None = None

    @property
    def differs(self) -> bool:
        """Whether both are known and differ. How many files hold the weights is not a difference."""
        known = self.before is not None and self.after is not None
        return known and self.before != self.after and self.key != "files"


def totals(a: Description, b: Description, costs: tuple[Attention | None, Attention | None]) -> Iterator[TotalChange]:
    """Every total of two descriptions, in the order in which they are shown; `costs` are those of their attention."""
    for key in ("parameters", "values", "main_values", "active_values", "quantized", "tensors"):
        yield TotalChange(key, "count", getattr(a, key), getattr(b, key))
    yield TotalChange("nbytes", "bytes", a.nbytes, b.nbytes)
    yield TotalChange("files", "count", a.files, b.files)
    x, y = costs
    yield TotalChange("cache_bytes", "bytes", x and x.cache_bytes(), y and y.cache_bytes())
    yield TotalChange("index_bytes", "bytes", x and x.index_bytes(), y and y.index_bytes())
    for context in CONTEXTS:
        yield TotalChange("work", "flop", x and x.work(context), y and y.work(context), context)
    for context in CONTEXTS:
        yield TotalChange("read_bytes", "bytes", x and x.read_bytes(context), y and y.read_bytes(context), context)
