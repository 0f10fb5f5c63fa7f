"""The identity of a source: a sample of the bytes of every file, and the times of its last change. No torch.

The names, sizes and headers of its files and its config.json are in the plan's fingerprint. Two steps of one fine-tune
share all of those, so bytes are compared as well. On this machine, files of up to `WHOLE_BYTES` are read whole; of a
longer file, `SLICE_BYTES` of every stored tensor that the plan reads. On a hub or in an object store, a few slices of
each file are read by range: there a commit, or a digest of the listing, also pins the contents.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

from dsctl.checkpoint.checkpoint import ORIGINAL
from dsctl.checkpoint.side_files import WHOLE
from dsctl.core.errors import SourceError
from dsctl.core.files import refusal
from dsctl.plan.plan import Plan
from dsctl.run.consume import Remembered, gone
from dsctl.stores import INDEX, Store
from dsctl.stores.joined import Joined
from dsctl.stores.local import LocalFolder
from dsctl.stores.threads import threads

WHOLE_BYTES = 64 << 20
SLICE_BYTES = 4 << 10
# Slices at even distances of a long file on this machine.
EVEN_SLICES = 256
# Slices of a remote file, and the most bytes of each: together about half a percent of the bytes that the plan reads.
FAR_SLICES, FAR_BYTES, FAR_SHARE = 4, 16 << 10, 200
CHUNK_BYTES = 8 << 20
READERS = 16

Slices = tuple[tuple[int, int], ...]


class Times(NamedTuple):
    """The times of a file's last change, in nanoseconds since 1970, and its inode.

    `modified` can be set by anyone who may write the file (`cp -p`, `rsync -a` and restored backups do); `changed`
    cannot.
    """

    modified: int
    changed: int
    inode: int


class HeldFile(NamedTuple):
    """The identity of one file: the SHA-256 of a sample of its bytes and, on this machine, its times."""

    sample: str
    times: Times | None = None

    def json(self) -> dict[str, Any]:
        return {"sample": self.sample} | (self.times._asdict() if self.times else {})


def parse(said: Any) -> dict[str, HeldFile]:
    """The identities of the source's files, as a target's mark records them.

    Raises:
        TypeError, ValueError, KeyError, AttributeError, OverflowError: it does not hold identities.
    """
    held: dict[str, HeldFile] = {}
    for file, one in said.items():
        # Half a surrogate pair could not be written again.
        f"{file}{one['sample']}".encode()
        times = Times(*(int(one[name]) for name in Times._fields)) if "inode" in one else None
        held[str(file)] = HeldFile(str(one["sample"]), times)
    return held


def watched(plan: Plan, store: Store) -> list[str]:
    """The files of a source that a run depends on, without those that it consumed."""
    files = {*plan.source_files, *plan.carried, ORIGINAL, WHOLE, "config.json", INDEX}
    return sorted(files & store.files().keys() - gone(store))


def times(plan: Plan, store: Store) -> dict[str, Times]:
    """The times of every watched file on this machine.

    Raises:
        SourceError: a file is missing.
    """
    found: dict[str, Times] = {}
    for file in watched(plan, store):
        folder, name = _beneath(store, file)
        if not isinstance(folder, LocalFolder):
            continue
        try:
            status = os.stat(folder.path(name))
        except OSError as error:
            raise refusal(error.filename, error, SourceError) from None
        found[file] = Times(status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return found


def folder_of(store: Store, file: str) -> LocalFolder | None:
    """The folder on this machine in which a file of a store is, if any."""
    folder, _ = _beneath(store, file)
    return folder if isinstance(folder, LocalFolder) else None


def _beneath(store: Store, file: str) -> tuple[Store, str]:
    """The store that holds a file, neither joined nor remembered, and the file's name there."""
    found, name = store.place_of(file) if isinstance(store, Joined) else (store, file)
    return (found.store if isinstance(found, Remembered) else found), name


