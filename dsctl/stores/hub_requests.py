"""Requests to a hub that survive its faults: time-outs, resets, stalls, 429 and 5xx, short and lying answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urljoin, urlsplit

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
)

from dsctl.core.errors import LATER, SourceError
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
# The hub sends a thousand files a page.
MOST_PAGES = 1000
# SHA-256 in hexadecimal; git's usual SHA-1 is shorter.
LONGEST_COMMIT = 64
# Bytes of a file's name that a file system takes (255) without what huggingface_hub appends to it while it works, and
# of a path below a folder whose own path is long (Linux: 4,096 in all).
LONGEST_NAME, LONGEST_PATH = 255 - len(".incomplete"), 2048
# What version control, caches and dsctl itself keep their records in.
RESERVED = frozenset({".git", ".dsctl", ".cache"})
_USER_AGENT = "dsctl/"
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
    if not (commit.isascii() and commit.isalnum() and len(commit) <= LONGEST_COMMIT):
        raise Doubtful("the hub names no commit")
    return commit


def tree(repository: str, commit: str) -> tuple[Listed, ...]:
    """Every file of a commit, by name.

    Raises:
        SourceError: a name leads out of the repository.
        Doubtful: the answer is no listing.
    """
    where = f"{repository}@{commit[:12]}"
    url = f"{constants.ENDPOINT}/api/models/{repository}/tree/{commit}?recursive=true&expand=false"
    try:
        answer = [entry for page in _pages(url, where) for entry in page]
        entries = [entry for entry in msgspec.convert(answer, list[_Entry]) if entry.type == "file"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Doubtful(f"the hub's listing is not valid: {error}".splitlines()[0]) from None
    for entry in entries:
        if entry.size < 0 or (entry.lfs and entry.lfs.size < 0):
            raise SourceError(f"{where}: {entry.path} is listed with an impossible size")
    refuse_names([entry.path for entry in entries], where)
    return tuple(
        sorted(
            Listed(e.path, e.lfs.size if e.lfs else e.size, e.lfs.oid.removeprefix("sha256:") if e.lfs else None, e.oid)
            for e in entries
        )
    )


def _pages(url: str, where: str) -> Iterator[list[Any]]:
    """The pages of a listing, each of which names the next.

    Raises:
        SourceError: there is no end to them, or one is to be had from another origin only.
    """
    seen: set[str] = set()
    while url:
        if url in seen or len(seen) >= MOST_PAGES:
            raise SourceError(f"{where}: the hub's listing does not end (page {len(seen) + 1:,})")
        seen.add(url)
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        response = get_session().get(url, headers=request_headers(), timeout=timeout, follow_redirects=True)
        hf_raise_for_status(response)
        yield list(response.json())
        following = response.links.get("next", {}).get("url")
        url = urljoin(str(response.url), following) if following else ""


def refuse_names(names: Iterable[str], where: str) -> None:
    """Refuse a listing that could not be written as files below a folder, or would write what is not a checkpoint's.

    Raises:
        SourceError: with the first such name, spelled out.
    """
    folders: dict[str, str] = {}
    files: dict[str, str] = {}
    for name in names:
        why = _unusable(name)
        parts = name.split("/")
        if not why and (twin := files.get(name.casefold())) is not None:
            why = "is listed twice" if twin == name else f"and {twin!r} differ in case only"
        if why:
            raise SourceError(f"{where}: file name {name!r} {why}", hint=_REFUSED)
        files[name.casefold()] = name
        folders |= {"/".join(parts[:depth]).casefold(): name for depth in range(1, len(parts))}
    both = next((name for folded, name in files.items() if folded in folders), None)
    if both is not None:
        raise SourceError(f"{where}: {both!r} is a file and the folder of {folders[both.casefold()]!r}", hint=_REFUSED)


def _unusable(name: str) -> str:
    """What is wrong with a file's name by itself, if anything."""
    parts = name.split("/")
    if "\\" in name or not {"", ".", ".."}.isdisjoint(parts):
        return "leads out of the repository"
    if not name.isprintable():
        return "is no printable text"
    if reserved := [part for part in parts if part.casefold() in RESERVED]:
        return f"lies in {reserved[0]}, which is not part of a repository"
    if len(name.encode()) > LONGEST_PATH or any(len(part.encode()) > LONGEST_NAME for part in parts):
        return "is too long for a file system"
    return ""


_REFUSED = "nothing was read or written: tell whoever keeps this repository or hub"


def guard() -> None:
    """Keep the token to the endpoint's own origin (scheme, host and port), whoever asks on dsctl's behalf.

    huggingface_hub sends it along wherever the hub's answers lead: redirects, `Link` headers, routes for new Xet
    tokens. Requests of other libraries over the same session are left alone.
    """
    hooks = get_session().event_hooks
    for kind, hook in (("request", _withhold), ("response", _refuse_elsewhere)):
        if hook not in hooks[kind]:
            hooks[kind].append(hook)


def _ours(request: httpx2.Request) -> bool:
    return _USER_AGENT in request.headers.get("user-agent", "")


def _elsewhere(url: httpx2.URL) -> bool:
    return url.origin != httpx2.URL(constants.ENDPOINT).origin


def _withhold(request: httpx2.Request) -> None:
    """Send no token to another origin. The storage that files are redirected to has signed addresses of its own."""
    if _ours(request) and _elsewhere(request.url):
        request.headers.pop("Authorization", None)


def _refuse_elsewhere(response: httpx2.Response) -> None:
    """Refuse an answer that names another origin for what is asked with the token.

    Raises:
        SourceError: the next page, or the route to a new Xet token, is elsewhere.
    """
    if not _ours(response.request):
        return
    named = {
        "the next page of its listing": response.links.get("next", {}).get("url"),
        "a new Xet token": response.links.get("xet-auth", {}).get("url")
        or response.headers.get(constants.HUGGINGFACE_HEADER_X_XET_REFRESH_ROUTE),
    }
    for what, link in named.items():
        if not link:
            continue
        # huggingface_hub asks the endpoint in place of the hub's own address.
        route = link.startswith(constants.HUGGINGFACE_CO_URL_HOME) and "Xet" in what
        if not route and _elsewhere(response.url.join(link)):
            there, here = shown(link.partition("?")[0]), shown(constants.ENDPOINT)
            hint = "a mirror that is set up well names itself: set HF_ENDPOINT to the hub that has the repository"
            raise SourceError(f"{here}: names {there} for {what}: no other origin is asked", hint=hint)


FAULTS = (httpx2.TransportError, httpx2.TooManyRedirects, HfHubHTTPError, HFValidationError, OSError, RuntimeError)


def persist(where: str, call: Callable[[], T]) -> T:
    """Call until it succeeds, waiting longer each time.

    Raises:
        SourceError: the fault will not pass, or did not in `ATTEMPTS` attempts.
    """
    attempt = 1
    while True:
        try:
            guard()
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
        hint = LATER
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
