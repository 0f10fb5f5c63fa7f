"""Impossible bytes of a tensor: NaN, zeros, outliers, the same as a different tensor's. numpy, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from statistics import median

import numpy as np
import numpy.typing as npt

from dsctl.checkpoint.scales import as_float32
from dsctl.codecs.e4m3 import LARGEST, SMALLEST_PEAK
from dsctl.core.header import TensorRef
from dsctl.core.params import Param
from dsctl.stores import Store
from dsctl.verify.findings import Finding
from dsctl.verify.numbers import ENOUGH
from dsctl.verify.seen import KINDS, Seen

Floats = npt.NDArray[np.float32]

CHUNK = 2 << 20
# E4M3's code of 224: the recipe's scales let some code of a block reach it (half of the largest, for powers of two).
_HALF = 0x76
# A scale this small follows from the least peak that the recipe allows, not from its block's values.
_LEAST_SCALE = 2.0 ** np.ceil(np.log2(SMALLEST_PEAK / LARGEST))
# This many consecutive rows of zeros are a hole: fewer may be values too small for their block's scale.
HOLE = 4
# A matrix's largest magnitude is this many times more or less than that of most of its template.
FAR = 1 << 12


def values(one: Seen, is_bias: bool) -> Iterator[Finding]:
    """NaN, infinity, absurd magnitudes, and zeros in a tensor."""
    kind, name = KINDS[one.ref.spec.dtype], one.ref.name
    part = "block" if one.codec else "row"
    top = int(one.peaks.max(initial=0))
    if top >= kind.not_finite:
        bad = np.argwhere(one.peaks >= kind.not_finite)
        yield Finding("not-finite", name, f"NaN or infinity in {_places(bad, one)}")
    elif top >= kind.huge:
        huge = np.argwhere(one.peaks >= kind.huge)
        yield Finding("huge-value", name, f"magnitudes of 2^20 or more in {_places(huge, one)}")
    if is_bias:
        return
    if top == 0:
        yield Finding("all-zero", name, "every value is zero")
        return
    zero = np.argwhere(one.peaks == 0)
    holes = [hole for hole in _runs(one.zeros) if len(hole) >= HOLE]
    if holes:
        first = f"{holes[0][0]} to {holes[0][-1]}" + (f" and {len(holes) - 1:,} more runs" if len(holes) > 1 else "")
        many, all_ = sum(map(len, holes)), one.ref.spec.shape[0]
        yield Finding("zero-part", name, f"{many:,} of {all_:,} rows are zero: rows {first}")
    elif len(zero):
        yield Finding("zero-part", name, f"{len(zero):,} of {one.peaks.size:,} {part}s are zero: {_places(zero, one)}")


def _runs(rows: list[int]) -> list[list[int]]:
    """Runs of consecutive numbers."""
    groups = groupby(enumerate(rows), key=lambda pair: pair[1] - pair[0])
    return [[row for _, row in group] for _, group in groups]


def _places(found: npt.NDArray[np.int64], one: Seen, limit: int = 3) -> str:
    shown = [f"[{row}, {column}]" if one.codec else f"{row}" for row, column in found[:limit].tolist()]
    more = f" and {len(found) - limit:,} more" if len(found) > limit else ""
    return ("block " if one.codec else "row ") + ", ".join(shown) + more


def block_scales(one: Seen, scale: TensorRef, store: Store) -> Floats:
    """The scale of every block of a tensor."""
    return as_float32(store.read(scale.file, scale.begin, scale.end), scale.spec.dtype).reshape(one.peaks.shape)


def unfilled(one: Seen, scale: TensorRef, scales: Floats) -> Iterator[Finding]:
    """Blocks whose codes leave the upper half of FP8's range empty, although the recipe's scale fills it.

    A matrix that was recast from four-bit codes is not checked: its scales are those of the groups of its blocks.
    """
    if _are_recast(one.peaks):
        return
    loose = np.argwhere((one.peaks > 0) & (one.peaks < _HALF) & (scales > _LEAST_SCALE))
    if len(loose):
        what = f"{len(loose):,} of {scales.size:,} blocks use less than half of FP8's range: {_places(loose, one)}"
        yield Finding("scale-too-large", scale.name, what)


def _are_recast(peaks: npt.NDArray[np.uint64]) -> bool:
    """Whether all largest E4M3 codes are magnitudes of E2M1 times powers of two: at most one bit of mantissa."""
    values = as_float32(peaks.astype(np.uint8).tobytes(), "F8_E4M3")
    return bool(np.isin(np.frexp(values)[0], (0.0, 0.5, 0.75)).all())


def largest(one: Seen, scales: Floats | None = None) -> float:
    """The largest magnitude of a tensor's values; 0 if its dtype or form does not show it."""
    dtype = one.ref.spec.dtype
    if scales is not None:
        codes = as_float32(one.peaks.astype(np.uint8).tobytes(), dtype).reshape(scales.shape)
        return float(np.nanmax(codes * scales, initial=0.0))
    if dtype not in ("BF16", "F32"):
        return 0.0
    return float(np.nanmax(as_float32(one.peaks.tobytes(), dtype), initial=0.0))


