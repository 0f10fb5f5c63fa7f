"""The finished work of a run as its repository keeps it, so that a different machine can go on without the local files.

Each commit adds a segment: `.dsctl-run/journal-N.jsonl` has the receipts of jobs and files as the journal of a folder
has them, and `.dsctl-run/rest-N.bin` the bytes that these jobs wrote to files that are not finished: to side files,
which all jobs write to, and to pieces. A receipt lists them as `rest`, pairs of the number of a stretch and its bytes,
and as `piece`, the bytes of its piece. Everything that is read back is compared with the plan and with digests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dsctl.checkpoint.odd_scales import piece_file
from dsctl.core import digests
from dsctl.core.errors import ResumeError
from dsctl.core.files import PART, failure, make_folders, open_own, read_own, replace_file, write_all
from dsctl.plan.jobs import is_side
from dsctl.plan.plan import Job, Plan
from dsctl.plan.stretches import written
from dsctl.run.journal import JOURNAL, is_count, line_of, records_of
from dsctl.run.signing import from_text
from dsctl.stores import WORKING
from dsctl.stores.hub import UNFINISHED

_JOURNAL, _REST = f"{UNFINISHED}/journal-", f"{UNFINISHED}/rest-"
# Bytes of unfinished files in one segment.
REST_BYTES = 32 << 20
# The most digits of the number of a segment.
_DIGITS = 9


def invalid(place: str) -> ResumeError:
    """The error for a record that no run of this plan can have written."""
    what = "the record of its unfinished work is not valid"
    return ResumeError(f"{place}: {what}", hint="start over with --force, or choose a new repository")


Records = list[dict[str, Any]]


class Writes(dict[str, list[tuple[int, bytes]]]):
    """Bytes to write, by file: the first byte of each stretch, and the bytes."""


class Segment(NamedTuple):
    """Two files of a repository: their names, the lines of the journal, and the bytes of unfinished files."""

    journal: str
    rest: str
    lines: bytes
    data: bytes


def numbers(names: Iterable[str]) -> list[int]:
    """The numbers of the segments among the files of a repository."""
    there = set(names)
    found = {name.removeprefix(_JOURNAL).removesuffix(".jsonl") for name in there if name.startswith(_JOURNAL)}
    known = {int(text) for text in found if text.isascii() and text.isdecimal() and len(text) <= _DIGITS}
    return sorted(number for number in known if number and segment_names(number)[0] in there)


def segment_names(number: int) -> tuple[str, str]:
    """The names of a segment's journal and rest."""
    return f"{_JOURNAL}{number:05d}.jsonl", f"{_REST}{number:05d}.bin"


def _number(record: Mapping[str, Any]) -> tuple[str, Any]:
    return ("file", record["file"]) if "file" in record else ("job", record["job"])


def _told(record: Mapping[str, Any]) -> tuple[Any, ...]:
    """What must be equal for a record to be the same."""
    return tuple(record.get(name) for name in ("size", "sha256", "digests"))


@dataclass(slots=True)
class RecordedWork:
    """The records that a repository has: of jobs and files, by kind and number or name."""

    plan: Plan
    known: dict[tuple[str, Any], tuple[Any, ...]] = field(default_factory=dict)
    last: int = 0

    def learn(self, number: int, lines: bytes, place: str) -> None:
        """Take the records of an earlier segment of the repository with this name.

        Raises:
            ResumeError: it is not a journal.
        """
        for record in records_of(lines, lambda: invalid(place))[0]:
            self.known[_number(record)] = _told(record)
        self.last = max(self.last, number)

    def stale(self, records: Records) -> bool:
        """Whether the repository has a record that a journal has not, or has differently: its work was done again."""
        here = {_number(record): _told(record) for record in records}
        return any(here.get(key) != told for key, told in self.known.items())

    def segments(self, folder: Path, records: Records, safe: Collection[str]) -> Iterator[Segment]:
        """The segments with the records that the repository does not have, for these files that are or will be safe.

        Raises:
            ResumeError: a local file has gone.
        """
        jobs = {job.number: job for job in self.plan.jobs}
        lines: list[bytes] = []
        data = bytearray()
        for record in records:
            key = _number(record)
            if self.known.get(key) == _told(record):
                continue
            if key[0] == "job":
                job = jobs[key[1]]
                if not all(file in safe for file in job.files if not is_side(file)):
                    continue
                more, rest = _rest(job, folder, safe)
                line = line_of(record | more)
                data += rest
            elif key[1] in safe:
                line = line_of(record)
            else:
                continue
            self.known[key] = _told(record)
            lines.append(line)
            if len(data) >= REST_BYTES:
                yield self._segment(lines, data)
                lines, data = [], bytearray()
        if lines:
            yield self._segment(lines, data)

    def _segment(self, lines: Sequence[bytes], data: bytearray) -> Segment:
        self.last += 1
        return Segment(*segment_names(self.last), b"".join(lines), bytes(data))


