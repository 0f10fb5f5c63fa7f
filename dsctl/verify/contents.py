"""Every byte, once: digests of files, and what values of tensors cannot be. In bands, files in parallel, numpy.

A float's magnitude is its bits without the sign, and grows with them: NaN and infinity lie at the top, zero is 0. So
largest magnitudes are integer maxima, taken at the speed of memory.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from dsctl.checkpoint import Checkpoint
from dsctl.codecs.e4m3 import LARGEST, SMALLEST_PEAK
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.header import TensorRef
from dsctl.models import Param
from dsctl.scales import as_float32
from dsctl.stores import Store
from dsctl.verify.findings import Finding
from dsctl.verify.structure import params

BAND_BYTES = 2 << 20
# Bands are looked at in pieces that stay in the cache.
PIECE_BYTES = 256 << 10
THREADS = 8
SAMPLE_BYTES = 1 << 10

Advance = Callable[[int], None]


class _Kind(NamedTuple):
    """A dtype's bits: as an integer, without the sign, not finite from here on, and huge (2^20) from here on.

    Of integers, codes or packed codes, all bits count and none is too large.
    """

    integer: str
    magnitude: int
    not_finite: int
    huge: int


_INTEGERS = ("I8", "U8", "I32")
_KINDS = {
    "BF16": _Kind("<u2", 0x7FFF, 0x7F80, 0x4980),
    "F16": _Kind("<u2", 0x7FFF, 0x7C00, 0x7C00),
    "F32": _Kind("<u4", 0x7FFFFFFF, 0x7F800000, 0x49800000),
    "F64": _Kind("<u8", (1 << 63) - 1, 0x7FF << 52, 0x413 << 52),
    "F8_E4M3": _Kind("u1", 0x7F, 0x7F, 0x7F),
    "F8_E5M2": _Kind("u1", 0x7F, 0x7C, 0x7C),
    "I8": _Kind("u1", 0xFF, 1 << 8, 1 << 8),
    "U8": _Kind("u1", 0xFF, 1 << 8, 1 << 8),
    "I32": _Kind("<u4", 0xFFFFFFFF, 1 << 32, 1 << 32),
}
# E4M3's code of 224: the recipe's scales let some code of a block reach it (half of the largest, for powers of two).
_HALF = 0x76
# A scale this small was not made from its block's values, but from the least peak the recipe allows.
_LEAST_SCALE = 2.0 ** np.ceil(np.log2(SMALLEST_PEAK / LARGEST))


@dataclass(slots=True)
class Seen:
    """What reading a tensor has shown: peaks per row (per block where quantized), as magnitudes; a fingerprint."""

    ref: TensorRef
    codec: Fp8Block | None
    peaks: npt.NDArray[np.uint64]
    print: int = 0

    @classmethod
    def new(cls, ref: TensorRef, codec: Fp8Block | None) -> Seen:
        """Nothing seen yet."""
        grid = codec.grid(ref.spec.shape) if codec else (_rows(ref)[0], 1)
        return cls(ref, codec, np.zeros(grid, np.dtype(_KINDS[ref.spec.dtype].integer)))

    def look(self, rows: npt.NDArray[np.uint64], first: int) -> None:
        """Take the next rows, of which the first has this number."""
        magnitudes = rows & rows.dtype.type(_KINDS[self.ref.spec.dtype].magnitude)
        if self.codec is None:
            self.peaks[first : first + len(rows), 0] = magnitudes.max(axis=1, initial=0)
            return
        height, width = self.codec.block
        edges = range(0, rows.shape[1], width)
        for begin, end in _cuts(first, len(rows), height):
            found = np.maximum.reduceat(magnitudes[begin - first : end - first].max(axis=0), edges)
            index = begin // height
            np.maximum(self.peaks[index], found, out=self.peaks[index])


def _cuts(first: int, count: int, height: int) -> Iterator[tuple[int, int]]:
    """The rows [first, first + count) cut where rows of blocks begin."""
    begin = first
    while begin < first + count:
        end = min((begin // height + 1) * height, first + count)
        yield begin, end
        begin = end


def _rows(ref: TensorRef) -> tuple[int, int]:
    """A tensor's rows and columns: a vector is one row, what has more dimensions is flattened to the last."""
    columns = ref.spec.shape[-1] if ref.spec.shape else 1
    return (ref.spec.values // columns if columns else 0), columns


@dataclass(slots=True)
class Contents:
    """What reading everything has shown."""

    findings: list[Finding] = field(default_factory=list)
    nbytes: int = 0
    digests: int = 0


class _Read(NamedTuple):
    """What reading a file has shown."""

    file: str
    sha256: str | None
    seen: list[Seen]


def read_contents(
    checkpoint: Checkpoint, digests: Mapping[str, str], advance: Advance = lambda nbytes: None
) -> Contents:
    """Read every weight file, and every other file with a digest, once.

    Raises:
        SourceError: a file cannot be read.
    """
    owners = {ref.name: (param, piece.codec) for param, piece in params(checkpoint) for ref in piece.refs[:1]}
    stacked = {ref.name for _, piece in params(checkpoint) if piece.slot.stack for ref in piece.refs}
    blocks = ((name, codec) for name, (_, codec) in owners.items() if isinstance(codec, Fp8Block))
    codecs = {name: codec for name, codec in blocks if name not in stacked}
    reader = _Reader(checkpoint, frozenset(owners), codecs, digests, advance)
    contents = Contents()
    seen: list[Seen] = []
    for read in reader.files():
        contents.nbytes += checkpoint.files[read.file]
        if read.sha256 is not None:
            contents.digests += 1
            if read.sha256 != digests[read.file]:
                contents.findings.append(Finding("digest", read.file, "its bytes are not those that dsctl.json signs"))
        seen += read.seen
    held = [piece.refs for _, piece in params(checkpoint) if len(piece.refs) > 1]
    scales = {(refs[0].file, refs[0].name): refs[-1] for refs in held}
    biases = {name for name, (param, _) in owners.items() if param.template.endswith("bias")}
    for one in seen:
        contents.findings += _values(one, one.ref.name in biases)
        if one.codec is not None:
            contents.findings += _range(one, scales[one.ref.file, one.ref.name], checkpoint.store)
    weights = {one.ref.name: one for one in seen if one.ref.name in owners and one.peaks.any()}
    if checkpoint.layout.shares is None:
        known = {name: param for name, (param, _) in owners.items()}
        contents.findings += _duplicates(weights, known, checkpoint.store)
    return contents


class _Reader:
    """Reads files on threads; all but Python's own bookkeeping runs without its lock."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        weights: frozenset[str],
        codecs: Mapping[str, Fp8Block],
        digests: Mapping[str, str],
        advance: Advance,
    ) -> None:
        self.weights = weights
        self.checkpoint, self.codecs, self.digests, self._advance = checkpoint, codecs, digests, advance
        self.store = checkpoint.store
        self._stop, self._lock = threading.Event(), threading.Lock()

    def files(self) -> Iterator[_Read]:
        """Every file, the largest first."""
        names = [f for f in self.checkpoint.files if f in self.digests or f in self.checkpoint.headers]
        names.sort(key=lambda name: -self.checkpoint.files[name])
        pool = ThreadPoolExecutor(min(THREADS, len(os.sched_getaffinity(0))))
        try:
            yield from pool.map(self._file, names)
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)

    def _file(self, file: str) -> _Read:
        digest = hashlib.sha256() if file in self.digests else None
        header = self.checkpoint.headers.get(file)
        tensors = list(header.tensors.values()) if header else []
        at = header.size if header else self.checkpoint.files[file]
        seen = []
        if digest is not None:
            for begin in range(0, at, BAND_BYTES):
                digest.update(self.store.read(file, begin, min(begin + BAND_BYTES, at)))
        self._done(at)
        buffer = np.empty(BAND_BYTES, np.uint8)
        for ref in tensors:
            one = Seen.new(ref, self.codecs.get(ref.name)) if self._tells(ref) else None
            for band, first in self._bands(ref, buffer):
                if digest is not None:
                    digest.update(band.data)
                if one is not None:
                    _look(one, band, first)
            if one is not None and ref.nbytes:
                seen.append(one)
        return _Read(file, digest.hexdigest() if digest else None, seen)

    def _tells(self, ref: TensorRef) -> bool:
        """Whether a tensor's bits are looked at: those of floats, and integers that are a parameter's codes."""
        return ref.spec.dtype in _KINDS and (ref.spec.dtype not in _INTEGERS or ref.name in self.weights)

    def _bands(self, ref: TensorRef, buffer: npt.NDArray[np.uint8]) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
        """A tensor's bytes in bands of whole rows, with the number of the first."""
        rows, _ = _rows(ref)
        if not ref.nbytes:
            return
        width = ref.nbytes // rows
        step = max(1, BAND_BYTES // width)
        if width > len(buffer):
            buffer = np.empty(width, np.uint8)
        for first in range(0, rows, step):
            band = buffer[: min(step, rows - first) * width]
            self.store.read_into(ref.file, ref.begin + first * width, band.data)
            yield band, first
            self._done(len(band))

    def _done(self, nbytes: int) -> None:
        if self._stop.is_set():
            raise InterruptedError
        with self._lock:
            self._advance(nbytes)


def _look(one: Seen, band: npt.NDArray[np.uint8], first: int) -> None:
    _, columns = _rows(one.ref)
    rows = band.view(_KINDS[one.ref.spec.dtype].integer).reshape(-1, columns)
    height = one.codec.block[0] if one.codec else 1
    step = max(1, PIECE_BYTES // (columns * rows.itemsize) // height) * height
    for begin in range(0, len(rows), step):
        piece = rows[begin : begin + step]
        one.look(piece, first + begin)
        one.print = crc32(piece.reshape(-1)[: SAMPLE_BYTES // rows.itemsize].data, one.print)


def _values(one: Seen, is_bias: bool) -> Iterator[Finding]:
    """NaN, infinity, absurd magnitudes, and zeros in a tensor."""
    kind, name = _KINDS[one.ref.spec.dtype], one.ref.name
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
    if len(zero):
        yield Finding("zero-part", name, f"{len(zero):,} of {one.peaks.size:,} {part}s are zero: {_places(zero, one)}")


def _places(found: npt.NDArray[np.int64], one: Seen, limit: int = 3) -> str:
    shown = [f"[{row}, {column}]" if one.codec else f"{row}" for row, column in found[:limit].tolist()]
    more = f" and {len(found) - limit:,} more" if len(found) > limit else ""
    return ("block " if one.codec else "row ") + ", ".join(shown) + more


def _range(one: Seen, scale: TensorRef, store: Store) -> Iterator[Finding]:
    """Blocks whose codes leave the upper half of FP8's range empty, although a scale is chosen to fill it."""
    raw = store.read(scale.file, scale.begin, scale.end)
    scales = as_float32(raw, scale.spec.dtype).reshape(one.peaks.shape)
    loose = np.argwhere((one.peaks > 0) & (one.peaks < _HALF) & (scales > _LEAST_SCALE))
    if len(loose):
        what = f"{len(loose):,} of {scales.size:,} blocks use less than half of FP8's range: {_places(loose, one)}"
        yield Finding("scale-too-large", scale.name, what)


def _duplicates(weights: Mapping[str, Seen], owners: Mapping[str, Param], store: Store) -> Iterator[Finding]:
    """Matrices that hold the same bytes: those that should, and those that should not."""
    pairs = ((name, param.family.twin) for name, param in owners.items() if name in weights)
    twins = {name: twin for name, twin in pairs if twin is not None and twin in weights}
    for name, twin in twins.items():
        if weights[name].ref.spec != weights[twin].ref.spec:
            continue
        same = _same(weights[name], weights[twin], store)
        code, what = ("twin-equal", "equals") if same else ("twin-differs", "differs from")
        yield Finding(code, name, f"{what} {twin}, which it duplicates in releases")
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
    """Whether two tensors hold the same bytes; those with the same fingerprint are read again."""
    if one.print != other.print or not np.array_equal(one.peaks, other.peaks):
        return False
    pairs: Iterable[tuple[int, int]] = (
        (begin, min(begin + BAND_BYTES, one.ref.nbytes)) for begin in range(0, one.ref.nbytes, BAND_BYTES)
    )
    return all(
        store.read(one.ref.file, one.ref.begin + begin, one.ref.begin + end)
        == store.read(other.ref.file, other.ref.begin + begin, other.ref.begin + end)
        for begin, end in pairs
    )
