"""Make the files of a delta: tensors on threads, and one file committed after the other. Loads numpy, no torch.

A frame's size is known only when it is made, so that the frames of a file wait beside it, in memory or on the disk, for
its header. A file that is finished stays: the same command continues after it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from dsctl.checkpoint.signed_files import SignedFile, Stretch, entries_of, signed_tree
from dsctl.core import digests
from dsctl.core.errors import ResumeError
from dsctl.core.files import PART, failure, make_folders, sync_folder
from dsctl.core.header import TensorSpec, build
from dsctl.run.events import Committed, EventReport
from dsctl.run.journal import Journal, is_count
from dsctl.run.reading import Reading
from dsctl.stores import WORKING
from dsctl.stores.threads import threads
from dsctl.work.differences import Difference

# Bytes of a frame, and of the frames of a file, that are kept in memory.
FRAME_BYTES, FILE_BYTES = 16 << 20, 64 << 20
COPY_BYTES = 1 << 20
# More than the bytes of any tensor.
MOST_LIMIT = 1 << 63


class Found(NamedTuple):
    """The differences of the tensors of a file, in order, and the entry of the delta's file; None if all are equal."""

    differences: tuple[Difference, ...]
    entry: SignedFile | None


# Stores one tensor's frame, and tells what was found; the function that it calls takes the bytes it has read.
Task = Callable[[IO[bytes], Callable[[int], None]], Difference]


class TensorTask(NamedTuple):
    """A tensor's name, and the task that makes its frame."""

    name: str
    make: Task


class FileTasks(NamedTuple):
    """A file of the delta, and the tasks of its tensors in order; there are `number`. `sources` are the files that they
    read, by their names in the run's source."""

    name: str
    number: int
    tensors: Callable[[], Iterable[TensorTask]]
    sources: frozenset[str] = frozenset()


@dataclass
class DeltaFiles:
    """The files of a delta in the making: `done` are the finished ones. `workers` is the number of threads."""

    target: Path
    workers: int
    report: EventReport
    done: dict[str, Found] = field(default_factory=dict)

    def carry_out(self, files: Sequence[FileTasks], journal: Journal) -> None:
        """Make every file that the journal does not have.

        Raises:
            DsctlError: a source cannot be read or the target cannot be written; the same call continues.
            ResumeError: the journal is not of these files.
        """
        known = {file.name: file for file in files}
        for record in journal.records:
            self._take(known, record, journal)
        todo = [file for file in files if file.name not in self.done]
        with threads(self.workers) as pool:
            reading = Reading(pool, self.report)
            tasks = (partial(self._spooled, one.make, reading.heed) for file in todo for one in file.tensors())
            results = reading.results(tasks, 2 * self.workers)
            for file in todo:
                self._make(file, results, journal)

    def _take(self, files: dict[str, FileTasks], record: dict[str, Any], journal: Journal) -> None:
        """Take a finished file from the journal, if it is still there."""
        try:
            file, found = files[record["file"]], _from_json(record)
        except (KeyError, TypeError, ValueError):
            raise journal.invalid() from None
        if len(found.differences) != file.number:
            raise journal.invalid()
        path = self.target / file.name
        if found.entry is not None and not (path.is_file() and path.stat().st_size == found.entry.size):
            raise ResumeError(f"{path}: was finished, but is now missing or changed", hint="start over with --force")
        self.done[file.name] = found

    def _spooled(self, make: Task, heed: Callable[[int], None]) -> tuple[Difference, IO[bytes]]:
        spool: IO[bytes] = tempfile.SpooledTemporaryFile(FRAME_BYTES, dir=str(self.target / WORKING))  # noqa: SIM115
        found = make(spool, heed)
        spool.seek(0)
        return found, spool

    def _make(self, file: FileTasks, results: Iterator[tuple[Difference, IO[bytes]]], journal: Journal) -> None:
        """Gather the frames of a file, then write it behind its header."""
        differences: list[Difference] = []
        frames: list[_Frame] = []
        try:
            with tempfile.SpooledTemporaryFile(FILE_BYTES, dir=str(self.target / WORKING)) as payload:
                for one in file.tensors():
                    found, spool = next(results)
                    with spool:
                        if not found.equal:
                            frames.append(_Frame(one.name, found, _copied(spool, payload)))
                    differences.append(found)
                payload.seek(0)
                # One of the same name may be left of a run on a source that has changed since.
                (self.target / file.name).unlink(missing_ok=True)
                entry = _written(self.target / file.name, frames, payload) if frames else None
        except OSError as error:
            raise failure(self.target / file.name, error) from None
        self.done[file.name] = Found(tuple(differences), entry)
        journal.append(_as_json(file.name, self.done[file.name]))
        if entry is not None:
            self.report(Committed(file.name, entry))


class _Frame(NamedTuple):
    """A frame of a file: its tensor, what was found of it, and the digest of the frame's own bytes."""

    name: str
    found: Difference
    digest: bytes


def _written(path: Path, frames: Sequence[_Frame], payload: IO[bytes]) -> SignedFile:
    """Write a file of the delta: its header, and the frames."""
    specs = {one.name: TensorSpec("U8", (one.found.stored,)) for one in frames}
    header, begins = build(specs, {one.name: one.found.checksum for one in frames}, in_order=True)
    part = path.with_name(path.name + PART)
    make_folders(path.parent)
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    with os.fdopen(descriptor, "wb") as written:
        written.write(header)
        shutil.copyfileobj(payload, written, COPY_BYTES)
        written.flush()
        os.fsync(written.fileno())
        size = written.tell()
    os.replace(part, path)
    sync_folder(path.parent)
    return signed_tree(header, size, [Stretch(begins[one.name], one.digest) for one in frames])


def _copied(spool: IO[bytes], payload: IO[bytes]) -> bytes:
    """Append a frame to the frames of its file; return its digest."""
    whole_ = digests.hasher()
    while chunk := spool.read(COPY_BYTES):
        whole_.update(chunk)
        payload.write(chunk)
    return whole_.digest()


def _as_json(name: str, found: Found) -> dict[str, Any]:
    size = found.entry.size if found.entry else 0
    entry = found.entry.json() if found.entry else None
    return {"file": name, "size": size, "entry": entry, "found": [_packed(one) for one in found.differences]}


def _packed(one: Difference) -> list[Any]:
    return [b64encode(value).decode() if isinstance(value, bytes) else value for value in one]


def _from_json(record: dict[str, Any]) -> Found:
    """What a line of the journal says.

    Raises:
        KeyError, TypeError, ValueError: no run can have written it.
    """
    json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
    entry = None if record["entry"] is None else entries_of({"": record["entry"]})[""]
    # Digests are base64 there.
    differences = msgspec.convert(record["found"], list[Difference])
    for one in differences:
        if not all(map(is_count, (one.elements, one.changed, one.stored))) or not 0 <= one.limit < MOST_LIMIT:
            raise ValueError("a count is out of range")
        if {len(digest) for digest in (one.old, one.new) if digest is not None} - {digests.SIZE}:
            raise ValueError("a digest is of another length")
    return Found(tuple(differences), entry)
