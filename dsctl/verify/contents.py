"""Read every byte once: digests of files, and impossible values of tensors. In bands, files in parallel, numpy."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.pieces import Piece
from dsctl.checkpoint.signed_files import SignedFile, Signer, differences, read_entry
from dsctl.codecs.codec import Codec
from dsctl.core.header import TensorRef
from dsctl.core.params import Param
from dsctl.core.processors import cores
from dsctl.core.progress import Advance
from dsctl.stores import SIGNED
from dsctl.verify.findings import Finding
from dsctl.verify.rows import RowsRead
from dsctl.verify.seen import INTEGERS, KINDS, Seen, rows_of
from dsctl.verify.structure import params, placed
from dsctl.verify.tables import WHOLE, TableRead
from dsctl.verify.values import block_scales, copies, duplicates, far, largest, unfilled, values

BAND_BYTES = 2 << 20
THREADS = 8
# Tensors that a finding names.
NAMED = 3

# A stored tensor's file and name.
_TensorName = tuple[str, str]


@dataclass(slots=True)
class ReadContents:
    """The findings of reading all files, the bytes read, the number of files compared with digests, and whose."""

    findings: list[Finding] = field(default_factory=list)
    nbytes: int = 0
    digests: int = 0
    algorithms: frozenset[str] = frozenset()


class _Read(NamedTuple):
    """The result of reading a file."""

    file: str
    differences: list[str] | None
    seen: list[Seen]
    findings: list[Finding]


def read_contents(
    checkpoint: Checkpoint, signed: Mapping[str, SignedFile], advance: Advance = lambda nbytes: None
) -> ReadContents:
    """Read every weight file, and every other signed file, once.

    Raises:
        SourceError: a file cannot be read.
    """
    held, unknown = list(params(checkpoint)), checkpoint.generic is not None
    # Integers of an unknown architecture may be anything.
    held = [(param, piece) for param, piece in held if not (unknown and piece.codec.plain in INTEGERS)]
    owners = {ref.name: (param, piece.codec) for param, piece in held for ref in piece.refs[:1]}
    stacked = {ref.name for _, piece in held if piece.slot.stack for ref in piece.refs}
    codecs = {name: codec for name, (_, codec) in owners.items() if codec.scale_fmt and name not in stacked}
    copied = _copied(checkpoint)
    whole = frozenset(name for group in copied for _, name in group)
    looked_up = frozenset(piece.refs[0].name for param, piece in held if param.family.table)
    known = _Known(frozenset(owners), codecs, whole, dict(_stated(held)), dict(_tables(held)), looked_up)
    reader = _ContentReader(checkpoint, known, signed, advance)
    contents = ReadContents()
    seen: dict[_TensorName, Seen] = {}
    for read in reader.files():
        contents.nbytes += checkpoint.files[read.file]
        if read.differences is not None:
            contents.digests += 1
            contents.algorithms |= {*signed[read.file].algorithms}
            if read.differences:
                contents.findings.append(Finding("digest", read.file, _unlike(read.differences)))
        contents.findings += read.findings
        seen |= {(one.ref.file, one.ref.name): one for one in read.seen}
    scales = {(p.refs[0].file, p.refs[0].name): p.refs[-1] for _, p in held if len(p.refs) > 1}
    sizes: dict[str, list[tuple[Seen, float]]] = {}
    for place, one in seen.items():
        param = owners[one.ref.name][0] if one.ref.name in owners else None
        if place in known.tables:
            continue
        vector = unknown and len(one.ref.spec.shape) < 2
        found = list(values(one, vector or (param is not None and param.template.endswith("bias"))))
        # A rank's tensor may have the name of a different rank's parameter without being a parameter itself.
        scale = scales.get(place)
        decoded = block_scales(one, scale, checkpoint.store) if one.codec and scale else None
        if scale and decoded is not None:
            found += unfilled(one, scale, decoded)
        contents.findings += placed(checkpoint, one.ref, found)
        if param is not None and len(one.ref.spec.shape) > 1 and one.peaks.any():
            sizes.setdefault(param.template, []).append((one, largest(one, decoded)))
    contents.findings += far(sizes)
    contents.findings += copies([seen[place] for place in group if place in seen] for group in copied)
    matrices = (one for place, one in seen.items() if place not in known.tables)
    weights = {one.ref.name: one for one in matrices if one.ref.name in owners and one.peaks.any()}
    if checkpoint.layout.shares is None and not unknown:
        params_ = {name: param for name, (param, _) in owners.items()}
        contents.findings += duplicates(weights, params_, checkpoint.store)
    return contents


def _copied(checkpoint: Checkpoint) -> list[list[_TensorName]]:
    """Groups of tensors on different ranks that hold copies of the same region of a parameter."""
    if checkpoint.layout.shares is None:
        return []
    found: dict[tuple[object, ...], list[_TensorName]] = {}
    for param, piece in params(checkpoint):
        for part, ref in zip(piece.codec.parts, piece.refs, strict=True) if piece.slot.stack is None else ():
            found.setdefault((param.name, piece.slot.region, part), []).append((ref.file, ref.name))
    return [places for places in found.values() if len(places) > 1]


def _stated(held: Iterable[tuple[Param, Piece]]) -> Iterator[tuple[_TensorName, bytes]]:
    """The tensors whose bytes follow from a shape, such as `weight_shape`, with these bytes."""
    for _, piece in held:
        said = piece.codec.stated(piece.slot.container)
        for part, ref in zip(piece.codec.parts, piece.refs, strict=True) if not piece.slot.stack else ():
            if part in said:
                yield (ref.file, ref.name), said[part]


def _tables(held: Iterable[tuple[Param, Piece]]) -> Iterator[tuple[_TensorName, int]]:
    """The tables of integers, each with the limit that its numbers are below."""
    for param, piece in held:
        ref = piece.refs[0]
        if param.family.below and ref.spec.dtype in WHOLE and len(ref.spec.shape) == 2:
            yield (ref.file, ref.name), param.family.below


class _Known(NamedTuple):
    """Facts about tensors before they are read: the weights, the codecs of some, the tensors to read whole, the bytes
    that some must hold, the limits of the numbers in tables, and the tables whose rows are looked up."""

    weights: frozenset[str]
    codecs: Mapping[str, Codec]
    whole: frozenset[str]
    stated: Mapping[_TensorName, bytes]
    tables: Mapping[_TensorName, int]
    looked_up: frozenset[str]


class _ContentReader:
    """Reads files on threads; everything except Python's own bookkeeping runs without the interpreter lock."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        known: _Known,
        signed: Mapping[str, SignedFile],
        advance: Advance,
    ) -> None:
        self.checkpoint, self.known, self.signed, self._advance = checkpoint, known, signed, advance
        self.store = checkpoint.store
        self._stop, self._lock = threading.Event(), threading.Lock()

    def files(self) -> Iterator[_Read]:
        """Every file, the largest first."""
        names = [f for f in self.checkpoint.files if f in self.signed or f in self.checkpoint.headers]
        names.sort(key=lambda name: -self.checkpoint.files[name])
        pool = ThreadPoolExecutor(min(THREADS, cores()))
        try:
            yield from pool.map(self._file, names)
        finally:
            self._stop.set()
            pool.shutdown(cancel_futures=True)

    def _file(self, file: str) -> _Read:
        header, entry = self.checkpoint.headers.get(file), self.signed.get(file)
        if header is None and entry is not None:
            found = read_entry(self.store, file, self.checkpoint.files[file], entry)
            self._done(self.checkpoint.files[file])
            return _Read(file, differences(entry, found, None), [], [])
        signer = Signer(entry, header) if entry else None
        tensors = list(header.tensors.values()) if header else []
        at = header.size if header else self.checkpoint.files[file]
        seen, findings = [], []
        if signer is not None:
            signer.update(self.store.read(file, 0, at))
        self._done(at)
        buffer = np.empty(BAND_BYTES, np.uint8)
        for ref in tensors:
            known, place = self.known, (file, ref.name)
            one = Seen.new(ref, known.codecs.get(ref.name), ref.name in known.whole) if self._tells(ref) else None
            said = known.stated.get(place)
            table = self._table(ref)
            for band, first in self._bands(ref, buffer):
                if signer is not None:
                    signer.update(band.data)
                if one is not None:
                    one.take(band, first)
                if table is not None:
                    table.take(band, first)
                if said is not None and band.tobytes() != said:
                    findings.append(
                        Finding("wrong-shape", ref.name, f"states {_numbers(ref, band)} instead of its shape")
                    )
            if table is not None:
                findings += table.findings()
            if one is not None and ref.nbytes:
                seen.append(one)
        differ = differences(entry, signer.entry(), header) if entry and signer else None
        return _Read(file, differ, seen, findings)

    def _table(self, ref: TensorRef) -> TableRead | RowsRead | None:
        """A reader for a table of integers, or for one whose rows are looked up."""
        below = self.known.tables.get((ref.file, ref.name))
        if below is not None:
            return TableRead(ref, below)
        return RowsRead(ref) if ref.name in self.known.looked_up and ref.spec.dtype in KINDS else None

    def _tells(self, ref: TensorRef) -> bool:
        """Whether a tensor's bits are checked: floats, and integers that are a parameter's codes."""
        if ref.name in self.known.looked_up:
            return False
        return ref.spec.dtype in KINDS and (ref.spec.dtype not in INTEGERS or ref.name in self.known.weights)

    def _bands(self, ref: TensorRef, buffer: npt.NDArray[np.uint8]) -> Iterator[tuple[npt.NDArray[np.uint8], int]]:
        """A tensor's bytes in bands of whole rows, each with the number of its first row."""
        rows, _ = rows_of(ref)
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


def _unlike(differences: list[str]) -> str:
    """The finding about a file whose bytes are not the signed ones."""
    what, more = ", ".join(differences[:NAMED]), len(differences) - NAMED
    return f"differs from {SIGNED}: {what}" + (f" and {more:,} more tensors" if more > 0 else "")


def _numbers(ref: TensorRef, band: npt.NDArray[np.uint8]) -> list[int]:
    """The integers of a short tensor."""
    return [int(number) for number in band.view(f"<i{ref.nbytes // ref.spec.values}")]
