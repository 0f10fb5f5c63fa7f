"""Read the rows of a proof on several threads, each with buffers of its own. Loads torch."""

from __future__ import annotations

import threading
from math import prod

import torch

from dsctl.checkpoint.pieces import Piece
from dsctl.codecs.codec import BadBlock
from dsctl.codecs.grids import peak
from dsctl.core.boxes import Box
from dsctl.core.errors import FormatError
from dsctl.core.params import Param
from dsctl.look.judging import Pair, Side, judge
from dsctl.look.proving import Subject, Unit
from dsctl.look.verdicts import OTHER, Tally
from dsctl.plan.steps import region_of
from dsctl.stores import Store

BAND_BYTES = 4 << 20


class Reader:
    """Judges units; every thread reads with its own buffers."""

    def __init__(self, stores: tuple[Store, Store]) -> None:
        torch.set_num_threads(1)
        self.stop = threading.Event()
        self._stores, self._own = stores, threading.local()
        self._peaks: dict[str, torch.Tensor] = {}
        self._lock = threading.Lock()

    def judged(self, unit: Unit) -> Tally:
        """The verdict on a unit's rows.

        Raises:
            SourceError: a side cannot be read. FormatError: a scale of the source is impossible.
        """
        subject, tally = unit.subject, Tally()
        codec = subject.ours[unit.piece].codec
        whole = not unit.sampled or (codec.block[0] == 1 and not codec.surveys)
        pair = _pair(subject, unit.piece, whole, None if unit.sampled else self._peak(subject))
        try:
            for band in _bands(unit):
                if self.stop.is_set():
                    break
                tally.add(judge(pair, band, *self._sides))
        except BadBlock as error:
            raise FormatError(f"{subject.param.name}: {error.what} in the source") from None
        return tally

    def looks_like(self, subject: Subject, other: Subject) -> bool:
        """Whether the first row here is that of a different parameter of the source."""
        pair = _pair(subject._replace(theirs=other.theirs), 0, False, None)
        region = pair.ours.box
        row = Box(region.start, (region.start[0] + 1, *region.stop[1:])) if region.start else region
        try:
            return judge(pair, row, *self._sides).kind != OTHER
        except BadBlock:
            return False

    @property
    def _sides(self) -> tuple[Side, Side]:
        if not hasattr(self._own, "sides"):
            self._own.sides = tuple(Side(store) for store in self._stores)
        return self._own.sides  # type: ignore[no-any-return]

    def _peak(self, subject: Subject) -> torch.Tensor | None:
        """The largest magnitude of the parameters that share a global scale (float32 [1]); None if there is none."""
        if not subject.partners:
            return None
        key = subject.partners[0][0].name
        # One thread reads them; the others would read them again.
        with self._lock:
            if key not in self._peaks:
                found = [self._largest(param, pieces) for param, pieces in subject.partners]
                self._peaks[key] = torch.stack(found).amax(0)
        return self._peaks[key]

    def _largest(self, param: Param, pieces: tuple[Piece, ...]) -> torch.Tensor:
        regions, found = tuple(map(region_of, pieces)), torch.zeros(1)
        for band in Box.whole(param.shape).bands(_rows(param.shape, 128)):
            values = self._sides[1].values(regions, band, torch.float32)
            found = torch.maximum(found, peak(values))
        return found


def _pair(subject: Subject, piece: int, whole: bool, largest: torch.Tensor | None) -> Pair:
    theirs = tuple(map(region_of, subject.theirs))
    native = theirs[0].codec.plain if len(theirs) == 1 else None
    return Pair(region_of(subject.ours[piece]), theirs, native, largest, whole)


def _rows(shape: tuple[int, ...], step: int) -> int:
    """Rows of about `BAND_BYTES` as float32, a multiple of `step`."""
    return max(1, BAND_BYTES // (4 * max(1, prod(shape[1:]))) // step) * step


def _bands(unit: Unit) -> list[Box]:
    if not unit.rows.start:
        return [unit.rows]
    steps = [unit.subject.ours[unit.piece].codec.block[0], *(one.codec.block[0] for one in unit.subject.theirs)]
    return list(unit.rows.bands(_rows(unit.rows.shape, 1 if unit.sampled else max(steps))))
