"""Block scales as numbers, read without torch: impossible scales and powers of two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dsctl.codecs.codec import Codec
from dsctl.core.boxes import Box
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorRef
from dsctl.stores import Store
from dsctl.stores.threads import threads

# Neighbouring scales are read together; a gap up to this size costs less than a second request.
GAP_BYTES = 64 << 10
RUN_BYTES = 32 << 20
# Scales of a larger tensor are looked at in bands of rows: one byte becomes several of float32 and of masks.
BAND_BYTES = 4 << 20
# Requests at once if each costs a round trip.
CONNECTIONS = 16
_COPIED = "a program copied bytes as numbers: use the file from which this one was made"
_DAMAGED = "a scale must be finite and above zero: the file is damaged, download it again"
# Dtypes of scales that are numbers, not exponents.
NUMBERS = ("F32", "F16", "BF16")
# Dtypes of E8M0 scales.
EXPONENTS = ("F8_E8M0", "U8")
# Without reading weights, group scales are read only up to this many bytes: V4-Pro's experts have 49 GB of them. A
# block of at least `LARGE` values is not a group.
LOOKED_AT = 1 << 30
LARGE = 1024
# E8M0's byte of 2^-111.
_LEAST_BYTE = 16


class BadScale(NamedTuple):
    """An impossible scale and its block."""

    ref: TensorRef
    row: int
    column: int
    value: float

    def __str__(self) -> str:
        return f"{self.ref.name}: {self.told} (in {self.ref.file})"

    @property
    def told(self) -> str:
        """The scale in words; for E8M0 the one code that is not a number."""
        code = " (the byte 255)" if self.ref.spec.dtype in EXPONENTS else ""
        return f"scale of block [{self.row}, {self.column}] is {self.value:g}{code}"


def scales_to_check(refs: Mapping[TensorRef, Codec]) -> list[TensorRef]:
    """The scale tensors to read without weights: all, or only those of blocks if groups have too many."""
    many = {ref for ref, codec in refs.items() if 0 < prod(codec.form.group) < LARGE and ref.spec.values > 1}
    return list(refs) if sum(ref.nbytes for ref in many) <= LOOKED_AT else [ref for ref in refs if ref not in many]


def as_float32(raw: bytes | memoryview, dtype: str) -> npt.NDArray[np.float32]:
    """Stored scales (F32, F16, BF16, E8M0 as F8_E8M0 or U8, F8_E4M3; little endian) as float32.

    The E8M0 code 255 is NaN (OCP MX v1.0, 5.4.1), as E4M3's 0x7f and 0xff are.
    """
    if dtype == "F32":
        return np.frombuffer(raw, "<f4")
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32)
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype == "F8_E4M3":
        return _E4M3[np.frombuffer(raw, np.uint8)]
    if dtype in EXPONENTS:
        return _E8M0[np.frombuffer(raw, np.uint8)]
    raise FormatError(f"scales stored as {dtype} are not supported")


def _e4m3() -> npt.NDArray[np.float32]:
    """The value of each code: a sign, four bits of exponent with bias 7, three bits of mantissa."""
    codes = np.arange(128, dtype=np.int32)
    exponents, mantissas = codes >> 3, codes & 7
    values = np.ldexp(np.where(exponents, mantissas + 8, mantissas).astype(np.float32), np.maximum(exponents, 1) - 10)
    values[-1] = np.nan
    return np.concatenate((values, -values))


_E4M3 = _e4m3()
_E8M0 = np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.float32("nan"))


def read_scales(store: Store, refs: Iterable[TensorRef]) -> Iterator[tuple[TensorRef, npt.NDArray[np.float32]]]:
    """Every scale tensor's values in its shape; neighbours in a file are read with one request.

    Raises:
        SourceError: a file cannot be read.
    """
    if not store.remote:
        for run in _runs(refs):
            yield from _read_run(store, run)
        return
    with threads(CONNECTIONS) as pool:
        for some in _batches(_runs(refs), 8 * CONNECTIONS):
            reads = [pool.submit(partial(_read_all, store, run)) for run in some]
            for read in reads:
                yield from read.result()


def scale_bands(store: Store, ref: TensorRef) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """A scale tensor's values in bands of rows of at most `BAND_BYTES`, each with the number of its first row.

    Raises:
        SourceError: the file cannot be read.
    """
    rows = ref.spec.shape[0] if len(ref.spec.shape) > 1 else 1
    row = ref.nbytes // max(1, rows)
    step = max(1, BAND_BYTES // max(1, row))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        values = as_float32(store.read(ref.file, ref.begin + first * row, ref.begin + last * row), ref.spec.dtype)
        yield first, values.reshape((last - first, *ref.spec.shape[1:]) if len(ref.spec.shape) > 1 else ref.spec.shape)


def bad_band(store: Store, ref: TensorRef) -> BadScale | None:
    """The first impossible scale of a large tensor, or None; it is read in bands."""
    for first, values in scale_bands(store, ref):
        if bad := bad_scale(ref, values):
            return bad._replace(row=bad.row + first)
    return None


def split_large(refs: Iterable[TensorRef]) -> tuple[list[TensorRef], list[TensorRef]]:
    """Scale tensors that fit in memory as numbers, and those to read in bands: the scales of tables."""
    found: tuple[list[TensorRef], list[TensorRef]] = ([], [])
    for ref in refs:
        found[ref.nbytes > RUN_BYTES].append(ref)
    return found


def _read_all(store: Store, run: list[TensorRef]) -> list[tuple[TensorRef, npt.NDArray[np.float32]]]:
    return list(_read_run(store, run))


def _batches(runs: Iterable[list[TensorRef]], size: int) -> Iterator[list[list[TensorRef]]]:
    rest = iter(runs)
    while some := list(islice(rest, size)):
        yield some


def _runs(refs: Iterable[TensorRef]) -> Iterator[list[TensorRef]]:
    """Neighbours that are read together."""
    run: list[TensorRef] = []
    for ref in sorted(refs, key=lambda ref: (ref.file, ref.begin)):
        if run and (
            run[0].file != ref.file or ref.begin - run[-1].end > GAP_BYTES or ref.end - run[0].begin > RUN_BYTES
        ):
            yield run
            run = []
        run.append(ref)
    if run:
        yield run


def _read_run(store: Store, run: list[TensorRef]) -> Iterator[tuple[TensorRef, npt.NDArray[np.float32]]]:
    first = run[0].begin
    raw = store.read(run[0].file, first, run[-1].end)
    for ref in run:
        values = as_float32(raw[ref.begin - first : ref.end - first], ref.spec.dtype)
        yield ref, values.reshape(ref.spec.shape)


def are_bytes(ref: TensorRef, scales: npt.NDArray[np.float32]) -> bool:
    """Whether float scales are E8M0 bytes copied as numbers, 120 for 2^-7: whole numbers of a byte, mostly too large.

    Trained weights never have a block scale of 16 or more, and only blocks of zeros have a byte below 16.
    """
    if ref.spec.dtype not in NUMBERS or scales.ndim != 2 or not scales.size or are_powers_of_two(scales):
        return False
    bytes_ = (scales >= 0) & (scales < 255) & (scales == np.trunc(scales))
    return bool(bytes_.all() and 2 * np.count_nonzero(scales >= _LEAST_BYTE) > scales.size)


def bytes_told(ref: TensorRef, scales: npt.NDArray[np.float32]) -> str:
    """The message about such scales."""
    largest = int(scales.max())
    return f"holds the bytes of E8M0 scales as {ref.spec.dtype} numbers: {largest} instead of 2^{largest - 127}"


def bad_scale(ref: TensorRef, scales: npt.NDArray[np.float32]) -> BadScale | None:
    """The first scale that is NaN, infinite, zero or negative, or None. E4M3 scales, NVFP4's, may be zero."""
    good = ((scales >= 0) if ref.spec.dtype == "F8_E4M3" else (scales > 0)) & (scales < np.inf)
    if good.all():
        return None
    place = np.unravel_index(int(np.argmin(good)), scales.shape)
    row, column = ([int(n) for n in place] + [0, 0])[:2]
    return BadScale(ref, row, column, float(scales[place]))


