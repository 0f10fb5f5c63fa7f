"""The open output files of one job, and the digests of what is written to them. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from time import perf_counter
from typing import NamedTuple

from dsctl.core.digests import PIECE_BYTES, Hasher, digest, hasher
from dsctl.core.files import PART, failure, write_all
from dsctl.plan.stretches import Written
from dsctl.work.tasks import DIGEST, READ, WRITE


class _Stretch(NamedTuple):
    """The end of a stretch of output bytes, and its digest so far."""

    end: int
    hasher: Hasher


class OutputFiles:
    """The unfinished files of a folder that a job writes to. `written` are its stretches, each from its first byte to
    its last; `seconds` is the time by what it was spent on."""

    def __init__(self, folder: str, written: Iterable[Written] = ()) -> None:
        self.seconds = dict.fromkeys((READ, DIGEST, WRITE), 0.0)
        self._folder = folder
        self._written = tuple(written)
        self._stretches = {(one.file, one.begin): _Stretch(one.end, hasher()) for one in self._written}
        # Each stretch under the file and the place of its next byte.
        self._next = dict(self._stretches)
        self._open: dict[str, int] = {}

    def close(self, durable: bool) -> None:
        """Close all files; with `durable`, what was written to them is on the disk then.

        Raises:
            WorkError: the disk fails.
        """
        for file, descriptor in self._open.items():
            try:
                if durable:
                    began = perf_counter()
                    os.fdatasync(descriptor)
                    self.spent(WRITE, began)
            except OSError as error:
                raise failure(self._part(file), error) from None
            finally:
                os.close(descriptor)

    def put(self, file: str, offset: int, data: memoryview) -> None:
        """Digest bytes and write them at an offset of a file.

        Raises:
            WorkError: the file cannot be written.
        """
        path = self._part(file)
        try:
            if file not in self._open:
                self._open[file] = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
            for at in range(0, len(data), PIECE_BYTES):
                piece, began = data[at : at + PIECE_BYTES], perf_counter()
                self._digest(file, offset + at, piece)
                began = self.spent(DIGEST, began)
                write_all(self._open[file], piece, offset + at)
                self.spent(WRITE, began)
        except OSError as error:
            raise failure(path, error) from None

    def spent(self, what: str, began: float) -> float:
        """Add the time since `began` to an account; the time now."""
        now = perf_counter()
        self.seconds[what] += now - began
        return now

    def digests(self) -> bytes:
        """The digests of all stretches, one after the other."""
        assert not self._next, "a stretch was not written to its end"
        return b"".join(self._stretches[one.file, one.begin].hasher.digest() for one in self._written)

    def _part(self, file: str) -> str:
        return os.path.join(self._folder, file + PART)

    def _digest(self, file: str, offset: int, piece: memoryview) -> None:
        """Add bytes to the digest of the stretch that goes on at this place."""
        one = self._next.pop((file, offset), None)
        if one is None:
            # Each band writes a scale of the whole matrix again.
            same = self._stretches[file, offset].hasher.digest() == digest(piece)
            assert same, f"{file}: other bytes are written at {offset} again"
            return
        one.hasher.update(piece)
        if offset + len(piece) < one.end:
            self._next[file, offset + len(piece)] = one
