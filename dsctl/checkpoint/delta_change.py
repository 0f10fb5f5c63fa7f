"""One changed tensor of a delta: where its frame is, and how the new bytes follow from the old ones. Data, no torch."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from dsctl.checkpoint.delta_form import OVERWRITE, OVERWRITE_MOST
from dsctl.core.errors import FormatError
from dsctl.core.frames import Frame

# An overwriting frame's content: a number of positions, the positions (uint32, little-endian), the new bytes.
COUNT_BYTES, POSITION_BYTES = 4, 4


class Change(msgspec.Struct, frozen=True, gc=False):
    """A frame of `stored` bytes at `offset` of a file, for a tensor of `nbytes` bytes in elements of `width` bytes.

    `encoding` is one of `delta_form.ENCODINGS`; with `whole`, the frame holds the new tensor itself. `checksum` is that
    of the new tensor, of the kind `kind`; with `by_digest`, the whole file's digest is compared instead of it.
    """

    name: str
    file: str
    offset: int
    stored: int
    nbytes: int
    width: int
    encoding: str
    kind: str
    checksum: str
    whole: bool = False
    by_digest: bool = False

    def frame(self, read: Callable[[str, int, int], bytes], place: str = "") -> Frame:
        """The frame, read by file, begin and end.

        Raises:
            FormatError: it is not a zstd frame, or cannot be one of this tensor.
        """
        where = f"{place}{self.file.rpartition('://')[2]}: {self.name}"

        def bytes_of(begin: int, end: int) -> bytes:
            return read(self.file, self.offset + begin, self.offset + end)

        if self.whole or self.encoding != OVERWRITE:
            return Frame(bytes_of, self.stored, where, self.nbytes)
        if self.nbytes >= OVERWRITE_MOST:
            raise FormatError(f"{where}: a tensor of {self.nbytes:,} bytes is too long for an overwriting delta")
        most = COUNT_BYTES + (POSITION_BYTES + 1) * self.nbytes
        return Frame(bytes_of, self.stored, where, None, most)