@dataclass(slots=True)
class ScaleCounts:
    """Counts of scales: all, powers of two, and by the power of two at or below them (not zeros and non-numbers)."""

    number: int = 0
    powers: int = 0
    bins: dict[int, int] = field(default_factory=dict)

    @staticmethod
    def of(scales: npt.NDArray[np.float32]) -> ScaleCounts:
        """The counts of one tensor's scales."""
        usual = scales[np.isfinite(scales) & (scales > 0)]
        mantissas, exponents = np.frexp(usual)
        places, numbers = np.unique(exponents - 1, return_counts=True)
        bins = dict(zip(places.tolist(), numbers.tolist(), strict=True))
        return ScaleCounts(scales.size, int((mantissas == 0.5).sum()), bins)

    def add(self, other: ScaleCounts) -> None:
        """Add the counts of a second tensor."""
        self.number, self.powers = self.number + other.number, self.powers + other.powers
        for place, number in other.bins.items():
            self.bins[place] = self.bins.get(place, 0) + number


def are_powers_of_two(scales: npt.NDArray[np.float32]) -> bool:
    """Whether every scale is a power of two, as ue8m0 requires."""
    return bool(np.all(np.frexp(scales)[0] == 0.5))


def refuse_bad_scales(store: Store, refs: Iterable[TensorRef]) -> None:
    """Read all scales and refuse impossible ones before anything is written.

    Raises:
        FormatError: it lists every bad tensor with its first bad block.
    """
    found, copied = [], False
    refs, large = split_large(refs)
    found += [str(bad) for ref in large if (bad := bad_band(store, ref))]
    for ref, scales in read_scales(store, refs):
        if are_bytes(ref, scales):
            found.append(f"{ref.name}: {bytes_told(ref, scales)} (in {ref.file})")
            copied = True
        elif bad := bad_scale(ref, scales):
            found.append(str(bad))
    if found:
        first = found[0] if len(found) == 1 else f"{len(found)} scale tensors hold impossible scales"
        raise FormatError(first, issues=found, hint=_COPIED if copied else _DAMAGED)


def refuse_bad_box(ref: TensorRef, box: Box, raw: memoryview) -> None:
    """Refuse an impossible scale in these bytes of a box of a tensor.

    Raises:
        FormatError: it has the first such scale.
    """
    if ref.spec.dtype in EXPONENTS and np.frombuffer(raw, np.uint8).max(initial=0) < 255:
        return
    scales = as_float32(raw, ref.spec.dtype).reshape(box.shape)
    if are_bytes(ref, scales):
        raise FormatError(f"{ref.name}: {bytes_told(ref, scales)} (in {ref.file})", hint=_COPIED)
    if bad := bad_scale(ref, scales):
        row, column = (*box.start, 0, 0)[:2]
        raise FormatError(str(bad._replace(row=bad.row + row, column=bad.column + column)), hint=_DAMAGED)
