"""Failures of a hub, in words: which are temporary, how long to wait before a retry, and which are final."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants
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
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]  # exported lazily

from dsctl.core.errors import LATER, SourceError
from dsctl.stores.hub_guard import guard
from dsctl.stores.objects import shown

T = TypeVar("T")

ATTEMPTS, CONNECTS = 7, 4
FIRST_WAIT, LONGEST_WAIT, LONGEST_RETRY_AFTER = 0.25, 16.0, 120.0
TRANSIENT = frozenset({408, 409, 416, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})


class Doubtful(Exception):
    """An answer that contradicts itself or the request; a retry may be correct."""


FAULTS = (httpx2.TransportError, httpx2.TooManyRedirects, HfHubHTTPError, HFValidationError, OSError, RuntimeError)


def persist(where: str, call: Callable[[], T]) -> T:
    """Call until it succeeds, waiting longer each time.

    Raises:
        SourceError: the failure is final, or `ATTEMPTS` attempts failed.
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
        SourceError: a retry is useless.
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
    asked = _asked(str(error.response.headers.get("retry-after", "")).strip())
    limit = parse_ratelimit_headers(error.response.headers)
    if error.response.status_code == 429 and limit is not None and limit.remaining == 0:
        # The hub's own limit, for all requests of a kind: one second more, because it counts whole ones.
        asked = max(asked, limit.reset_in_seconds + 1.0)
    return max(usual, min(asked, LONGEST_RETRY_AFTER))


def _asked(retry_after: str) -> float:
    """The wait that a Retry-After header asks for, in seconds: a number or a date (RFC 9110, 10.2.3); else 0."""
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
    """The error to report if a retry is useless, else None."""
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
    """Whether huggingface_hub found that a partial download does not belong to the file."""
    if isinstance(error, HfHubHTTPError):
        return int(error.response.status_code) == 416
    return error.errno is None and not isinstance(error, (*_CONNECTION, LocalEntryNotFoundError))


_CONNECTION = (ConnectionError, TimeoutError)
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_LASTING: tuple[tuple[type[Exception], str, str | None], ...] = (
    (GatedRepoError, "its owner asks you to accept terms first", f"accept them on its page, then {_LOGIN}"),
    (RepositoryNotFoundError, "no such repository, or a private one", f"check the name; if it is private, {_LOGIN}"),
    (RevisionNotFoundError, "no such revision", "write a branch, a tag or a commit after @"),
    (RemoteEntryNotFoundError, "this revision does not have the file", None),
    (HFValidationError, "is not a repository name", "write it as org/name or org/name@revision"),
)
