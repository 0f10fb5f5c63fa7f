"""Whether a delta would save anything, from a sample of both sides. Loads numpy, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dsctl.core.frames import compressed
from dsctl.plan.differing import Pair
from dsctl.run.delta_sources import Sources

# Places that are looked at, and the bytes of each.
PLACES, PLACE_BYTES = 64, 256 << 10
# A delta saves nothing if it takes more than this share of what the compressed new values take.
LEAST_GAIN = 0.97


class Sample(NamedTuple):
    """Bytes of the new side that were looked at, of their compressed difference, and of the new values compressed
    alone; `places` is their number."""

    places: int
    nbytes: int
    difference: int
    alone: int

    @property
    def is_idle(self) -> bool:
        """Whether a delta would take about as much as the new values alone."""
        return bool(self.nbytes) and self.difference > LEAST_GAIN * self.alone


def sampled(sources: Sources, pairs: Sequence[Pair]) -> Sample:
    """Compare places at even distances of all bytes of the new side; a tensor without an old one of its size is new.

    Raises:
        SourceError: a side cannot be read.
    """
    nbytes = difference = alone = places = 0
    for pair, at in _places(pairs):
        length = min(PLACE_BYTES, pair.new.nbytes - at)
        new = sources.new.store.read(pair.new.file, pair.new.begin + at, pair.new.begin + at + length)
        own = len(compressed(new))
        places, nbytes, alone = places + 1, nbytes + length, alone + own
        if pair.whole or pair.old is None:
            difference += own
            continue
        old = sources.old.store.read(pair.old.file, pair.old.begin + at, pair.old.begin + at + length)
        if old != new:
            xor = np.frombuffer(old, np.uint8) ^ np.frombuffer(new, np.uint8)
            difference += len(compressed(xor.data))
    return Sample(places, nbytes, difference, alone)


def _places(pairs: Sequence[Pair]) -> Iterator[tuple[Pair, int]]:
    """Tensors, and the places in them that are looked at; a multiple of eight bytes from their beginning."""
    total = sum(pair.new.nbytes for pair in pairs)
    step = max(1, total // PLACES)
    wanted, begin = step // 2, 0
    for pair in pairs:
        end = begin + pair.new.nbytes
        while wanted < end:
            last = max(0, pair.new.nbytes - PLACE_BYTES)
            yield pair, min(wanted - begin, last) // 8 * 8
            wanted += step
        begin = end