def far(sizes: Mapping[str, list[tuple[Seen, float]]]) -> Iterator[Finding]:
    """Matrices whose largest magnitude is far from that of most matrices of their template; `sizes` is by template."""
    for held in sizes.values():
        usual = median(size for _, size in held)
        for one, size in held if len(held) >= ENOUGH else ():
            if size and not usual / FAR <= size <= usual * FAR:
                what = f"its largest magnitude is {size:.3g}, but {usual:.3g} in most such matrices"
                yield Finding("odd-magnitude", one.ref.name, what)


def copies(groups: Iterable[list[Seen]]) -> Iterator[Finding]:
    """Copies of one region, read whole, that hold different bytes."""
    for first, *others in filter(None, groups):
        for one in others:
            if one.print != first.print or not np.array_equal(one.peaks, first.peaks):
                what = f"{one.ref.file} and {first.ref.file} hold different bytes for it"
                yield Finding("copies-differ", one.ref.name, what)


def duplicates(weights: Mapping[str, Seen], owners: Mapping[str, Param], store: Store) -> Iterator[Finding]:
    """Matrices that hold the same bytes, whether releases duplicate them or not."""
    pairs = ((name, param.family.twin) for name, param in owners.items() if name in weights)
    twins = {name: twin for name, twin in pairs if twin is not None and twin in weights}
    for name, twin in twins.items():
        if weights[name].ref.spec != weights[twin].ref.spec:
            continue
        equal = _same(weights[name], weights[twin], store)
        code, what = ("twin-equal", "equals") if equal else ("twin-differs", "differs from")
        yield Finding(code, name, f"{what} {twin}; releases store a duplicate")
    groups: dict[tuple[object, ...], list[Seen]] = {}
    for name, one in weights.items():
        if name not in twins and len(one.ref.spec.shape) > 1:
            groups.setdefault((one.ref.spec, one.print), []).append(one)
    for group in groups.values():
        yield from _equal(group, store)


def _equal(group: list[Seen], store: Store) -> Iterator[Finding]:
    firsts: list[Seen] = []
    for one in group:
        first = next((other for other in firsts if _same(one, other, store)), None)
        if first is None:
            firsts.append(one)
            continue
        yield Finding("duplicate", one.ref.name, f"holds the same bytes as {first.ref.name}")


def _same(one: Seen, other: Seen, store: Store) -> bool:
    """Whether two tensors hold the same bytes; if their fingerprints are equal, both are read again."""
    if one.print != other.print or not np.array_equal(one.peaks, other.peaks):
        return False
    pairs: Iterable[tuple[int, int]] = (
        (begin, min(begin + CHUNK, one.ref.nbytes)) for begin in range(0, one.ref.nbytes, CHUNK)
    )
    return all(
        store.read(one.ref.file, one.ref.begin + begin, one.ref.begin + end)
        == store.read(other.ref.file, other.ref.begin + begin, other.ref.begin + end)
        for begin, end in pairs
    )
