"""The digests of what jobs have written, joined into the entries of files in `dsctl.json`; and digests read back."""

from __future__ import annotations

import os
import struct
from base64 import b64decode, b64encode
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dsctl.checkpoint.signed_files import SignedFile, Stretch, signed_tree
from dsctl.core import digests
from dsctl.core.digests import PIECE_BYTES
from dsctl.core.errors import WorkError
from dsctl.core.files import PART, refusal
from dsctl.plan.plan import Job, OutFile
from dsctl.plan.stretches import Written, written
from dsctl.stores.threads import threads

READERS = 8
# A stretch's first byte and its digest.
_RECORD = struct.Struct(f"<Q{digests.SIZE}s")


class StretchDigests:
    """The digests of finished stretches, by file; 40 bytes for each."""

    def __init__(self) -> None:
        self._found: dict[str, bytearray] = {}

    def add(self, job: Job, found: bytes) -> None:
        """Take the digests of a job, in the order of `written`.

        Raises:
            ValueError: their number is not that of what the job writes.
        """
        for one, digest in zip(written(job), digests.split(found), strict=True):
            self._found.setdefault(one.file, bytearray()).extend(_RECORD.pack(one.begin, digest))

    def entry(self, file: OutFile, sha256: str = "") -> SignedFile:
        """The entry of a file whose jobs are all done; its digests are no longer kept."""
        found = [Stretch(*one) for one in _RECORD.iter_unpack(self._found.pop(file.name, b""))]
        known = [Stretch(begin, digests.digest(data)) for begin, data in file.literals if data]
        return signed_tree(file.header, file.size, [*found, *known], sha256)


def as_text(found: bytes) -> str:
    """Digests in the form in which the journal keeps them."""
    return b64encode(found).decode()


def from_text(text: str) -> bytes:
    """Digests from the journal.

    Raises:
        ValueError: they are not digests.
    """
    found = b64decode(text, validate=True)
    if len(found) % digests.SIZE:
        raise ValueError("a digest is too short")
    return found


def read_back(target: Path, stretches: Sequence[Written]) -> list[bytes]:
    """The digests of what the disk holds in the place of these stretches.

    Raises:
        WorkError: a file cannot be read.
    """
    with threads(READERS) as pool:
        return [found.result() for found in [pool.submit(partial(_digest, target, one)) for one in stretches]]


def holds_known(target: Path, file: OutFile) -> bool:
    """Whether a finished file has its header and the bytes that are known without any job.

    Raises:
        WorkError: it cannot be read.
    """
    path = target / file.name
    try:
        with open(path, "rb", buffering=0) as opened:
            known = ((0, file.header), *file.literals)
            return all(os.pread(opened.fileno(), len(data), at) == data for at, data in known)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise refusal(path, error, WorkError) from None


def _digest(target: Path, one: Written) -> bytes:
    path = target / one.file
    part = path.with_name(path.name + PART)
    hasher = digests.hasher()
    try:
        with open(part if part.exists() else path, "rb", buffering=0) as file:
            for at in range(one.begin, one.end, PIECE_BYTES):
                hasher.update(os.pread(file.fileno(), min(PIECE_BYTES, one.end - at), at))
    except OSError as error:
        raise refusal(path, error, WorkError) from None
    return hasher.digest()
