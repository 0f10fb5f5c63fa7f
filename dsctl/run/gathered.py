"""The scales that jobs gathered, joined into one file when all jobs are done. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from dsctl.checkpoint.odd_scales import piece_file
from dsctl.core.errors import FormatError, ResumeError
from dsctl.core.files import open_own
from dsctl.core.header import Header, TensorRef, build, header_length, parse
from dsctl.plan.plan import Job, Plan


def lost_pieces(jobs: Iterable[Job], target: Path) -> Iterator[int]:
    """The numbers of these finished jobs whose piece is missing or not valid."""
    for job in jobs:
        if _gathers(job):
            try:
                _header(target, job.number)
            except ResumeError:
                yield job.number


def _gathers(job: Job) -> bool:
    return any(step.gathers for step in job.steps)


def _read(target: Path, job: int, begin: int, size: int) -> bytes:
    """Bytes of a piece.

    Raises:
        ResumeError: it is missing.
    """
    path = target / piece_file(job)
    try:
        descriptor = open_own(path, os.O_RDONLY)
        try:
            return os.pread(descriptor, size, begin)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ResumeError(f"{path}: cannot be read: {error}") from None


def _header(target: Path, job: int) -> Header:
    """A piece's header.

    Raises:
        ResumeError: it is missing, or not a piece.
    """
    path = target / piece_file(job)
    try:
        size = path.stat().st_size if path.is_file() else 0
        length = header_length(_read(target, job, 0, 8), str(path), size)
        return parse(_read(target, job, 8, length), str(path), size)
    except FormatError as error:
        raise ResumeError(error.message) from None


def gathered(plan: Plan, target: Path) -> tuple[int, Iterator[bytes]]:
    """The size and the bytes of the file that joins all pieces.

    Raises:
        ResumeError: a piece is missing.
    """
    numbers = [job.number for job in plan.jobs if _gathers(job)]
    refs: dict[str, tuple[int, TensorRef]] = {}
    for number in numbers:
        refs |= {name: (number, ref) for name, ref in _header(target, number).tensors.items()}
    specs = {name: ref.spec for name, (_, ref) in refs.items()}
    header, begins = build(specs, {"dsctl": "scales of four-bit groups that do not follow from their values"})
    found = [refs[name] for name in sorted(begins, key=begins.__getitem__)]
    parts = (_read(target, number, ref.begin, ref.nbytes) for number, ref in found)
    return len(header) + sum(spec.nbytes for spec in specs.values()), chain((header,), parts)
