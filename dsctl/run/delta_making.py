"""Make a delta: compare tensors on threads, and commit one file after the other. Loads numpy, no torch.

A frame's size is known only when it is made, so that the frames of a file wait beside it, in memory or on the disk, for
its header. A file that is finished stays: the same command continues after it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from dsctl.checkpoint.signed_files import SignedFile, Stretch, signed_tree
from dsctl.core import digests
from dsctl.core.errors import ResumeError
from dsctl.core.files import PART, failure, make_folders, sync_folder
from dsctl.core.header import TensorRef, TensorSpec, build
from dsctl.plan.differing import DeltaFile, Differing, Pair
from dsctl.run.delta_sources import NEW, Sources, side_of
from dsctl.run.events import Committed, EventReport
from dsctl.run.journal import Journal
from dsctl.run.reading import Reading
from dsctl.stores import WORKING
from dsctl.stores.threads import threads
from dsctl.work.differences import Coding, Difference, difference, digested, whole

# Bytes of a frame, and of the frames of a file, that are kept in memory.
FRAME_BYTES, FILE_BYTES = 16 << 20, 64 << 20
COPY_BYTES = 1 << 20
# Fields of a difference in the journal.
_DIGESTS = ("old", "new")


class Found(NamedTuple):
    """The differences of a file of the new side, in the order of its pairs, and the entry of the delta's file, None if
    all of its tensors are equal."""

    differences: tuple[Difference, ...]
    entry: SignedFile | None


@dataclass
class Making:
    """One run: `done` are the finished files. `workers` is the number of threads."""

    sources: Sources
    plan: Differing
    coding: Coding
    target: Path
    workers: int
    report: EventReport
    done: dict[str, Found] = field(default_factory=dict)
    left: list[bytes] = field(default_factory=list)

    def carry_out(self, journal: Journal) -> None:
        """Make every file that the journal does not have, and the digests of tensors that only the old side has.

        Raises:
            DsctlError: a side cannot be read or the target cannot be written; the same call continues.
            ResumeError: the journal is not of this delta.
        """
        files = {file.name: file for file in self.plan.files}
        for record in journal.records:
            self._take(files, record, journal)
        todo = [file for file in self.plan.files if file.name not in self.done]
        left = (ref for ref in self.plan.left if ref.nbytes)
        with threads(self.workers) as pool:
            reading = Reading(pool, self.report)
            compare = (partial(self._compare, pair, reading.heed) for file in todo for pair in file.pairs)
            results = reading.results(compare, 2 * self.workers)
            for file in todo:
                self._make(file, results, journal)
            self.left = list(reading.results(partial(self._digest, ref, reading.heed) for ref in left))

    def _take(self, files: dict[str, DeltaFile], record: dict[str, Any], journal: Journal) -> None:
        """Take a finished file from the journal, if it is still there."""
        try:
            file, found = files[record["file"]], _from_json(record)
        except (KeyError, TypeError, ValueError):
            raise journal.invalid() from None
        if len(found.differences) != len(file.pairs):
            raise journal.invalid()
        path = self.target / file.name
        if found.entry is not None and not (path.is_file() and path.stat().st_size == found.entry.size):
            raise ResumeError(f"{path}: was finished, but is now missing or changed", hint="start over with --force")
        self.done[file.name] = found

    def _compare(self, pair: Pair, heed: Callable[[int], None]) -> tuple[Difference, IO[bytes]]:
        spool: IO[bytes] = tempfile.SpooledTemporaryFile(FRAME_BYTES, dir=str(self.target / WORKING))  # noqa: SIM115
        with self.sources.reading(pair) as reader:
            new = side_of(pair.new, reader, NEW)
            old = side_of(pair.old, reader) if pair.old else None
            if pair.whole or old is None:
                found = whole(new, old, self.coding, spool, heed)
            else:
                found = difference(old, new, self.coding, spool, heed)
        spool.seek(0)
        return found, spool

    def _make(self, file: DeltaFile, results: Iterator[tuple[Difference, IO[bytes]]], journal: Journal) -> None:
        """Gather the frames of a file, then write it behind its header."""
        differences: list[Difference] = []
        frames: dict[str, bytes] = {}
        sizes: dict[str, int] = {}
        try:
            with tempfile.SpooledTemporaryFile(FILE_BYTES, dir=str(self.target / WORKING)) as payload:
                for pair in file.pairs:
                    found, spool = next(results)
                    with spool:
                        if not found.equal:
                            sizes[pair.new.name] = found.stored
                            frames[pair.new.name] = _copied(spool, payload)
                    differences.append(found)
                payload.seek(0)
                entry = self._write(file, differences, sizes, frames, payload) if sizes else None
        except OSError as error:
            raise failure(self.target / file.name, error) from None
        self.done[file.name] = Found(tuple(differences), entry)
        journal.append(_as_json(file.name, self.done[file.name]))
        if entry is not None:
            self.report(Committed(file.name, entry))

    def _write(
        self,
        file: DeltaFile,
        differences: list[Difference],
        sizes: dict[str, int],
        frames: dict[str, bytes],
        payload: IO[bytes],
    ) -> SignedFile:
        checksums = {
            pair.new.name: found.checksum
            for pair, found in zip(file.pairs, differences, strict=True)
            if not found.equal
        }
        specs = {name: TensorSpec("U8", (size,)) for name, size in sizes.items()}
        header, begins = build(specs, checksums, in_order=True)
        path = self.target / file.name
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
        return signed_tree(header, size, [Stretch(begins[name], digest) for name, digest in frames.items()])

    def _digest(self, ref: TensorRef, heed: Callable[[int], None]) -> bytes:
        return digested(side_of(ref, self.sources.old.store), heed)


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
    entry = None if record["entry"] is None else SignedFile(**{"cuts": {}, **record["entry"]})
    differences = []
    for values in record["found"]:
        said = dict(zip(Difference._fields, values, strict=True))
        for name in _DIGESTS:
            said[name] = None if said[name] is None else b64decode(said[name], validate=True)
        differences.append(Difference(**said))
    return Found(tuple(differences), entry)
