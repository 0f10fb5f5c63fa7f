"""The log of a run, which survives a crash: one receipt per line, each on the disk before the next."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dsctl.core.errors import ResumeError
from dsctl.core.files import failure, open_own, read_own, refusal, replace_file, sync_folder, write_all

JOURNAL = "journal.jsonl"


class Journal:
    """The log of one run, one JSON object per line; a torn line, at any place, counts as not written.

    Raises:
        ResumeError: it cannot be read, or is not a journal. WorkError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        self._descriptor = -1
        self._size = 0
        raw = self._read()
        self.records, whole = records_of(raw, self.invalid)
        if whole:
            self._open(len(raw))
        else:
            self.keep(self.records)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> bytes:
        try:
            return read_own(self.path)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise refusal(self.path, error, ResumeError, "remove it, or choose another target") from None

    def _open(self, size: int) -> None:
        try:
            self._descriptor, self._size = open_own(self.path, os.O_RDWR | os.O_CREAT), size
        except OSError as error:
            raise failure(self.path, error) from None
        sync_folder(self.path.parent)

    def invalid(self) -> ResumeError:
        """The error for a line that is not a receipt."""
        return ResumeError(f"{self.path}: a line is not valid", hint="start over with --force")

    def keep(self, records: Sequence[dict[str, Any]]) -> None:
        """Remove all records except these.

        Raises:
            WorkError: the journal cannot be written.
        """
        self.close()
        lines = [line_of(record) for record in records]
        replace_file(self.path, lines)
        self._open(sum(map(len, lines)))
        self.records = list(records)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record; it is on the disk when this returns.

        Raises:
            WorkError: it cannot be written.
        """
        line = line_of(record)
        try:
            # The rest of a failed append must not become the beginning of this line.
            os.ftruncate(self._descriptor, self._size)
            write_all(self._descriptor, line, self._size)
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise failure(self.path, error) from None
        self._size += len(line)


def line_of(record: Mapping[str, Any]) -> bytes:
    """A record as a line of a journal."""
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def records_of(raw: bytes, invalid: Callable[[], ResumeError]) -> tuple[list[dict[str, Any]], bool]:
    """The records of a journal, and whether it holds nothing else."""
    *lines, rest = raw.split(b"\n")
    records, torn = [], bool(rest)
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            torn = True
            continue
        if not _is_record(record):
            raise invalid()
        records.append(record)
    return records, not torn


def _is_record(record: Any) -> bool:
    """Whether a JSON value is a receipt: of a job with its counts and digests, or of a file with its size.

    The receipts of earlier versions have no digests for jobs, and the SHA-256 of every file.
    """
    if not isinstance(record, dict):
        return False
    if "file" in record:
        return isinstance(record["file"], str) and is_count(record.get("size")) and _is_digest(record)
    counts = record.get("counts")
    known = isinstance(record.get("digests", ""), str) and is_count(record.get("job"))
    return known and isinstance(counts, dict) and all(map(is_count, counts.values()))


def is_count(value: Any) -> bool:
    """Whether a JSON value is a whole number that counts bytes, jobs or values."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_digest(record: dict[str, Any]) -> bool:
    """Whether a file's SHA-256 is absent or can be one."""
    sha256 = record.get("sha256", "0" * 64)
    return isinstance(sha256, str) and len(sha256) == 64