def identity(plan: Plan, store: Store, known: Mapping[str, HeldFile] | None = None) -> dict[str, HeldFile]:
    """The present identity of a source. Files with the same times as in `known`, of the same place, are not read again.

    Raises:
        SourceError: a file cannot be read.
    """
    known, seen = known or {}, times(plan, store)
    held: dict[str, HeldFile] = {}
    sizes, parts = store.files(), _parts(plan)
    with threads(READERS) as pool:
        samples = {}
        for file in watched(plan, store):
            at = seen.get(file)
            remote = _beneath(store, file)[0].remote
            if remote and file in plan.source_files and file not in parts:
                # The plan does not read it.
                continue
            if at is not None and file in known and known[file].times == at:
                held[file] = known[file]
                continue
            chosen = slices(sizes[file], parts.get(file, ()), remote)
            samples[file] = pool.submit(partial(_sample, cast("Hashable", store), file, chosen, at))
        wait(samples.values())
        held |= {file: HeldFile(sample.result(), seen.get(file)) for file, sample in samples.items()}
    return dict(sorted(held.items()))


def _parts(plan: Plan) -> dict[str, set[tuple[int, int]]]:
    """Offset and length of every stored tensor that a plan reads, by file."""
    parts: dict[str, set[tuple[int, int]]] = {}
    for job in plan.jobs:
        for step in job.steps:
            for part in step.parts_read:
                parts.setdefault(part.file, set()).add((part.offset, part.spec.nbytes))
    return parts


def slices(size: int, parts: Iterable[tuple[int, int]], remote: bool) -> Slices:
    """The slices [begin, end) of a file that represent it."""
    if remote:
        return _far(size, sorted(parts))
    if size <= WHOLE_BYTES:
        return tuple((begin, min(begin + CHUNK_BYTES, size)) for begin in range(0, size, CHUNK_BYTES))
    chosen = [_within(begin, length) for begin, length in parts]
    return tuple(sorted({*chosen, *_even(size, EVEN_SLICES, SLICE_BYTES)}))


def _far(size: int, parts: Sequence[tuple[int, int]]) -> Slices:
    """Slices of some tensors that are read, including the first and the last; of other files, slices of all of it."""
    if not parts:
        return _even(size, FAR_SLICES, FAR_BYTES)
    most = min(FAR_BYTES, -(-sum(length for _, length in parts) // (FAR_SLICES * FAR_SHARE)))
    chosen = {parts[(len(parts) - 1) * number // (FAR_SLICES - 1)] for number in range(FAR_SLICES)}
    return tuple(sorted(_within(begin, length, most) for begin, length in chosen))


def _within(begin: int, length: int, most: int = SLICE_BYTES) -> tuple[int, int]:
    """A slice of a tensor, at most `most` bytes, at a place that depends on the tensor's own place and length."""
    spare = max(0, length - most)
    at = begin + zlib.crc32(f"{begin} {length}".encode()) % (spare + 1)
    return at, at + min(length, most)


def _even(size: int, count: int, length: int) -> Slices:
    """Slices at even distances, from the first byte to the last."""
    if size <= count * length:
        return ((0, size),)
    begins = [(size - length) * number // (count - 1) for number in range(count)]
    return tuple((begin, begin + length) for begin in begins)


@lru_cache(maxsize=1 << 16)
def _sample(store: Hashable, file: str, chosen: Slices, at: Times | None) -> str:
    """The SHA-256 of slices of a file; `at` are its times, so that one process reads an unchanged file once."""
    digest = hashlib.sha256()
    for begin, end in chosen:
        digest.update(f"{begin} {end}\n".encode())
        digest.update(cast("Store", store).read(file, begin, end))
    return digest.hexdigest()


def touched(now: Mapping[str, HeldFile | Times], before: Mapping[str, HeldFile]) -> Iterator[str]:
    """The files that may have changed: their times differ from the recorded ones, or are not recorded."""
    for file, one in now.items():
        at = one.times if isinstance(one, HeldFile) else one
        if at is not None and (file not in before or before[file].times != at):
            yield file


def unlike(now: Mapping[str, HeldFile], before: Mapping[str, HeldFile]) -> Iterator[str]:
    """The files whose samples differ from the recorded ones, or were not recorded."""
    return (file for file, one in now.items() if file not in before or before[file].sample != one.sample)
