"""Numbers of two descriptions side by side: counts, bytes, and the cost of a token at several context lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

from dsctl.look.costs import BF16, FP8, Attention, kept
from dsctl.look.description import Description

# Context lengths, in tokens, at which the cost of one more token is given.
CONTEXTS = (4_096, 32_768, 131_072)
# One more such length, if a side supports it.
MILLION = 1 << 20


class TotalChange(NamedTuple):
    """One number on both sides, None if it is not known; `unit` is count, bytes or flop. Bytes per token can have a
    fraction, because an entry can stand for several tokens.

    `context` is the number of tokens before the one that is counted.
    """

    key: str
    unit: str
    before: float | None
    after: float | None
    context: int | None = None

    @property
    def differs(self) -> bool:
        """Whether both are known and differ. The number of weight files is not a difference."""
        known = self.before is not None and self.after is not None
        return known and self.before != self.after and self.key != "files"


def totals(a: Description, b: Description, costs: tuple[Attention | None, Attention | None]) -> Iterator[TotalChange]:
    """Every total of two descriptions, in the order of the report; `costs` are the costs of their attention."""
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
        before, after = map(partial(_token_work, context), (a, b), costs)
        yield TotalChange("token_work", "flop", before, after, context)
    for context in said:
        yield change("work", "flop", partial(_work, context), context)
    for context in said:
        yield change("read_bytes", "bytes", partial(_read, context, held), context)


def token_work(active: int, costs: Attention, context: int) -> int:
    """Floating-point operations of one new token after `context` tokens: two for each of its `active` values, and the
    part of attention that grows with the context (docs/costs.md)."""
    return 2 * active + costs.work(context)


def _token_work(context: int, side: Description, costs: Attention | None) -> int | None:
    return None if costs is None else token_work(side.active_values, costs, context)


def _work(context: int, costs: Attention) -> int:
    return costs.work(context)


def _read(context: int, format_: str, costs: Attention) -> int:
    return costs.read_bytes(context, format_)


def _fixed(costs: Attention, format_: str) -> int:
    """Bytes that a sequence keeps independent of its length: window and compressor state."""
    whole = kept(costs, MILLION, format_)
    return whole.window + whole.state


def cache_format(costs: Iterable[Attention | None]) -> str:
    """The format in which the caches of both sides are counted: FP8 if it is usual for one of them."""
    return FP8 if any(one is not None and one.usual == FP8 for one in costs) else BF16


def contexts(a: Description, b: Description) -> tuple[int, ...]:
    """The context lengths, in tokens, at which the cost of one more token is given for both sides."""
    longest = max(side.published_context or side.positions or 0 for side in (a, b))
    return (*CONTEXTS, MILLION) if longest >= MILLION else CONTEXTS
