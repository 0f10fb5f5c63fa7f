"""The difference of two stored tensors, made in one pass over their bytes: digests, checksum, frame. Loads numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from dsctl.checkpoint.delta_form import OVERWRITE, OVERWRITE_MOST, SHUFFLED, SHUFFLED_BYTES, checksum
from dsctl.core import digests
from dsctl.core.errors import FormatError
from dsctl.core.frames import Compressor, compressor
from dsctl.work.entropy import Histogram

# Bytes of both sides that are compared, digested and compressed at a time; a multiple of every element's width.
PIECE_BYTES = SHUFFLED_BYTES

ReadInto = Callable[[int, memoryview], None]


class Side(NamedTuple):
    """One of two stored tensors: fills a buffer with its bytes from a place on; its size and the width of its elements,
    in bytes."""

    read_into: ReadInto
    nbytes: int
    width: int


class Coding(NamedTuple):
    """How differences are stored: the encoding, the kind of checksum and the level of compression."""

    encoding: str
    checksum: str
    level: int


class Difference(NamedTuple):
    """What was found of one tensor. `stored` are the bytes of its frame, 0 if the sides are equal, and `limit` is the
    order-0 entropy of what the frame holds, in bytes. `old` and `new` are BLAKE3 digests; None where there is no such
    side, or no bytes. `checksum` is that of the whole new tensor, empty if the sides are equal."""

    equal: bool
    elements: int
    changed: int
    stored: int
    limit: float
    old: bytes | None
    new: bytes | None
    checksum: str


def digested(side: Side, heed: Callable[[int], None]) -> bytes:
    """The digest of a tensor that only one side has."""
    whole = digests.hasher()
    for _, piece in _pieces(side, heed):
        whole.update(piece.data)
    return whole.digest()


def whole(new: Side, old: Side | None, coding: Coding, out: IO[bytes], heed: Callable[[int], None]) -> Difference:
    """Store a new tensor itself; `old` is the tensor of its name, if there is one."""
    frame, sum_, digest = compressor(new.nbytes, coding.level), checksum(coding.checksum), digests.hasher()
    histogram, stored = Histogram(new.width), 0
    for _, piece in _pieces(new, heed):
        digest.update(piece.data)
        sum_.update(piece.data)
        histogram.count(piece)
        stored += out.write(frame.compress(piece.data))
    stored += out.write(frame.flush())
    before = digested(old, heed) if old is not None else None
    after = digest.digest() if new.nbytes else None
    return Difference(
        False, histogram.elements, histogram.elements, stored, histogram.nbytes, before, after, sum_.hexdigest()
    )


def difference(old: Side, new: Side, coding: Coding, out: IO[bytes], heed: Callable[[int], None]) -> Difference:
    """Compare two tensors of equal size, and store their difference unless they are equal.

    Raises:
        SourceError: one of them cannot be read. FormatError: an overwriting delta cannot hold so long a tensor.
    """
    if coding.encoding == OVERWRITE:
        if new.nbytes >= OVERWRITE_MOST:
            hint = "leave --encoding out"
            raise FormatError(f"an overwriting delta cannot hold a tensor of {new.nbytes:,} bytes", hint=hint)
        return _overwriting(old, new, coding, out, heed)
    return _Xor(old, new, coding, out).made(heed)


class _Xor:
    """One pass over both sides. Until the first byte that differs, only one digest is made and nothing is stored."""

    def __init__(self, old: Side, new: Side, coding: Coding, out: IO[bytes]) -> None:
        self._old, self._new, self._coding, self._out = old, new, coding, out
        self._before: Any = digests.hasher()
        self._after: Any = None
        self._sum = checksum(coding.checksum)
        self._histogram = Histogram(new.width)
        self._frame: Compressor | None = None
        self._stored = 0

    def made(self, heed: Callable[[int], None]) -> Difference:
        xor = np.empty(PIECE_BYTES, np.uint8)
        for at, was, now in _pairs(self._old, self._new, heed):
            self._before.update(was.data)
            if self._frame is None and np.array_equal(was, now):
                continue
            if self._frame is None:
                self._begin(at)
            self._after.update(now.data)
            self._sum.update(now.data)
            found = np.bitwise_xor(was, now, out=xor[: len(now)])
            self._histogram.count(found)
            self._put(found)
        if self._frame is None:
            same = self._before.digest() if self._new.nbytes else None
            return Difference(True, self._new.nbytes // self._new.width, 0, 0, 0.0, same, same, "")
        self._stored += self._out.write(self._frame.flush())
        return Difference(
            False, self._histogram.elements, self._histogram.changed, self._stored, self._histogram.nbytes,
            self._before.digest(), self._after.digest(), self._sum.hexdigest(),
        )  # fmt: skip

    def _begin(self, at: int) -> None:
        """Begin the frame at the first piece that differs, with the equal bytes before it."""
        self._frame = compressor(self._new.nbytes, self._coding.level)
        self._after = digests.hasher()
        zeros = np.zeros(PIECE_BYTES, np.uint8)
        for _, piece in _pieces(self._new._replace(nbytes=at), lambda nbytes: None):
            self._after.update(piece.data)
            self._sum.update(piece.data)
            self._histogram.count(zeros[: len(piece)])
            self._put(zeros[: len(piece)])

    def _put(self, piece: Any) -> None:
        assert self._frame is not None
        if self._coding.encoding == SHUFFLED:
            piece = shuffled(piece, self._new.width)
        self._stored += self._out.write(self._frame.compress(piece.data))


def shuffled(piece: Any, width: int) -> Any:
    """The bytes of a block with those of equal place in their elements together, the lowest place first."""
    return np.ascontiguousarray(piece.reshape(-1, width).T).reshape(-1) if width > 1 else piece


def unshuffled(piece: Any, width: int) -> Any:
    """The bytes of a block in the order of its elements again."""
    return np.ascontiguousarray(piece.reshape(width, -1).T).reshape(-1) if width > 1 else piece


def _overwriting(old: Side, new: Side, coding: Coding, out: IO[bytes], heed: Callable[[int], None]) -> Difference:
    """Positions (uint32) and new values of the bytes that differ, after their number: three passes."""
    before, after, sum_, differ = digests.hasher(), digests.hasher(), checksum(coding.checksum), 0
    histogram = Histogram(new.width)
    for _, was, now in _pairs(old, new, heed):
        before.update(was.data)
        after.update(now.data)
        sum_.update(now.data)
        differ += int(np.count_nonzero(was != now))
        histogram.count(was ^ now)
    was_digest, now_digest = (before.digest(), after.digest()) if new.nbytes else (None, None)
    if not differ:
        return Difference(True, histogram.elements, 0, 0, 0.0, was_digest, now_digest, "")
    frame = compressor(4 + 5 * differ, coding.level)
    stored = out.write(frame.compress(differ.to_bytes(4, "little")))
    for at, was, now in _pairs(old, new, _idle):
        found = np.flatnonzero(was != now) + at
        stored += out.write(frame.compress(found.astype("<u4").data.cast("B")))
    for _, was, now in _pairs(old, new, _idle):
        stored += out.write(frame.compress(now[was != now].data))
    stored += out.write(frame.flush())
    return Difference(
        False, histogram.elements, histogram.changed, stored, histogram.nbytes, was_digest, now_digest, sum_.hexdigest()
    )


def _idle(nbytes: int) -> None:
    """Take no notice of progress: the bytes were counted before."""


def _pieces(side: Side, heed: Callable[[int], None]) -> Iterator[tuple[int, Any]]:
    """The bytes of a tensor in order, in a buffer that the next piece uses again."""
    buffer = np.empty(min(PIECE_BYTES, side.nbytes), np.uint8)
    for at in range(0, side.nbytes, PIECE_BYTES):
        piece = buffer[: min(PIECE_BYTES, side.nbytes - at)]
        side.read_into(at, piece.data)
        yield at, piece
        heed(len(piece))


def _pairs(old: Side, new: Side, heed: Callable[[int], None]) -> Iterator[tuple[int, Any, Any]]:
    """The bytes of both sides in order."""
    for (at, was), (_, now) in zip(_pieces(old, heed), _pieces(new, heed), strict=True):
        yield at, was, now
