"""Send, read, remove single objects of a folder in an object store, and abort unfinished uploads."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from dsctl.core.errors import WorkError
from dsctl.stores.objects import deadline, opened, patience, persist, shown

# Bytes of one part of an upload, and the number of parts in memory and in flight at once.
PART_BYTES, PARTS = 16 << 20, 4
# The most bytes of uploads held in memory.
SENT_BYTES = PART_BYTES * PARTS
# Seconds between checks for the end of the run during an upload, and seconds for aborting the upload's parts.
GLANCE, LEAVE = 0.2, 1.0
_ENDED = "the run has ended"


@dataclass(frozen=True, slots=True)
class Uploads:
    """The folder at a URL. Requests are retried; all of them end when `stop` is called."""

    url: str
    _stopped: Event = field(default_factory=Event)

    def place(self, name: str) -> str:
        """The printable name of an object: its URL without its possibly secret parts."""
        return f"{shown(self.url)}/{name}"

    def stop(self) -> None:
        """Abort running uploads and start no further one."""
        self._stopped.set()

    def send(self, name: str, path: Path) -> int:
        """Send a local file completely or not at all; return its size in bytes.

        Raises:
            WorkError: it cannot be sent, or the run has ended.
        """
        size = path.stat().st_size
        persist(self.place(name), lambda: self._send(name, path, size), WorkError, self._wait)
        return size

    def put(self, name: str, data: bytes) -> None:
        """Send an object's bytes.

        Raises:
            WorkError: they cannot be sent.
        """
        system, path = opened(f"{self.url}/{name}")
        persist(self.place(name), lambda: system.pipe_file(path, data, **deadline(system)), WorkError)

    def read(self, name: str) -> bytes | None:
        """All bytes of a small object, or None if it does not exist.

        Raises:
            WorkError: it cannot be read.
        """
        system, path = opened(f"{self.url}/{name}")

        def read() -> bytes | None:
            try:
                return bytes(system.cat_file(path, **deadline(system)))
            except FileNotFoundError:
                return None

        return persist(self.place(name), read, WorkError)

    def remove(self, name: str) -> None:
        """Remove an object; it may already be absent.

        Raises:
            WorkError: it cannot be removed.
        """
        system, path = opened(f"{self.url}/{name}")

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(path, **deadline(system))

        persist(self.place(name), remove, WorkError)

    def abort(self, name: str = "", seconds: float | None = None) -> None:
        """Abort unfinished uploads of an object, or of all objects in the folder, if the store lists them.

        Each request may take `seconds`.
        """
        system, path = opened(f"{self.url}/{name}")
        if not hasattr(system, "list_multipart_uploads"):
            return
        bucket, _, key = path.rstrip("/").partition("/")
        limit = deadline(system) if seconds is None else {"timeout": seconds}
        with contextlib.suppress(OSError):
            for one in system.list_multipart_uploads(bucket, **limit):
                if one["Key"] == key if name else one["Key"].startswith(f"{key}/"):
                    system.abort_mpu(bucket, one["Key"], one["UploadId"], **limit)

    def _send(self, name: str, path: Path, size: int) -> None:
        system, there = opened(f"{self.url}/{name}")
        in_parts = "s3" in system.protocol
        parts = {"chunksize": PART_BYTES, "max_concurrency": PARTS} if in_parts else {}
        heed = _Heed(self._stopped, patience(min(size, SENT_BYTES) if in_parts else size))
        try:
            heed.call(system, "put_file", str(path), there, callback=heed, **parts)
        except (TimeoutError, WorkError):
            self.abort(name, LEAVE)
            raise
        found = _Heed(self._stopped, patience(0)).call(system, "info", there)["size"]
        if found != size:
            raise OSError(f"{size:,} bytes were sent, {found:,} are there")

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise WorkError(_ENDED)


@dataclass(slots=True)
class _Heed:
    """A request that ends with the run, and counts as stalled if it makes no progress for some seconds.

    It serves as an fsspec callback.
    """

    stopped: Event
    seconds: float
    _told: float = 0.0

    def set_size(self, size: int) -> None:
        """The size of the transfer, which is not used."""

    def relative_update(self, inc: int = 1) -> None:
        """Note that bytes moved."""
        self._told = time.monotonic()

    def call(self, system: Any, name: str, *arguments: Any, **options: Any) -> Any:
        """Carry out a request and return its result.

        Raises:
            TimeoutError: it has stalled. WorkError: the run has ended.
        """
        if self.stopped.is_set():
            raise WorkError(_ENDED)
        if not getattr(system, "async_impl", False):
            return getattr(system, name)(*arguments, **options)
        self._told = time.monotonic()
        future = asyncio.run_coroutine_threadsafe(getattr(system, f"_{name}")(*arguments, **options), system.loop)
        try:
            while not wait([future], GLANCE).done:
                if self.stopped.is_set():
                    raise WorkError(_ENDED)
                if time.monotonic() - self._told > self.seconds:
                    raise TimeoutError
        finally:
            future.cancel()
        return future.result()
