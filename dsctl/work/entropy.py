"""The order-0 entropy of a difference: the least bytes that a code without memory can take for it. Loads numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

# Differences with fewer changed pairs of bytes than this share are counted by gathering these.
_SPARSE = 8


class Histogram:
    """Counts of byte values at each place of elements of `width` bytes.

    A code that knows the places, but nothing of what came before, takes at least `nbytes` bytes: the sum over places of
    Shannon's entropy of the values there, times their number.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._places = np.zeros((max(width, 1), 256), np.int64)
        self.elements = 0
        self.changed = 0

    def count(self, data: Any) -> None:
        """Count the bytes of a piece (uint8, a whole number of elements)."""
        self.elements += data.size // self._width
        if self._width == 1:
            self._count_bytes(data)
            return
        pairs = data.view(np.uint16).reshape(-1, self._width // 2)
        if self._width == 2:
            self.changed += int(np.count_nonzero(pairs))
        else:
            self.changed += int(np.count_nonzero(pairs.any(axis=1)))
        for place in range(self._width // 2):
            low, high = _halves(pairs[:, place])
            self._places[2 * place] += low
            self._places[2 * place + 1] += high

    def _count_bytes(self, data: Any) -> None:
        self.changed += int(np.count_nonzero(data))
        even = data[: data.size // 2 * 2]
        low, high = _halves(even.view(np.uint16))
        self._places[0] += low + high
        if data.size % 2:
            self._places[0][int(data[-1])] += 1

    @property
    def nbytes(self) -> float:
        """The limit in bytes."""
        return float(sum(map(_entropy, self._places)) / 8)


def _halves(pairs: Any) -> tuple[Any, Any]:
    """The counts of the low and of the high byte of little-endian pairs."""
    filled = int(np.count_nonzero(pairs))
    if filled * _SPARSE < pairs.size:
        chosen = pairs[pairs != 0]
        low = np.bincount(chosen & 0xFF, minlength=256)
        high = np.bincount(chosen >> 8, minlength=256)
        low[0] += pairs.size - filled
        high[0] += pairs.size - filled
        return low, high
    joint = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
    return joint.sum(axis=0), joint.sum(axis=1)


def _entropy(counts: Any) -> float:
    """The entropy of values with these counts, in bits for all of them together."""
    known = counts[counts > 0].astype(np.float64)
    total = known.sum()
    return float((known * np.log2(total / known)).sum()) if total else 0.0
