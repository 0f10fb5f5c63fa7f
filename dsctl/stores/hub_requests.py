"""Requests to a hub that survive its faults: time-outs, resets, stalls, 429 and 5xx, short and lying answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

import httpx2
import msgspec
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported lazily
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    paginate,
)

from dsctl.errors import SourceError
from dsctl.stores.objects import shown
from dsctl.version import __version__

T = TypeVar("T")

ATTEMPTS, CONNECTS = 7, 4
FIRST_WAIT, LONGEST_WAIT, LONGEST_RETRY_AFTER = 0.25, 16.0, 120.0
# Below this many bytes per second, over as long as silence is borne, an answer counts as stalled and is taken up again
# on another connection.
SLOWEST = 16 << 10
# A server that ignores ranges sends the whole file: this much of it is skipped rather than the file kept.
SKIPPED_BYTES = 4 << 20
TRANSIENT = frozenset({408, 409, 416, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})


class Doubtful(Exception):
    """An answer that contradicts itself or what was asked; the next one may be right."""


class RangesIgnored(Exception):
    """The server sends whole files only."""


class Range(NamedTuple):
    """Bytes of one file of one commit: what the listing says it holds, and where a person would look for it."""

    url: str
    begin: int
    size: int
    commit: str
    where: str


class Listed(NamedTuple):
    """What the hub's listing says of a file: its size, and the sha256 of an LFS file or the SHA-1 of a git blob."""

    name: str
    size: int
    sha256: str | None
    blob: str | None


class _Lfs(msgspec.Struct):
    oid: str
    size: int


class _Entry(msgspec.Struct):
    type: str
    path: str
    size: int = 0
    oid: str | None = None
    lfs: _Lfs | None = None


def commit_of(repository: str, revision: str) -> str:
    """The commit that a branch, a tag or a commit's own name stands for.

    Raises:
        Doubtful: the answer names none.
    """
    api, timeout = HfApi(library_name="dsctl", library_version=__version__), constants.HF_HUB_DOWNLOAD_TIMEOUT
    try:
        commit = api.model_info(repository, revision=revision, timeout=timeout).sha or ""
    except HFValidationError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Doubtful(f"the hub's answer is not valid: {type(error).__name__}") from None
    if not (commit.isascii() and commit.isalnum()):
        raise Doubtful("the hub names no commit")
    return commit