def journal_of(folder: Path) -> Records:
    """The records of a staging folder's journal, which a run may be writing; none if it is complete.

    Raises:
        ResumeError: it is not a journal.
    """
    path = folder / WORKING / JOURNAL
    try:
        raw = read_own(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ResumeError(f"{path}: {error.strerror}") from None
    return records_of(raw, lambda: ResumeError(f"{path}: a line is not valid"))[0]


def _rest(job: Job, folder: Path, safe: Collection[str]) -> tuple[dict[str, Any], bytes]:
    """What a receipt says of the bytes that a job wrote to unfinished files, and these bytes."""
    found, places = [], []
    for place, one in enumerate(written(job)):
        if one.file not in safe:
            found.append(_read(folder, one.file, one.begin, one.end))
            places.append([place, one.end - one.begin])
    more: dict[str, Any] = {"rest": places} if places else {}
    if any(step.gathers for step in job.steps):
        piece = read_own(folder / piece_file(job.number))
        found.append(piece)
        more["piece"] = len(piece)
    return more, b"".join(found)


def _read(folder: Path, file: str, begin: int, end: int) -> bytes:
    path = folder / (file + PART)
    try:
        descriptor = os.open(path if path.exists() else folder / file, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            return os.pread(descriptor, end - begin, begin)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ResumeError(f"{folder / file}: {error.strerror}", hint="run the same command again") from None


@dataclass(slots=True)
class Restored:
    """The work of earlier segments, read one after the other; `place` is the name of the repository.

    `holds` says whether the repository has a file as a record says it.
    """

    plan: Plan
    folder: Path
    place: str
    holds: Callable[[Mapping[str, Any]], bool]
    _jobs: dict[int, dict[str, Any]] = field(default_factory=dict)
    _files: dict[str, dict[str, Any]] = field(default_factory=dict)
    _there: dict[int, set[int]] = field(default_factory=dict)

    def take(self, lines: bytes, rest: bytes) -> None:
        """Take a segment, and write its bytes of unfinished files.

        Raises:
            ResumeError: it is not a segment of this plan. WorkError: the folder cannot be written.
        """
        jobs = {job.number: job for job in self.plan.jobs}
        sizes = {file.name: file.size for file in self.plan.files}
        at, writes = 0, Writes()
        for record in records_of(lines, lambda: invalid(self.place))[0]:
            if "file" in record:
                if sizes.get(record["file"]) != record["size"] or not record.get("sha256"):
                    raise invalid(self.place)
                self._files[record["file"]] = record
            else:
                job = jobs.get(record["job"])
                if job is None:
                    raise invalid(self.place)
                at = self._take(job, record, rest, at, writes)
        for file, found in writes.items():
            self._write(file, sizes[file], found)

    def _take(self, job: Job, record: dict[str, Any], rest: bytes, at: int, writes: Writes) -> int:
        """Take the receipt of a job, whose bytes begin at `at`; return where the next one's begin."""
        try:
            known = list(digests.split(from_text(record["digests"])))
            stretches = list(written(job))
            places = [(place, nbytes) for place, nbytes in record.get("rest", ())]
            piece = record.get("piece", 0)
            if len(known) != len(stretches) or not is_count(piece):
                raise invalid(self.place)
            there = set()
            for place, nbytes in places:
                one = stretches[place] if is_count(place) else None
                if one is None or nbytes != one.end - one.begin or not is_side(one.file):
                    raise invalid(self.place)
                if digests.digest(data := rest[at : at + nbytes]) == known[place]:
                    writes.setdefault(one.file, []).append((one.begin, data))
                    there.add(place)
                at += nbytes
        except (KeyError, IndexError, ValueError, TypeError):
            raise invalid(self.place) from None
        if piece and any(step.gathers for step in job.steps):
            replace_file(self.folder / piece_file(job.number), rest[at : at + piece])
        self._jobs[job.number] = {name: record[name] for name in ("job", "counts", "digests")}
        self._there[job.number] = there
        return at + int(piece)

    def _write(self, file: str, size: int, found: Iterable[tuple[int, bytes]]) -> None:
        path = self.folder / (file + PART)
        make_folders(path.parent)
        try:
            descriptor = open_own(path, os.O_WRONLY | os.O_CREAT)
            try:
                os.truncate(descriptor, size)
                for begin, data in found:
                    write_all(descriptor, data, begin)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise failure(path, error) from None

    def finish(self) -> Records:
        """Write the journal of the work that is whole; return the records of its finished files.

        A file is finished if the repository has it and all of its jobs are recorded; a job is done if all of its files
        are finished, and all bytes that it wrote to side files are there.
        """
        files = {name for name, record in self._files.items() if self.holds(record)}
        done = set(self._jobs)
        lists = {number: list(written(job)) for number, job in ((job.number, job) for job in self.plan.jobs)}
        while True:
            lost = {
                number
                for number in done
                for place, one in enumerate(lists[number])
                if one.file not in files and place not in self._there[number]
            }
            done -= lost
            open_ = {one.file for number, found in lists.items() if number not in done for one in found} & files
            files -= open_
            if not lost and not open_:
                break
        kept = [self._jobs[number] for number in sorted(done)]
        finished = [{name: self._files[file][name] for name in ("file", "size", "sha256")} for file in sorted(files)]
        lines = [line_of(record) for record in (*kept, *finished)]
        replace_file(self.folder / WORKING / JOURNAL, b"".join(lines))
        return [self._files[name] for name in sorted(files)]
