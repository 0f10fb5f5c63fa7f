"""Numbers of two descriptions side by side: counts, bytes, and what a token costs at some contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from dsctl.look.costs import BF16, FP8, Attention, kept
from dsctl.look.description import Description

# Tokens of context at which the costs of one more token are told.
CONTEXTS = (4_096, 32_768, 131_072)
# Told of as well where a side can hold them.
MILLION = 1 << 20


class TotalChange(NamedTuple):
    """One number on both sides; `unit` is count, bytes or flop. None where it is not known. Bytes per token need not be
    whole: an entry may stand for several tokens.

    `context` is the number of tokens before the one that is counted for.
    """

    key: str
    unit: str
    before: float | None
    after: float | None
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
    held, said = cache_format(costs), contexts(a, b)

    def change(key: str, unit: str, of: Callable[[Attention], float], context: int | None = None) -> TotalChange:
        before, after = (None if one is None else of(one) for one in costs)
        return TotalChange(key, unit, before, after, context)

    yield change("cache_bytes", "bytes", lambda one: one.cache_bytes(held))
    yield change("index_bytes", "bytes", lambda one: one.index_bytes())
    yield change("fixed_bytes", "bytes", lambda one: _fixed(one, held))
    for context in said:
        yield change("work", "flop", partial(_work, context), context)
    for context in said:
        yield change("read_bytes", "bytes", partial(_read, context, held), context)


def _work(context: int, costs: Attention) -> int:
    return costs.work(context)


def _read(context: int, format_: str, costs: Attention) -> int:
    return costs.read_bytes(context, format_)


def _fixed(costs: Attention, format_: str) -> int:
    """Bytes that a sequence keeps beside what grows with it."""
    whole = kept(costs, MILLION, format_)
    return whole.window + whole.state


def cache_format(costs: Iterable[Attention | None]) -> str:
    """The format in which the caches of both sides are told: FP8 where that is usual for one of them."""
    return FP8 if any(one is not None and one.usual == FP8 for one in costs) else BF16


def contexts(a: Description, b: Description) -> tuple[int, ...]:
    """Tokens of context at which the costs of one more token are told of both."""
    longest = max(side.published_context or side.positions or 0 for side in (a, b))
    return (*CONTEXTS, MILLION) if longest >= MILLION else CONTEXTS
