"""Read a job's bytes ahead over several connections if every read costs a round trip. No torch.

Neighbouring tensors are requested together; the bytes that are fetched and not yet used are bounded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import NamedTuple, Protocol

from dsctl.core.boxes import Box
from dsctl.plan.steps import Region, Step
from dsctl.stores import Store
from dsctl.stores.threads import Threads, threads

CONNECTIONS = 6
CHUNK_BYTES = 8 << 20
# The most bytes fetched and not yet used, per worker.
WINDOW_BYTES = 48 << 20
# Unneeded bytes between two tensors are also read if they are less than a hundredth of the needed ones.
_WASTE = 100


class Reader(Protocol):
    """The source of a job's bytes."""

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
        """Fill the buffer with a file's bytes from `begin` on."""


class Span(NamedTuple):
    """Bytes [begin, end) of a file that a job will read, in the order of reading."""

    file: str
    begin: int
    end: int


@dataclass(slots=True)
class _Chunk:
    """The bytes of one request; `left` of them are not yet used."""

    file: str
    begin: int
    end: int
    left: int = 0
    data: Future[bytes] | None = None


@contextmanager
def ahead(store: Store, steps: Iterable[Step]) -> Iterator[Reader]:
    """A reader for a job's steps: the store itself if reads are cheap."""
    if not store.remote:
        yield store
        return
    with threads(CONNECTIONS) as pool:
        yield _Ahead(store, list(spans(steps)), pool)


def spans(steps: Iterable[Step]) -> Iterator[Span]:
    """The bytes that steps read, in order; bytes read twice appear twice."""
    for step in steps:
        for copy in step.copies:
            yield Span(copy.read.file, copy.read.offset, copy.read.offset + copy.read.spec.nbytes)
        for region in (*step.regions_read, *((step.kept,) if step.kept else ())):
            yield from _region_spans(region, step.span)
        if (change := step.change) and not change.whole:
            yield Span(change.file, change.offset, change.offset + change.stored)


def _region_spans(region: Region, span: Box) -> Iterator[Span]:
    needed = region.box.intersect(span)
    for part in region.parts if needed else ():
        box, rows = region.place(part.name, needed or span), part.spec.shape[:1]
        row = part.spec.nbytes // max(1, prod(rows))
        first, last = (box.start[0], box.stop[0]) if rows else (0, 1)
        if last > first and row:
            yield Span(part.file, part.offset + first * row, part.offset + last * row)


def chunks(wanted: Iterable[Span]) -> list[_Chunk]:
    """Requests that cover the spans, in the order of their first use."""
    spans = list(wanted)
    by_file: dict[str, list[_Chunk]] = {}
    for file, begin, end in _merged(spans):
        cut = range(begin, end, CHUNK_BYTES)
        by_file.setdefault(file, []).extend(_Chunk(file, at, min(at + CHUNK_BYTES, end)) for at in cut)
    ordered: dict[int, _Chunk] = {}
    for span in spans:
        for chunk in _over(by_file[span.file], span.begin, span.end):
            chunk.left += min(chunk.end, span.end) - max(chunk.begin, span.begin)
            ordered.setdefault(id(chunk), chunk)
    return list(ordered.values())


def _merged(spans: list[Span]) -> Iterator[Span]:
    run: Span | None = None
    for span in sorted(spans):
        if run is None or span.file != run.file or (span.begin - run.end) * _WASTE > span.end - run.begin:
            if run is not None:
                yield run
            run = span
        elif span.end > run.end:
            run = run._replace(end=span.end)
    if run is not None:
        yield run


def _over(chunks: list[_Chunk], begin: int, end: int) -> Iterator[_Chunk]:
    """The chunks, sorted by place, that overlap the bytes [begin, end)."""
    place = max(0, bisect_right(chunks, begin, key=lambda chunk: chunk.begin) - 1)
    for chunk in chunks[place:]:
        if chunk.begin >= end:
            return
        if chunk.end > begin:
            yield chunk


class _Ahead:
    """Serves reads from chunks fetched ahead; other bytes are read directly from the store."""

    def __init__(self, store: Store, spans: list[Span], pool: Threads) -> None:
        self._store, self._pool = store, pool
        self._queue = deque(chunks(spans))
        self._held = 0
        self._chunks: dict[str, list[_Chunk]] = {}
        for chunk in self._queue:
            self._chunks.setdefault(chunk.file, []).append(chunk)
        for held in self._chunks.values():
            held.sort(key=lambda chunk: chunk.begin)
        self._advance()

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
        at, end = begin, begin + len(buffer)
        for chunk in list(_over(self._chunks.get(file, []), begin, end)):
            first, last = max(chunk.begin, begin), min(chunk.end, end)
            if first > at:
                self._store.read_into(file, at, buffer[at - begin : first - begin])
            buffer[first - begin : last - begin] = self._take(chunk, first, last)
            at = last
        if at < end:
            self._store.read_into(file, at, buffer[at - begin :])
        self._advance()

    def _take(self, chunk: _Chunk, first: int, last: int) -> memoryview:
        if chunk.data is None:
            self._submit(chunk)
        assert chunk.data is not None
        data = memoryview(chunk.data.result())[first - chunk.begin : last - chunk.begin]
        chunk.left -= last - first
        if chunk.left <= 0:
            self._chunks[chunk.file].remove(chunk)
            self._held -= chunk.end - chunk.begin
        return data

    def _advance(self) -> None:
        while self._queue and self._held < WINDOW_BYTES:
            chunk = self._queue.popleft()
            if chunk.data is None and chunk.left > 0:
                self._submit(chunk)

    def _submit(self, chunk: _Chunk) -> None:
        self._held += chunk.end - chunk.begin
        chunk.data = self._pool.submit(partial(self._store.read, chunk.file, chunk.begin, chunk.end))
