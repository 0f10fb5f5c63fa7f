"""One object at a time of a folder in an object store: sent, read back, removed, its unfinished parts given back."""

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

# One request's part of a file, and how many of them are held and sent at once.
PART_BYTES, PARTS = 16 << 20, 4
# What is held of files on their way.
SENT_BYTES = PART_BYTES * PARTS
# Seconds between looks at whether the run has ended whose file is on its way, and for giving that file's parts back.
GLANCE, LEAVE = 0.2, 1.0
_ENDED = "the run has ended"


@dataclass(frozen=True, slots=True)
class Uploads:
    """The folder at a URL. Requests are tried again; all of them end when `stop` is called."""

    url: str
    _stopped: Event = field(default_factory=Event)

    def place(self, name: str) -> str:
        """What a person calls an object: its URL without what may be secret in it."""
        return f"{shown(self.url)}/{name}"

    def stop(self) -> None:
        """Give up what is on its way, and begin nothing more."""
        self._stopped.set()

    def send(self, name: str, path: Path) -> int:
        """Send a file of this machine, whole or not at all, and give its size in bytes.

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
        """All bytes of a small object, or None if there is no such object.

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
        """Remove an object; it may be gone already.

        Raises:
            WorkError: it cannot be removed.
        """
        system, path = opened(f"{self.url}/{name}")

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                system.rm_file(path, **deadline(system))

        persist(self.place(name), remove, WorkError)

    def abort(self, name: str = "", seconds: float | None = None) -> None:
        """Give back the parts of an object's unfinished uploads, or of all in the folder, if the store lists them.

        Each request may take so many seconds.
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
    """A request that ends when the run does, and has stalled if it makes no progress for some seconds.

    It is what fsspec calls a callback.
    """

    stopped: Event
    seconds: float
    _told: float = 0.0

    def set_size(self, size: int) -> None:
        """How much there is."""

    def relative_update(self, inc: int = 1) -> None:
        """So much more is done."""
        self._told = time.monotonic()

    def call(self, system: Any, name: str, *arguments: Any, **options: Any) -> Any:
        """What the request gives.

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
