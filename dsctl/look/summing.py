"""Sums over pairs of values: of two tensors, and of one parameter of two checkpoints, by bands. Loads torch."""

from __future__ import annotations

import math
import threading

import torch

from dsctl.checkpoint.scales import ScaleCounts, as_float32
from dsctl.codecs.codec import BadBlock
from dsctl.core.boxes import Box
from dsctl.core.errors import FormatError
from dsctl.look.comparison import Compared, Pair, Sums
from dsctl.plan.steps import Step
from dsctl.stores import Store
from dsctl.work.values import Values

BAND_BYTES = 8 << 20
# Values per call of torch: few enough for the cache, enough to outweigh the cost of a call.
CHUNK = 1 << 17
# Stands in for the larger of two zeros.
_SMALLEST = 2.0**-149
# From here on the difference of two float32 may overflow float32.
_LARGEST = 2.0**127


class PairReader:
    """Reads pairs; every thread has its own buffers."""

    def __init__(self, stores: tuple[Store, Store]) -> None:
        torch.set_num_threads(1)
        self.stores, self.stop, self._own = stores, threading.Event(), threading.local()

    def _sides(self) -> tuple[Values, Values]:
        if not hasattr(self._own, "sides"):
            self._own.sides = tuple(Values(store) for store in self.stores)
        return self._own.sides  # type: ignore[no-any-return]

    def compared(self, pair: Pair) -> Compared:
        """The sums over a pair's rows; the scales of the whole parameter count with its first rows."""
        ours, theirs = self._sides()
        sums = Sums()
        for band in pair.bands(BAND_BYTES):
            if self.stop.is_set():
                break
            try:
                sums.add(summed(_read(ours, pair.ours, band, pair.dtype), _read(theirs, pair.theirs, band, pair.dtype)))
            except BadBlock as error:
                raise FormatError(f"{pair.param.name}: {error.what}") from None
        param, scales = pair.param, (ScaleCounts(), ScaleCounts())
        if pair.is_first:
            scales = _scales(ours, pair.ours), _scales(theirs, pair.theirs)
        return Compared(param.name, param.family.group, param.shape, pair.formats, sums, param.layer, scales)


def _scales(side: Values, step: Step) -> ScaleCounts:
    """The block scales of one side's parameter; they are few compared with its values, and were just read."""
    counts = ScaleCounts()
    for spec, stored in side.scales(step):
        counts.add(ScaleCounts.of(as_float32(stored.reshape(-1).view(torch.uint8).numpy().tobytes(), spec.dtype)))
    return counts


def _read(side: Values, step: Step, band: Box, dtype: str) -> torch.Tensor:
    values = side.read(step, band)
    quantized = step.reads[0].codec.plain is None
    return values.to(torch.float16) if quantized and dtype == "F16" else values


def summed(ours: torch.Tensor, theirs: torch.Tensor) -> Sums:
    """The sums over two tensors of one shape, of any float dtypes."""
    total = Sums()
    flat = ours.reshape(-1), theirs.reshape(-1)
    for begin in range(0, ours.numel(), CHUNK):
        a, b = (side[begin : begin + CHUNK] for side in flat)
        same = a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))
        total.add(_identical(a) if same else _different(a, b))
    return total


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.itemsize])


def _identical(a: torch.Tensor) -> Sums:
    exact = a.double()
    energy = float(torch.dot(exact, exact))
    if not math.isfinite(energy):
        return _different(a, a)
    return Sums(len(a), len(a), 0, energy, energy, energy, bins={0: len(a)})


def _different(a: torch.Tensor, b: torch.Tensor) -> Sums:
    x, y = a.double(), b.double()
    d = y - x
    noise = float(torch.dot(d, d))
    if not math.isfinite(noise):
        return _not_finite(a, b)
    sums = Sums(len(a), 0, 0, float(torch.dot(x, x)), float(torch.dot(y, y)), float(torch.dot(x, y)), noise)
    sums.max_abs = float(d.abs_().max())
    # Float32 is exact enough for a ratio, and quicker, unless the difference of two float32 overflows it.
    apart = d.float() if sums.max_abs < _LARGEST else d
    relative = apart / torch.maximum(a.abs(), b.abs()).to(apart.dtype).clamp_min_(_SMALLEST)
    sums.max_rel = float(relative.max())
    counts = torch.bincount(relative.float().view(torch.int32) >> 23).tolist()
    sums.bins = {place: count for place, count in enumerate(counts) if count}
    sums.identical = counts[0]
    return sums


def _not_finite(a: torch.Tensor, b: torch.Tensor) -> Sums:
    """Sums of the finite pairs, and the number of the others."""
    finite = a.isfinite() & b.isfinite()
    sums = _different(a[finite], b[finite]) if bool(finite.any()) else Sums()
    odd, even = a[~finite], b[~finite]
    sums.values, sums.not_finite = len(a), len(odd)
    sums.identical += int(((odd == even) | (odd.isnan() & even.isnan())).sum())
    return sums
