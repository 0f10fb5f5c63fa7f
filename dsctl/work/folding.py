"""Fold the frames of one tensor in several deltas into one. Loads numpy, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, NamedTuple

import numpy as np

from dsctl.checkpoint.delta_change import COUNT_BYTES, POSITION_BYTES, Change
from dsctl.checkpoint.delta_form import OVERWRITE
from dsctl.core.errors import FormatError
from dsctl.core.frames import compressor
from dsctl.work.differences import PIECE_BYTES, Difference
from dsctl.work.entropy import Histogram
from dsctl.work.patching import Overwrites, Read

# Positions of an overwriting frame that are looked at together.
WINDOW_BYTES = 16 << 20


class Folded(NamedTuple):
    """A tensor's changes in the order of the deltas, each with the reader of its delta."""

    changes: tuple[Change, ...]
    reads: tuple[Read, ...]


def fold(folded: Folded, level: int, out: IO[bytes], heed: Callable[[int], None]) -> Difference:
    """Store the change that has the effect of all changes one after the other; equal if it has none.

    A tensor that is stored whole replaces what came before it. The XOR of differences is their difference; of bytes
    that are overwritten twice, the later value counts.

    Raises:
        FormatError: a frame is damaged, or the frames are of different lengths. SourceError: one cannot be read.
    """
    start = max((place for place, one in enumerate(folded.changes) if one.whole), default=0)
    changes, reads = folded.changes[start:], folded.reads[start:]
    last = changes[-1]
    if len(changes) == 1:
        return _copied(last, reads[0], out, heed)
    if changes[0].whole or last.encoding != OVERWRITE:
        return _xored(changes, reads, level, out, heed)
    return _overwriting(changes, reads, level, out, heed)


def _copied(change: Change, read: Read, out: IO[bytes], heed: Callable[[int], None]) -> Difference:
    """The frame as it is, if it is whole; nothing is known of its elements."""
    if change.whole or change.encoding != OVERWRITE:
        for _ in change.frame(read).pieces(PIECE_BYTES):
            heed(0)
    else:
        positions = Overwrites(change, read)
        for _ in positions.before(change.nbytes):
            heed(0)
        positions.finish(change.nbytes)
    for at in range(0, change.stored, PIECE_BYTES):
        piece = read(change.file, change.offset + at, change.offset + min(at + PIECE_BYTES, change.stored))
        out.write(piece)
        heed(len(piece))
    return Difference(False, 0, 0, change.stored, 0.0, None, None, change.checksum)


def _xored(
    changes: Sequence[Change], reads: Sequence[Read], level: int, out: IO[bytes], heed: Callable[[int], None]
) -> Difference:
    """The XOR of the contents, or a whole tensor with the differences that follow it."""
    first, last = changes[0], changes[-1]
    contents: list[Iterator[Any]]
    nbytes = first.nbytes
    if last.encoding == OVERWRITE:
        contents = [_patched_whole(changes, reads)]
    elif any(one.nbytes != nbytes for one in changes):
        raise FormatError(f"{last.name}: its frames are of different lengths")
    else:
        contents = [one.frame(read).exact(PIECE_BYTES) for one, read in zip(changes, reads, strict=True)]
    frame, histogram, stored, any_ = compressor(nbytes, level), Histogram(1), 0, False
    for pieces in zip(*contents, strict=True):
        found: Any = np.frombuffer(pieces[0], np.uint8).copy()
        for piece in pieces[1:]:
            np.bitwise_xor(found, np.frombuffer(piece, np.uint8), out=found)
        any_ = any_ or bool(found.any())
        histogram.count(found)
        stored += out.write(frame.compress(found.data))
        heed(len(found))
    stored += out.write(frame.flush())
    if not any_ and not first.whole:
        out.seek(0)
        out.truncate()
        return Difference(True, histogram.elements, 0, 0, 0.0, None, None, "")
    return Difference(False, histogram.elements, histogram.changed, stored, histogram.nbytes, None, None, last.checksum)


def _patched_whole(changes: Sequence[Change], reads: Sequence[Read]) -> Iterator[Any]:
    """A whole tensor with the bytes that are overwritten after it, in pieces."""
    frame, at = changes[0].frame(reads[0]), 0
    later = [Overwrites(change, read) for change, read in zip(changes[1:], reads[1:], strict=True)]
    for piece in frame.exact(PIECE_BYTES):
        found: Any = np.frombuffer(piece, np.uint8).copy()
        for one in later:
            for positions, values in one.before(at + len(found)):
                found[positions - at] = values
        at += len(found)
        yield found
    for one in later:
        one.finish(at)


def _overwriting(
    changes: Sequence[Change], reads: Sequence[Read], level: int, out: IO[bytes], heed: Callable[[int], None]
) -> Difference:
    """The positions of any of the frames, each with its latest value: three passes."""
    number = sum(len(positions) for positions, _ in _latest(changes, reads))
    frame = compressor(COUNT_BYTES + (POSITION_BYTES + 1) * number, level)
    stored, histogram = out.write(frame.compress(number.to_bytes(COUNT_BYTES, "little"))), Histogram(1)
    for positions, _ in _latest(changes, reads):
        stored += out.write(frame.compress(positions.astype("<u4").data.cast("B")))
        heed(len(positions))
    for _, values in _latest(changes, reads):
        histogram.count(values)
        stored += out.write(frame.compress(values.data))
    stored += out.write(frame.flush())
    return Difference(False, number, number, stored, histogram.nbytes, None, None, changes[-1].checksum)


def _latest(changes: Sequence[Change], reads: Sequence[Read]) -> Iterator[tuple[Any, Any]]:
    """The overwritten positions in order, and their latest values, in runs."""
    streams = [Overwrites(change, read) for change, read in zip(changes, reads, strict=True)]
    end = 0
    while not all(stream.is_done for stream in streams):
        end += WINDOW_BYTES
        runs = [run for stream in streams for run in stream.before(end)]
        if not runs:
            continue
        mask, values = np.zeros(WINDOW_BYTES, np.bool_), np.zeros(WINDOW_BYTES, np.uint8)
        for positions, latest in runs:
            mask[positions - (end - WINDOW_BYTES)] = True
            values[positions - (end - WINDOW_BYTES)] = latest
        found = np.flatnonzero(mask)
        yield found + (end - WINDOW_BYTES), values[found]
    for stream in streams:
        stream.finish(end)