def tree(repository: str, commit: str) -> tuple[Listed, ...]:
    """Every file of a commit, by name.

    Raises:
        SourceError: a name leads out of the repository.
        Doubtful: the answer is no listing.
    """
    url, timeout = f"{constants.ENDPOINT}/api/models/{repository}/tree/{commit}", constants.HF_HUB_DOWNLOAD_TIMEOUT
    try:
        answer = list(paginate(url, {"recursive": True, "expand": False}, request_headers(), timeout))
        entries = [entry for entry in msgspec.convert(answer, list[_Entry]) if entry.type == "file"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Doubtful(f"the hub's listing is not valid: {error}".splitlines()[0]) from None
    for entry in entries:
        _refuse_outside(entry, f"{repository}@{commit[:12]}")
    return tuple(
        sorted(
            Listed(e.path, e.lfs.size if e.lfs else e.size, e.lfs.oid.removeprefix("sha256:") if e.lfs else None, e.oid)
            for e in entries
        )
    )


def _refuse_outside(entry: _Entry, where: str) -> None:
    name = entry.path
    if not name or name.startswith("/") or "\\" in name or "\0" in name or ".." in name.split("/"):
        raise SourceError(f"{where}: file name {name!r} leads out of the repository")
    if entry.size < 0 or (entry.lfs and entry.lfs.size < 0):
        raise SourceError(f"{where}: {name} is listed with an impossible size")


FAULTS = (httpx2.TransportError, httpx2.TooManyRedirects, HfHubHTTPError, HFValidationError, OSError, RuntimeError)


def persist(where: str, call: Callable[[], T]) -> T:
    """Call until it succeeds, waiting longer each time.

    Raises:
        SourceError: the fault will not pass, or did not in `ATTEMPTS` attempts.
    """
    attempt = 1
    while True:
        try:
            return call()
        except (*FAULTS, Doubtful) as error:
            pause(where, error, attempt)
            attempt += 1


def pause(where: str, error: Exception, attempt: int) -> None:
    """Wait before the next attempt.

    Raises:
        SourceError: there is no use in one.
    """
    lasting = explain(where, error)
    if lasting is not None:
        raise lasting from None
    if attempt >= (CONNECTS if isinstance(error, httpx2.ConnectError) else ATTEMPTS):
        hint = "try again later: what was done is kept"
        raise SourceError(f"{where}: {_words(error)} ({attempt} attempts)", hint=hint) from None
    time.sleep(_seconds(error, attempt))


def _seconds(error: Exception, attempt: int) -> float:
    usual = min(FIRST_WAIT * 2.0 ** (attempt - 1), LONGEST_WAIT)
    if not isinstance(error, HfHubHTTPError) or error.response is None:
        return usual
    return max(usual, min(_asked(str(error.response.headers.get("retry-after", "")).strip()), LONGEST_RETRY_AFTER))


def _asked(retry_after: str) -> float:
    """Seconds to wait by a Retry-After header: a number of them, or a date (RFC 9110, 10.2.3); 0 for anything else."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return 0.0


def _words(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"the hub answers {error.response.status_code}"
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return _words(error.__cause__)
    if isinstance(error, httpx2.TimeoutException):
        return f"no answer from {shown(constants.ENDPOINT)} in time"
    if isinstance(error, httpx2.ConnectError):
        return f"cannot reach {shown(constants.ENDPOINT)}"
    if isinstance(error, httpx2.TransportError):
        return f"connection lost ({type(error).__name__})"
    secret, _, _ = urlsplit(constants.ENDPOINT).netloc.rpartition("@")
    said = (str(error) or type(error).__name__).splitlines()[0]
    return said.replace(f"{secret}@", "") if secret else said


def explain(where: str, error: Exception) -> SourceError | None:
    """The error to report where trying again is of no use, else None."""
    if isinstance(error, OfflineModeIsEnabled) or (isinstance(error, OSError) and constants.is_offline_mode()):
        return SourceError(f"{where}: not in the cache, and offline", hint="unset HF_HUB_OFFLINE to reach the hub")
    for kind, what, hint in _LASTING:
        if isinstance(error, kind):
            return SourceError(f"{where}: {what}", hint=hint)
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        if status in (401, 403):
            return SourceError(f"{where}: the hub refuses access ({status})", hint=_LOGIN)
        return None if status in TRANSIENT else SourceError(f"{where}: the hub answers {status}")
    if isinstance(error, LocalEntryNotFoundError):
        return explain(where, error.__cause__) if isinstance(error.__cause__, Exception) else None
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, _CONNECTION):
        return SourceError(f"{where}: {error.strerror or _words(error)}")
    return None


def spoils(error: OSError) -> bool:
    """Whether huggingface_hub found that what it had downloaded of a file is not part of that file."""
    if isinstance(error, HfHubHTTPError):
        return int(error.response.status_code) == 416
    return error.errno is None and not isinstance(error, (*_CONNECTION, LocalEntryNotFoundError))


_CONNECTION = (ConnectionError, TimeoutError)
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_LASTING: tuple[tuple[type[Exception], str, str | None], ...] = (
    (GatedRepoError, "its owner asks you to accept terms first", f"accept them on its page, then {_LOGIN}"),
    (RepositoryNotFoundError, "no such repository, or a private one", f"check the name; if it is private, {_LOGIN}"),
    (RevisionNotFoundError, "no such revision", "name a branch, a tag or a commit after @"),
    (RemoteEntryNotFoundError, "no such file at this revision", None),
    (HFValidationError, "is not the name of a repository", "write it as org/name or org/name@revision"),
)


def fill(wanted: Range, buffer: memoryview) -> None:
    """Fill the buffer with a file's bytes from `wanted.begin` on.

    Raises:
        SourceError: the bytes cannot be had, or the hub serves another file than it listed.
        RangesIgnored: only the whole file can be had, and the bytes are far from its start.
    """
    at = 0
    with closing(arriving(wanted, wanted.begin + len(buffer))) as chunks:
        for chunk in chunks:
            buffer[at : at + len(chunk)] = chunk
            at += len(chunk)


def arriving(wanted: Range, end: int, skippable: int = SKIPPED_BYTES) -> Generator[bytes, None, None]:
    """A file's bytes from `wanted.begin` to `end` as they arrive; what came before a fault is not asked for again.

    Raises:
        SourceError: the bytes cannot be had, or the hub serves another file than it listed.
        RangesIgnored: only the whole file can be had, and more than `skippable` bytes of it come before.
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


def _chunks(wanted: Range, begin: int, end: int, skippable: int) -> Iterator[bytes]:
    """The bytes [begin, end) as they arrive; fewer where the connection ends early."""
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
    """Measures an answer over one stretch of time after another."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._began, self._nbytes = time.monotonic(), 0

    def keep(self, nbytes: int) -> None:
        """So many bytes have arrived.

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


def request_headers() -> dict[str, str]:
    """Headers of every request: who asks, and the token that huggingface_hub knows."""
    return dict(build_hf_headers(library_name="dsctl", library_version=__version__))


def _checked(response: httpx2.Response, wanted: Range, begin: int, end: int, skippable: int) -> int:
    """How many bytes of an answer precede those that were asked for."""
    for answer in (*response.history, response):
        commit = answer.headers.get("x-repo-commit")
        if commit is not None and commit != wanted.commit:
            raise SourceError(f"{wanted.where}: the hub answers with commit {commit[:12]}: another was asked for")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Doubtful("the answer is compressed, which was not asked for")
    length = response.headers.get("content-length")
    if response.status_code == 200:
        if length not in (None, str(wanted.size)):
            raise Doubtful(f"the hub sends a file of {length} bytes, it listed {wanted.size:,}")
        if begin > skippable:
            raise RangesIgnored
        return begin
    said = response.headers.get("content-range", "")
    if response.status_code != 206 or said not in (f"bytes {begin}-{end - 1}/{n}" for n in (wanted.size, "*")):
        raise Doubtful(f"asked for bytes {begin}-{end - 1}/{wanted.size}, the hub sends {said or response.status_code}")
    if length not in (None, str(end - begin)):
        raise Doubtful(f"asked for {end - begin:,} bytes, the hub sends {length}")
    return 0
