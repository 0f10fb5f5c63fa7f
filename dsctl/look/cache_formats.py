"""The formats in which caches are stored, and the bytes that a sequence keeps. Data.

What each kind of attention stores in them: `dsctl.look.costs` and `dsctl.look.shared_costs`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

BF16, FP8, FP4 = "bf16", "fp8", "fp4"
CACHE_FORMATS = (BF16, FP8, FP4)
# FP4 keys of an indexer: values per E8M0 scale.
FP4_GROUP = 32
# A compressor keeps an unfinished group in float32: values, and the scores that weight them.
STATE_BYTES = 2 * 4


class Kept(NamedTuple):
    """Bytes of one sequence. `entries` and `keys` (of indexers) grow with the context; `window` and `state` (of
    compressors) stop growing when the context fills the window."""

    entries: int = 0
    keys: int = 0
    window: int = 0
    state: int = 0

    @property
    def nbytes(self) -> int:
        return sum(self)


def fp4_key(size: int) -> int:
    """Bytes of one indexer key of `size` FP4 values with an E8M0 scale per 32; 64 + 4 = 68 in V4 and V4.1."""
    return -(-size // 2) + -(-size // FP4_GROUP)


def number(value: Fraction) -> float:
    """An int if the fraction is a whole number, else a float."""
    return value.numerator if value.denominator == 1 else float(value)
