"""Reads of a remote store in blocks: neighbours share one request, and the next blocks are fetched ahead."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Protocol

from dsctl.stores import Store
from dsctl.stores.threads import Threads, threads

BLOCK_BYTES = 4 << 20
CONNECTIONS = 6
# Blocks that are fetched behind one that is read, and blocks that are kept for each reading thread.
AHEAD, KEPT = 2, 6


class Bytes(Protocol):
    """The reading side of a store."""

    def read(self, file: str, begin: int, end: int) -> bytes: ...

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None: ...


@contextmanager
def in_blocks(store: Store, readers: int) -> Iterator[Bytes]:
    """A reader for some threads that each go through files from front to back; the store itself if reads are cheap."""
    if not store.remote:
        yield store
        return
    with threads(CONNECTIONS) as pool:
        yield _Blocks(store, pool, readers * KEPT)


class _Blocks:
    """Blocks of a store's files, fetched once while they are in use."""

    def __init__(self, store: Store, pool: Threads, kept: int) -> None:
        self._store, self._pool, self._kept = store, pool, kept
        self._sizes = store.files()
        self._blocks: OrderedDict[tuple[str, int], Future[bytes]] = OrderedDict()
        self._lock = Lock()

    def read(self, file: str, begin: int, end: int) -> bytes:
        buffer = bytearray(end - begin)
        self.read_into(file, begin, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
        end = begin + len(buffer)
        if end > self._sizes.get(file, 0):
            # The store says what is wrong with it.
            self._store.read_into(file, begin, buffer)
            return
        at = begin
        while at < end:
            number = at // BLOCK_BYTES
            data = self._block(file, number).result()
            first = at - number * BLOCK_BYTES
            taken = min(end - at, len(data) - first)
            buffer[at - begin : at - begin + taken] = data[first : first + taken]
            at += taken

    def _block(self, file: str, number: int) -> Future[bytes]:
        with self._lock:
            found = self._fetched(file, number)
            for later in range(number + 1, number + 1 + AHEAD):
                if later * BLOCK_BYTES < self._sizes[file]:
                    self._fetched(file, later)
            self._blocks.move_to_end((file, number))
            while len(self._blocks) > self._kept:
                self._blocks.popitem(last=False)
            return found

    def _fetched(self, file: str, number: int) -> Future[bytes]:
        found = self._blocks.get((file, number))
        if found is None:
            begin = number * BLOCK_BYTES
            end = min(begin + BLOCK_BYTES, self._sizes[file])
            found = self._blocks[file, number] = self._pool.submit(partial(self._store.read, file, begin, end))
        return found
