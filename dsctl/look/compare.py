"""How far apart the numbers of two checkpoints are, in any formats: per parameter, per role and in all.

Both sides are read in bands of whole blocks. Sums are double precision. A quantized side is decoded as a conversion
would: to the other side's dtype where that is plain, to float32 where both are quantized.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.faults import require_whole
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.checkpoint.pieces import Piece
from dsctl.checkpoint.scales import ScaleCounts, as_float32
from dsctl.codecs.codec import BadBlock
from dsctl.codecs.plain import FLOATS, Plain
from dsctl.core.boxes import Box
from dsctl.core.errors import FormatError, PlanError
from dsctl.core.header import TensorRef
from dsctl.core.lists import globs
from dsctl.core.params import OTHER, Family, Param, in_order
from dsctl.layouts.layout import whole
from dsctl.layouts.naming import stored_name
from dsctl.plan.steps import Region, Step, region_of
from dsctl.stores import Store

if TYPE_CHECKING:
    import torch

    from dsctl.work.values import Values

BAND_BYTES = 8 << 20
# Values looked at together: few enough for the cache, enough to outweigh the cost of torch's calls.
CHUNK = 1 << 17
# Floats are binned by their exponent's eight bits; the first bin is zero.
EXPONENT_ONE = 127
THREADS = 16

Advance = Callable[[int], None]


@dataclass(slots=True)
class Sums:
    """What is summed over pairs of values a, b with d = b - a. `bins` counts |d| / max(|a|, |b|) by its exponent.

    Pairs of which one is NaN or infinite count in `not_finite`, and as `identical` where both are the same; they enter
    no other sum.
    """

    values: int = 0
    identical: int = 0
    not_finite: int = 0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    dd: float = 0.0
    max_abs: float = 0.0
    max_rel: float = 0.0
    bins: dict[int, int] = field(default_factory=dict)

    def add(self, other: Sums) -> None:
        """Take in another's."""
        for name in ("values", "identical", "not_finite", "aa", "bb", "ab", "dd"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_abs, self.max_rel = max(self.max_abs, other.max_abs), max(self.max_rel, other.max_rel)
        for place, count in other.bins.items():
            self.bins[place] = self.bins.get(place, 0) + count

    @property
    def same(self) -> bool:
        return self.identical == self.values

    @property
    def snr(self) -> float | None:
        """10 log10 of sum a^2 over sum (b - a)^2, in dB; None where it is infinite or is no number."""
        if not (self.aa > 0 and self.dd > 0) or self.not_finite > self.identical:
            return None
        return 10 * math.log10(self.aa / self.dd)

    @property
    def cosine(self) -> float | None:
        """Of the angle between a and b; None where either is zero."""
        if self.same and self.aa > 0:
            return 1.0
        return self.ab / math.sqrt(self.aa * self.bb) if self.aa > 0 and self.bb > 0 else None

    @property
    def share(self) -> float:
        """Of values that are identical, 0 to 1."""
        return self.identical / self.values if self.values else 1.0


class Compared(NamedTuple):
    """One parameter, how either side stores it, and what was summed over it."""

    name: str
    role: str
    shape: tuple[int, ...]
    formats: tuple[str, str]
    sums: Sums
    layer: int | None = None
    scales: tuple[ScaleCounts, ScaleCounts] = (ScaleCounts(), ScaleCounts())

    def below(self, snr: float) -> bool:
        """Whether it is not identical and its signal-to-noise ratio is less than this, or none."""
        return not self.sums.same and (self.sums.snr is None or self.sums.snr < snr)


class Reshaped(NamedTuple):
    """A parameter whose shapes differ."""

    name: str
    ours: tuple[int, ...]
    theirs: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Parameters in the order of the architecture; names that only one side has, or that hold no comparable numbers."""

    places: tuple[str, str]
    compared: tuple[Compared, ...]
    only_ours: tuple[str, ...]
    only_theirs: tuple[str, ...]
    reshaped: tuple[Reshaped, ...]
    not_numbers: tuple[str, ...]

    @property
    def total(self) -> Sums:
        return _total(self.compared)

    @property
    def scales(self) -> tuple[ScaleCounts, ScaleCounts]:
        """The block scales of either side."""
        counts = ScaleCounts(), ScaleCounts()
        for one in self.compared:
            for total, side in zip(counts, one.scales, strict=True):
                total.add(side)
        return counts

    @property
    def roles(self) -> dict[str, tuple[int, Sums]]:
        """Count and sums of the parameters of each role."""
        found: dict[str, list[Compared]] = {}
        for one in self.compared:
            found.setdefault(one.role, []).append(one)
        return {role: (len(found[role]), _total(found[role])) for role in in_order(found)}

    @property
    def whole(self) -> bool:
        """Whether everything on either side was compared."""
        return not (self.only_ours or self.only_theirs or self.reshaped or self.not_numbers)

    def worst(self, count: int) -> list[Compared]:
        """The parameters with the least signal-to-noise ratio, without those that are identical."""
        apart = [one for one in self.compared if not one.sums.same]
        return sorted(apart, key=lambda one: -math.inf if one.sums.snr is None else one.sums.snr)[:count]


def _total(compared: Iterable[Compared]) -> Sums:
    total = Sums()
    for one in compared:
        total.add(one.sums)
    return total


class _Pair(NamedTuple):
    """A parameter of both sides: two reading steps and the dtype in which a quantized side is decoded."""

    param: Param
    ours: Step
    theirs: Step
    dtype: str
    formats: tuple[str, str]

    @property
    def nbytes(self) -> int:
        return self.ours.read_bytes + self.theirs.read_bytes


class Pairing(NamedTuple):
    """What will be compared, and what cannot be."""

    stores: tuple[Store, Store]
    pairs: list[_Pair]
    rest: Comparison

    @property
    def nbytes(self) -> int:
        """Bytes that comparing reads."""
        return sum(pair.nbytes for pair in self.pairs)


def pair(ours: Store, theirs: Store, only: str | Iterable[str] = (), skip: str | Iterable[str] = ()) -> Pairing:
    """Match the parameters of two checkpoints by name; `only` and `skip` are a glob or several.

    Raises:
        SourceError, FormatError: one of them cannot be opened, or contradicts itself.
        PlanError: they have nothing in common. UsageError: `only` or `skip` is not globs.
    """
    only, skip = globs("only", only), globs("skip", skip)
    mine, other = _held(ours), _held(theirs)
    wanted = {name: None for name in (*mine, *other) if (not only or _matches(name, only)) and not _matches(name, skip)}
    pairs, reshaped, not_numbers = [], [], []
    for name in wanted:
        if name not in mine or name not in other:
            continue
        if mine[name][0].shape != other[name][0].shape:
            reshaped.append(Reshaped(name, mine[name][0].shape, other[name][0].shape))
        elif not (mine[name][1] and other[name][1]):
            not_numbers.append(name)
        else:
            pairs.append(_pair(*mine[name], other[name][1]))
    if not pairs:
        raise PlanError(f"{ours.place} and {theirs.place}: no parameter to compare", hint="check --only and --skip")
    rest = Comparison(
        (ours.place, theirs.place),
        (),
        tuple(name for name in wanted if name not in other),
        tuple(name for name in wanted if name not in mine),
        tuple(reshaped),
        tuple(not_numbers),
    )
    return Pairing((ours, theirs), pairs, rest)


def _matches(name: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _held(store: Store) -> dict[str, tuple[Param, tuple[Piece, ...]]]:
    """Every parameter of a checkpoint and its pieces; tensors of no known parameter under their own names."""
    checkpoint = open_checkpoint(store)
    require_whole(checkpoint, allow_missing=True, allow_extra=True)
    held = {
        param.name: (param, pieces)
        for param in checkpoint.params
        if (pieces := checkpoint.survey.pieces.get(param.name))
    }
    return held | _extras(checkpoint)


def _extras(checkpoint: Checkpoint) -> dict[str, tuple[Param, tuple[Piece, ...]]]:
    """Tensors that the architecture does not have, a weight and its scale together; without pieces where no codec
    reads them as numbers."""
    names = {ref.name: ref for ref in checkpoint.survey.extra}
    found: dict[str, tuple[Param, tuple[Piece, ...]]] = {}
    parts: set[str] = set()
    for name, ref in names.items():
        param = Param(name, Family(name, ref.spec.shape, OTHER, dtype=ref.spec.dtype), None, None)
        piece = _extra(checkpoint, param, names)
        found[name] = (param, (piece,) if piece else ())
        parts |= {part.name for part in piece.refs[1:]} if piece else set()
    return {name: held for name, held in found.items() if name not in parts}


def _extra(checkpoint: Checkpoint, param: Param, names: dict[str, TensorRef]) -> Piece | None:
    slot = whole(param, "", param.name)
    for codec in checkpoint.codecs:
        stored = [stored_name(checkpoint.layout, param.name, codec.dialect, part) for part in codec.parts]
        if any(name not in names for name in stored) or (codec.plain and codec.plain not in FLOATS):
            continue
        refs = tuple(names[name] for name in stored)
        reader = codec.reads(param.shape, {part: ref.spec for part, ref in zip(codec.parts, refs, strict=True)})
        if reader is not None:
            return Piece(slot, reader, refs)
    return None


def _pair(param: Param, ours: tuple[Piece, ...], theirs: tuple[Piece, ...]) -> _Pair:
    codecs = ours[0].codec, theirs[0].codec
    plain = [codec.plain for codec in codecs if codec.plain]
    dtype = plain[0] if len(plain) == 1 else "F32"
    steps = [_reading(param, pieces, dtype) for pieces in (ours, theirs)]
    return _Pair(param, steps[0], steps[1], dtype, (codecs[0].name, codecs[1].name))


def _reading(param: Param, pieces: tuple[Piece, ...], dtype: str) -> Step:
    target = Region(Box.whole(param.shape), Plain(dtype), (), param.shape, (0,) * len(param.shape))
    return Step(param.name, param.shape, "recode", tuple(region_of(piece) for piece in pieces), (target,))


def compare(pairing: Pairing, advance: Advance = lambda nbytes: None) -> Comparison:
    """Read both sides of every pair, each byte once, and sum.

    Raises:
        SourceError: a file cannot be read. FormatError: a scale cannot be one.
    """
    import torch

    torch.set_num_threads(1)
    order = sorted(
        pairing.pairs, key=lambda pair: (pair.ours.reads[0].parts[0].file, pair.ours.reads[0].parts[0].offset)
    )
    reader = _Reader(pairing.stores)
    found: dict[str, Compared] = {}
    pool = ThreadPoolExecutor(min(THREADS, len(os.sched_getaffinity(0))))
    try:
        for pair, one in zip(order, pool.map(reader.compared, order), strict=True):
            found[pair.param.name] = one
            advance(pair.nbytes)
    finally:
        reader.stop.set()
        pool.shutdown(cancel_futures=True)
    compared = tuple(found[pair.param.name] for pair in pairing.pairs)
    return replace(pairing.rest, compared=compared)


class _Reader:
    """Reads pairs; every thread has buffers of its own."""

    def __init__(self, stores: tuple[Store, Store]) -> None:
        self.stores, self.stop, self._own = stores, threading.Event(), threading.local()

    def _sides(self) -> tuple[Values, Values]:
        from dsctl.work.values import Values

        if not hasattr(self._own, "sides"):
            self._own.sides = tuple(Values(store) for store in self.stores)
        return self._own.sides  # type: ignore[no-any-return]

    def compared(self, pair: _Pair) -> Compared:
        """One parameter's sums."""
        ours, theirs = self._sides()
        both = Step(pair.param.name, pair.param.shape, "recode", pair.ours.reads, pair.theirs.reads)
        sums = Sums()
        for band in Box.whole(pair.param.shape).bands(both.band_rows(BAND_BYTES)):
            if self.stop.is_set():
                break
            try:
                sums.add(summed(_read(ours, pair.ours, band, pair.dtype), _read(theirs, pair.theirs, band, pair.dtype)))
            except BadBlock as error:
                raise FormatError(f"{pair.param.name}: {error.what}") from None
        param, scales = pair.param, (_scales(ours, pair.ours), _scales(theirs, pair.theirs))
        return Compared(param.name, param.family.group, param.shape, pair.formats, sums, param.layer, scales)


def _scales(side: Values, step: Step) -> ScaleCounts:
    """The block scales of one side's parameter; they are few beside its values, and just read."""
    import torch

    counts = ScaleCounts()
    for spec, stored in side.scales(step):
        counts.add(ScaleCounts.of(as_float32(stored.reshape(-1).view(torch.uint8).numpy().tobytes(), spec.dtype)))
    return counts


def _read(side: Values, step: Step, band: Box, dtype: str) -> torch.Tensor:
    import torch

    values = side.read(step, band)
    quantized = step.reads[0].codec.plain is None
    return values.to(torch.float16) if quantized and dtype == "F16" else values


def summed(ours: torch.Tensor, theirs: torch.Tensor) -> Sums:
    """The sums over two tensors of one shape, of any float dtypes."""
    import torch

    total = Sums()
    flat = ours.reshape(-1), theirs.reshape(-1)
    for begin in range(0, ours.numel(), CHUNK):
        a, b = (side[begin : begin + CHUNK] for side in flat)
        same = a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))
        total.add(_identical(a) if same else _different(a, b))
    return total


