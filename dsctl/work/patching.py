"""The bytes of a new tensor from those of the old one and a delta's frame, in order and in pieces. Loads numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dsctl.checkpoint.delta_change import COUNT_BYTES, POSITION_BYTES, Change
from dsctl.checkpoint.delta_form import OVERWRITE, SHUFFLED, SHUFFLED_BYTES
from dsctl.core.errors import FormatError
from dsctl.work.differences import unshuffled

# Bytes at a time: small enough for a core's own cache, and for memory that is used again at once.
PIECE_BYTES = 256 << 10

# Fills a buffer with the old tensor's bytes from a place on.
ReadInto = Callable[[int, memoryview], None]
# The bytes [begin, end) of a file.
Read = Callable[[str, int, int], bytes]


def patched(change: Change, base: ReadInto | None, read: Read, place: str = "") -> Iterator[memoryview]:
    """The bytes of the new tensor, in buffers that the next piece uses again.

    Raises:
        FormatError: the frame is damaged, or does not fit the tensor. SourceError: one of both cannot be read.
    """
    if change.encoding == OVERWRITE and not change.whole:
        assert base is not None, "only a tensor that is stored whole has no base"
        return _overwritten(change, base, Overwrites(change, read, place))
    frame = change.frame(read, place)
    if change.whole:
        return map(memoryview, frame.pieces(PIECE_BYTES))
    assert base is not None, "only a tensor that is stored whole has no base"
    pieces = frame.exact(SHUFFLED_BYTES) if change.encoding == SHUFFLED else frame.pieces(PIECE_BYTES)
    return _xored(change, pieces, base)


def _xored(change: Change, pieces: Iterator[bytes | bytearray], base: ReadInto) -> Iterator[memoryview]:
    most = SHUFFLED_BYTES if change.encoding == SHUFFLED else PIECE_BYTES
    at, buffer = 0, np.empty(min(most, change.nbytes), np.uint8)
    for piece in pieces:
        found: Any = np.frombuffer(piece, np.uint8)
        if change.encoding == SHUFFLED:
            found = unshuffled(found, change.width)
        old = buffer[: len(found)]
        base(at, old.data)
        np.bitwise_xor(old, found, out=old)
        yield old.data
        at += len(found)


def _overwritten(change: Change, base: ReadInto, overwrites: Overwrites) -> Iterator[memoryview]:
    """The old bytes with those at some positions replaced."""
    buffer = np.empty(min(PIECE_BYTES, change.nbytes), np.uint8)
    for at in range(0, change.nbytes, PIECE_BYTES):
        end = min(at + PIECE_BYTES, change.nbytes)
        old = buffer[: end - at]
        base(at, old.data)
        for positions, values in overwrites.before(end):
            old[positions - at] = values
        yield old.data
    overwrites.finish(change.nbytes)


class Overwrites:
    """The positions and values of an overwriting frame, taken side by side in the order of positions.

    Raises:
        FormatError: the frame is damaged, or its positions do not rise.
    """

    def __init__(self, change: Change, read: Read, place: str = "") -> None:
        frame = change.frame(read, place)
        self._where = f"{place}{change.file.rpartition('://')[2]}: {change.name}"
        self._positions = _Bytes(frame.pieces(PIECE_BYTES))
        self._left = self.number = int.from_bytes(self._positions.take(COUNT_BYTES), "little")
        if frame.nbytes != COUNT_BYTES + (POSITION_BYTES + 1) * self.number:
            what = f"holds {frame.nbytes:,} bytes, which does not fit {self.number:,} positions"
            raise FormatError(f"{self._where}: {what}")
        self._values = _Bytes(change.frame(read, place).pieces(PIECE_BYTES))
        self._values.skip(COUNT_BYTES + POSITION_BYTES * self.number)
        self._held: Any = np.empty(0, np.int64)
        self._last = -1

    @property
    def is_done(self) -> bool:
        """Whether all positions were taken."""
        return not self._left and not self._held.size

    def before(self, end: int) -> Iterator[tuple[Any, Any]]:
        """The next positions (int64) below `end`, and their values (uint8), in runs."""
        while not self.is_done:
            if not self._held.size:
                self._held = self._next()
            here = int(np.searchsorted(self._held, end))
            if not here:
                return
            yield self._held[:here], np.frombuffer(self._values.take(here), np.uint8)
            self._held = self._held[here:]

    def finish(self, nbytes: int) -> None:
        """Refuse positions outside of a tensor, and a frame that goes on."""
        if not self.is_done:
            raise FormatError(f"{self._where}: has positions outside of its {nbytes:,} bytes")
        self._positions.finish()
        self._values.finish()

    def _next(self) -> Any:
        taken = min(self._left, PIECE_BYTES // POSITION_BYTES)
        self._left -= taken
        found: Any = np.frombuffer(self._positions.take(POSITION_BYTES * taken), "<u4").astype(np.int64)
        if found[0] <= self._last or (found.size > 1 and int(np.diff(found).min()) < 1):
            raise FormatError(f"{self._where}: its positions do not rise")
        self._last = int(found[-1])
        return found


class _Bytes:
    """The content of a frame, taken in runs of any length."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = bytearray()

    def take(self, length: int) -> bytes:
        while len(self._held) < length and (piece := next(self._pieces, None)) is not None:
            self._held += piece
        found = bytes(self._held[:length])
        del self._held[:length]
        return found.ljust(length, b"\0")

    def skip(self, length: int) -> None:
        while length > len(self._held):
            length -= len(self._held)
            self._held.clear()
            piece = next(self._pieces, None)
            if piece is None:
                return
            self._held += piece
        del self._held[:length]

    def finish(self) -> None:
        for _ in self._pieces:
            pass
