"""The bytes of a new tensor from those of the old one and a delta's frame, in order and in pieces. Loads numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dsctl.checkpoint.delta_change import COUNT_BYTES, POSITION_BYTES, Change
from dsctl.checkpoint.delta_form import OVERWRITE, SHUFFLED, SHUFFLED_BYTES
from dsctl.core.errors import FormatError
from dsctl.core.frames import Frame
from dsctl.work.differences import unshuffled

PIECE_BYTES = SHUFFLED_BYTES

# Fills a buffer with the old tensor's bytes from a place on.
ReadInto = Callable[[int, memoryview], None]
# The bytes [begin, end) of a file.
Read = Callable[[str, int, int], bytes]


def patched(change: Change, base: ReadInto | None, read: Read, place: str = "") -> Iterator[memoryview]:
    """The bytes of the new tensor, in buffers that the next piece uses again.

    Raises:
        FormatError: the frame is damaged, or does not fit the tensor. SourceError: one of both cannot be read.
    """
    frame = change.frame(read, place)
    if change.whole:
        return map(memoryview, frame.pieces(PIECE_BYTES))
    assert base is not None, "only a tensor that is stored whole has no base"
    if change.encoding == OVERWRITE:
        return _overwritten(change, frame, base, read, place)
    pieces = frame.exact(PIECE_BYTES) if change.encoding == SHUFFLED else frame.pieces(PIECE_BYTES)
    return _xored(change, pieces, base)


def _xored(change: Change, pieces: Iterator[bytes | bytearray], base: ReadInto) -> Iterator[memoryview]:
    at, buffer = 0, np.empty(min(PIECE_BYTES, change.nbytes), np.uint8)
    for piece in pieces:
        found: Any = np.frombuffer(piece, np.uint8)
        if change.encoding == SHUFFLED:
            found = unshuffled(found, change.width)
        old = buffer[: len(found)]
        base(at, old.data)
        np.bitwise_xor(old, found, out=old)
        yield old.data
        at += len(found)


def _overwritten(change: Change, frame: Frame, base: ReadInto, read: Read, place: str) -> Iterator[memoryview]:
    """The old bytes with those at some positions replaced. Positions and values are read side by side."""
    where = f"{place}{change.file.rpartition('://')[2]}: {change.name}"
    positions = _Bytes(frame.pieces(PIECE_BYTES))
    count = int.from_bytes(positions.take(COUNT_BYTES), "little")
    if frame.nbytes != COUNT_BYTES + (POSITION_BYTES + 1) * count:
        raise FormatError(f"{where}: holds {frame.nbytes:,} bytes, which does not fit {count:,} positions")
    values = _Bytes(change.frame(read, place).pieces(PIECE_BYTES))
    values.skip(COUNT_BYTES + POSITION_BYTES * count)
    buffer = np.empty(min(PIECE_BYTES, change.nbytes), np.uint8)
    held: Any = np.empty(0, np.int64)
    left, last = count, -1
    for at in range(0, change.nbytes, PIECE_BYTES):
        end = min(at + PIECE_BYTES, change.nbytes)
        old = buffer[: end - at]
        base(at, old.data)
        while True:
            if not held.size and left:
                taken = min(left, PIECE_BYTES // POSITION_BYTES)
                held = np.frombuffer(positions.take(POSITION_BYTES * taken), "<u4").astype(np.int64)
                left -= taken
                if held[0] <= last or (held.size > 1 and int(np.diff(held).min()) < 1):
                    raise FormatError(f"{where}: its positions do not rise")
                last = int(held[-1])
                if last >= change.nbytes:
                    raise FormatError(f"{where}: position {last:,} is outside of {change.nbytes:,} bytes")
            here = int(np.searchsorted(held, end))
            if here:
                old[held[:here] - at] = np.frombuffer(values.take(here), np.uint8)
                held = held[here:]
            if held.size or not left:
                break
        yield old.data
    # The rest of the frame is checked too: it ends where it should.
    positions.finish()
    values.finish()


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
