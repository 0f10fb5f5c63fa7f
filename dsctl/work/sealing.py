"""Read a finished file back for its SHA-256. No torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dsctl.core.digests import PIECE_BYTES
from dsctl.core.errors import WorkError
from dsctl.core.files import PART, refusal
from dsctl.core.progress import Advance
from dsctl.work.tasks import Context, Receipt, Seal


def seal(task: Seal, context: Context, progress: Advance) -> Receipt:
    """The receipt of a file that was read back.

    Raises:
        WorkError: it cannot be read.
    """
    path = Path(context.folder) / task.file
    part = path.with_name(path.name + PART)
    digest = hashlib.sha256()
    try:
        with open(part if part.exists() else path, "rb", buffering=0) as file:
            buffer = bytearray(PIECE_BYTES)
            while count := file.readinto(buffer):
                digest.update(memoryview(buffer)[:count])
                progress(0)
    except OSError as error:
        raise refusal(path, error, WorkError) from None
    return Receipt(None, {}, task.file, digest.hexdigest())
