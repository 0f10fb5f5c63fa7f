"""Read a file that a person names: a regular one, and no more of it than it may sensibly have."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_small(path: str | Path, most: int) -> bytes:
    """The bytes of a regular file of at most `most` bytes.

    Raises:
        OSError: it cannot be read, is a folder, a device or a pipe, or has more bytes.
    """
    # Without O_NONBLOCK, opening a pipe waits for a writer for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file")
        raw = bytearray()
        while chunk := file.read(most + 1 - len(raw)):
            raw += chunk
    if len(raw) > most:
        raise OSError(errno.EFBIG, f"has more than {most:,} bytes")
    return bytes(raw)