def _bits(values: torch.Tensor) -> torch.Tensor:
    import torch

    return values.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[values.itemsize])


def _identical(a: torch.Tensor) -> Sums:
    import torch

    exact = a.double()
    energy = float(torch.dot(exact, exact))
    if not math.isfinite(energy):
        return _different(a, a)
    return Sums(len(a), len(a), 0, energy, energy, energy, bins={0: len(a)})


def _different(a: torch.Tensor, b: torch.Tensor) -> Sums:
    import torch

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


# Stands in for the larger of two zeros.
_SMALLEST = 2.0**-149
_LARGEST = 2.0**127


def _not_finite(a: torch.Tensor, b: torch.Tensor) -> Sums:
    """Sums of the finite pairs; the others are counted."""
    finite = a.isfinite() & b.isfinite()
    sums = _different(a[finite], b[finite]) if bool(finite.any()) else Sums()
    odd, even = a[~finite], b[~finite]
    sums.values, sums.not_finite = len(a), len(odd)
    sums.identical += int(((odd == even) | (odd.isnan() & even.isnan())).sum())
    return sums


def histogram(sums: Sums) -> Iterator[tuple[int, int]]:
    """Counts of values by the power of two at or below their relative error, ascending, without empty ones."""
    return ((place - EXPONENT_ONE, count) for place, count in sorted(sums.bins.items()) if place)
