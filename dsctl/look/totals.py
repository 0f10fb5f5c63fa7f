"""Numbers of two descriptions side by side: counts, bytes, and the cost of a token at several context lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from dsctl.look.cache_formats import BF16, FP8
from dsctl.look.costs import Attention, kept
from dsctl.look.description import Description
from dsctl.look.halves import prompt_values

# Context lengths, in tokens, at which the cost of one more token is given.
CONTEXTS = (4_096, 32_768, 131_072)
# One more such length, if a side supports it.
MILLION = 1 << 20


def _in_prompt(a: Description, b: Description) -> TotalChange:
    """Active values of a token of a prompt, if a prompt does not pass all layers of a side."""
    before, after = prompt_values(a), prompt_values(b)
    if before is None and after is None:
        return TotalChange("prompt_values", "count", None, None)
    return TotalChange("prompt_values", "count", before or a.active_values, after or b.active_values)


class _Side(NamedTuple):
    """One side, the costs of its attention, and the format in which its cache is counted."""

    side: Description
    costs: Attention
    format: str


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
        if key == "active_values":
            yield _in_prompt(a, b)
    yield TotalChange("nbytes", "bytes", a.nbytes, b.nbytes)
    yield TotalChange("files", "count", a.files, b.files)
    sides = tuple(zip((a, b), costs, cache_formats(costs), strict=True))

    def change(key: str, unit: str, of: Callable[[_Side], float], context: int | None = None) -> TotalChange:
        before, after = (None if cost is None else of(_Side(side, cost, held)) for side, cost, held in sides)
        return TotalChange(key, unit, before, after, context)

    yield change("cache_bytes", "bytes", lambda one: one.costs.cache_bytes(one.format))
    yield change("index_bytes", "bytes", lambda one: one.costs.index_bytes())
    yield change("fixed_bytes", "bytes", lambda one: _fixed(one.costs, one.format))
    at_length: tuple[tuple[str, str, Callable[[_Side, int], int]], ...] = (
        ("token_work", "flop", lambda one, n: token_work(one.side.active_values, one.costs, n)),
        ("work", "flop", lambda one, n: one.costs.work(n)),
        ("read_bytes", "bytes", lambda one, n: one.costs.read_bytes(n, one.format)),
    )
    for key, unit, of in at_length:
        for context in contexts(a, b):
            yield change(key, unit, partial(_at, of, context), context)


def token_work(active: int, costs: Attention, context: int) -> int:
    """Floating-point operations of one new token after `context` tokens: two for each of its `active` values, and the
    part of attention that grows with the context (docs/costs.md)."""
    return 2 * active + costs.work(context)


def _at(of: Callable[[_Side, int], int], context: int, one: _Side) -> int:
    return of(one, context)


def _fixed(costs: Attention, format_: str) -> int:
    """Bytes that a sequence keeps independent of its length: window and compressor state."""
    whole = kept(costs, MILLION, format_)
    return whole.window + whole.state


def cache_formats(costs: tuple[Attention | None, Attention | None]) -> tuple[str, str]:
    """The format in which the cache of each side is counted: the usual one of its attention.

    If BF16 is usual for one side only, FP8 counts there, so that a comparison is of caches that engines would choose.
    """
    plain = all(one is None or one.usual == BF16 for one in costs)
    a, b = (BF16 if plain else FP8 if one is None or one.usual == BF16 else one.usual for one in costs)
    return a, b


def contexts(a: Description, b: Description) -> tuple[int, ...]:
    """The context lengths, in tokens, at which the cost of one more token is given for both sides."""
    longest = max(side.published_context or side.positions or 0 for side in (a, b))
    return (*CONTEXTS, MILLION) if longest >= MILLION else CONTEXTS
