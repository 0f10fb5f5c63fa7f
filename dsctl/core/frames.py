"""Zstandard frames, compressed and decompressed in pieces (RFC 8878). The library is loaded on first use.

A difference of two tensors that changed a little is mostly runs of zeros. With a hash table of 64 entries the fast
strategy finds the run that it is in instead of one far away: such frames are 5 to 20 % smaller than those of level 1,
and made 1.5 to 2 times as fast. Values that differ everywhere have nothing to find, and lose nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from dsctl.core.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Callable

# The setting for differences, and the levels of zstd that can be asked for in its place.
SPARSE, LEVELS = 0, range(1, 20)
# Bytes of a frame that are read at a time.
READ_BYTES = 1 << 20
# The longest header of a frame: magic number, descriptor, window, dictionary and content size.
_HEAD_BYTES = 18
_WINDOW_LOG, _HASH_LOG, _MIN_MATCH = 17, 6, 7

Bytes = bytes | bytearray | memoryview


class Compressor(Protocol):
    """Makes one frame from pieces of its content."""

    def compress(self, data: Bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


def compressor(nbytes: int, level: int = SPARSE) -> Compressor:
    """A compressor for a frame of exactly `nbytes` bytes of content, whose size the frame states.

    `level` is one of zstd's, or `SPARSE`.
    """
    zstd = _library()
    options = {zstd.CompressionParameter.compression_level: level or 1}
    if level == SPARSE:
        options |= {
            zstd.CompressionParameter.strategy: int(zstd.Strategy.fast),
            zstd.CompressionParameter.window_log: _WINDOW_LOG,
            zstd.CompressionParameter.hash_log: _HASH_LOG,
            zstd.CompressionParameter.chain_log: _HASH_LOG,
            zstd.CompressionParameter.min_match: _MIN_MATCH,
        }
    made = zstd.ZstdCompressor(options=options)
    made.set_pledged_input_size(nbytes)
    return made  # type: ignore[no-any-return]


def compressed(data: Bytes, level: int = SPARSE) -> bytes:
    """One frame of these bytes."""
    made = compressor(len(data), level)
    return made.compress(data) + made.flush()


def bound(nbytes: int) -> int:
    """The most bytes of a frame of `nbytes` bytes of content (ZSTD_COMPRESSBOUND in zstd.h, and the frame's header)."""
    return nbytes + (nbytes >> 8) + (((128 << 10) - nbytes) >> 11 if nbytes < 128 << 10 else 0) + _HEAD_BYTES


def content_size(head: bytes) -> int | None:
    """The content size that a frame states in its first bytes, or None if it states none.

    Raises:
        ValueError: it is not a zstd frame.
    """
    zstd = _library()
    try:
        size = zstd.get_frame_info(head[:_HEAD_BYTES]).decompressed_size
    except zstd.ZstdError as error:
        raise ValueError(str(error)) from None
    return None if size is None else int(size)


class Frame:
    """The content of one stored frame: `read(begin, end)` gives its bytes, of which there are `stored`.

    `where` is the name that errors give it; `nbytes` is the size that its content must have, None if any size will do.
    """

    def __init__(
        self, read: Callable[[int, int], bytes], stored: int, where: str, nbytes: int | None, most: int = 1 << 62
    ) -> None:
        self._read, self._stored, self._where = read, stored, where
        head = read(0, min(stored, _HEAD_BYTES))
        try:
            stated = content_size(head)
        except ValueError:
            raise FormatError(f"{where}: is not a zstd frame") from None
        if stated is not None and nbytes is not None and stated != nbytes:
            raise FormatError(f"{where}: holds {stated:,} bytes, expected {nbytes:,}")
        if stated is None and nbytes is None:
            raise FormatError(f"{where}: its frame does not state the size of its content")
        self.nbytes: int = stated if nbytes is None and stated is not None else nbytes or 0
        if self.nbytes > most:
            raise FormatError(f"{where}: holds {self.nbytes:,} bytes, expected at most {most:,}")

    def pieces(self, most: int) -> Iterator[bytes]:
        """The content in order, in pieces of at most `most` bytes.

        Raises:
            FormatError: the frame is damaged, or is not one frame of `nbytes` bytes and nothing more.
            SourceError: it cannot be read.
        """
        zstd = _library()
        machine: Any = zstd.ZstdDecompressor()
        at = done = 0
        while not machine.eof:
            data = b""
            if machine.needs_input:
                if at == self._stored:
                    raise FormatError(f"{self._where}: its frame ends too early")
                data = self._read(at, min(at + READ_BYTES, self._stored))
                at += len(data)
            try:
                piece = machine.decompress(data, max_length=most)
            except zstd.ZstdError as error:
                raise FormatError(f"{self._where}: {str(error).strip().rstrip('.')}") from None
            done += len(piece)
            if done > self.nbytes:
                raise FormatError(f"{self._where}: holds more than {self.nbytes:,} bytes")
            if piece:
                yield piece
        if done != self.nbytes:
            raise FormatError(f"{self._where}: holds {done:,} bytes, expected {self.nbytes:,}")
        if at != self._stored or machine.unused_data:
            raise FormatError(f"{self._where}: holds bytes after its frame")

    def exact(self, length: int) -> Iterator[bytes | bytearray]:
        """The content in order, in pieces of exactly `length` bytes except for the last; raises as `pieces`."""
        held = bytearray()
        for piece in self.pieces(length):
            if not held and len(piece) == length:
                yield piece
                continue
            held += piece
            while len(held) >= length:
                yield held[:length]
                held = held[length:]
        if held:
            yield held


def _library() -> Any:
    """The zstd of the standard library, or the package that brings it to earlier versions of Python."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        from backports import zstd  # type: ignore[no-redef, unused-ignore]
    return zstd
