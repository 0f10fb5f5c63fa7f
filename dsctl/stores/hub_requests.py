"""Read byte ranges of a hub's files in spite of stalls, resets, short answers and false ones."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing

import httpx2
from huggingface_hub import constants
from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]  # exported lazily

from dsctl.core.errors import SourceError
from dsctl.stores.hub_entries import HubRange
from dsctl.stores.hub_faults import FAULTS, Doubtful, pause
from dsctl.stores.hub_guard import guard, request_headers

# An answer slower than this (bytes per second), measured over one time-out, counts as stalled; it continues on a new
# connection.
SLOWEST = 16 << 10
# A server that ignores ranges sends the whole file: up to this many leading bytes are skipped.
SKIPPED_BYTES = 4 << 20


class RangesIgnored(Exception):
    """The server sends whole files only."""


def fill(wanted: HubRange, buffer: memoryview) -> None:
    """Fill the buffer with a file's bytes from `wanted.begin` on.

    Raises:
        SourceError: the bytes cannot be read, or the hub serves a different file than it listed.
        RangesIgnored: the hub serves whole files only, and the bytes are far from the start.
    """
    at = 0
    with closing(arriving(wanted, wanted.begin + len(buffer))) as chunks:
        for chunk in chunks:
            buffer[at : at + len(chunk)] = chunk
            at += len(chunk)


def arriving(wanted: HubRange, end: int, skippable: int = SKIPPED_BYTES) -> Generator[bytes, None, None]:
    """A file's bytes from `wanted.begin` to `end` as they arrive; a retry does not read them again.

    Raises:
        SourceError: the bytes cannot be read, or the hub serves a different file than it listed.
        RangesIgnored: the hub serves whole files only, and more than `skippable` bytes come before.
    """
    at, attempt = wanted.begin, 1
    while at < end:
        try:
            for chunk in _chunks(wanted, at, end, skippable):
                at, attempt = at + len(chunk), 1
                yield chunk
            _refuse_short(end - at)
        except (*FAULTS, Doubtful) as error:
            pause(wanted.where, error, attempt)
            attempt += 1


def _refuse_short(lacking: int) -> None:
    if lacking:
        raise Doubtful(f"the answer ends {lacking:,} bytes early")


def _chunks(wanted: HubRange, begin: int, end: int, skippable: int) -> Iterator[bytes]:
    """The bytes [begin, end) as they arrive; fewer if the connection ends early."""
    guard()
    patience = float(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    headers = request_headers() | {"Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", wanted.url, headers=headers, timeout=patience, follow_redirects=True) as response:
        if response.status_code >= 400:
            response.read()
            hf_raise_for_status(response)
        skip = _checked(response, wanted, begin, end, skippable)
        left, pace = end - begin, _Pace(patience)
        for raw in response.iter_raw():
            pace.keep(len(raw))
            chunk = raw[skip:][:left]
            skip, left = max(0, skip - len(raw)), left - len(chunk)
            if chunk:
                yield chunk
            if not left:
                return


class _Pace:
    """Measures the speed of an answer over successive intervals."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began, self._nbytes = time.monotonic(), 0

    def keep(self, nbytes: int) -> None:
        """Count this many bytes that arrived.

        Raises:
            ReadTimeout: they come too slowly.
        """
        self._nbytes += nbytes
        passed = time.monotonic() - self._began
        if passed < self._seconds:
            return
        if self._nbytes < SLOWEST * passed:
            raise httpx2.ReadTimeout(f"{self._nbytes:,} bytes in {passed:.0f} seconds")
        self._began, self._nbytes = time.monotonic(), 0


def _checked(response: httpx2.Response, wanted: HubRange, begin: int, end: int, skippable: int) -> int:
    """The number of bytes in an answer before the requested ones."""
    for answer in (*response.history, response):
        commit = answer.headers.get("x-repo-commit")
        if commit is not None and commit != wanted.commit:
            raise SourceError(
                f"{wanted.where}: the hub answered with commit {commit[:12]}: a different one was requested"
            )
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Doubtful("the answer is compressed, which was not requested")
    length = response.headers.get("content-length")
    if response.status_code == 200:
        if length not in (None, str(wanted.size)):
            raise Doubtful(f"the hub sent a file of {length} bytes, it listed {wanted.size:,}")
        if begin > skippable:
            raise RangesIgnored
        return begin
    said = response.headers.get("content-range", "")
    if response.status_code != 206 or said not in (f"bytes {begin}-{end - 1}/{n}" for n in (wanted.size, "*")):
        raise Doubtful(f"asked for bytes {begin}-{end - 1}/{wanted.size}, the hub sends {said or response.status_code}")
    if length not in (None, str(end - begin)):
        raise Doubtful(f"asked for {end - begin:,} bytes, the hub sends {length}")
    return 0
