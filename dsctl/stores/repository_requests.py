"""Requests that write to a hub: retried if the failure is temporary, ended with the run, refused in the hub's words."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import wait
from threading import Event
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
import msgspec
from huggingface_hub import constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]  # exported lazily

from dsctl.core.errors import SourceError, WorkError
from dsctl.core.visible import shortened
from dsctl.stores.hub_faults import FAULTS, TRANSIENT, Doubtful, pause
from dsctl.stores.hub_guard import guard, request_headers
from dsctl.stores.objects import shown
from dsctl.stores.repositories import RepositoryName
from dsctl.stores.threads import threads

T = TypeVar("T")

# Seconds between checks for the end of the run, and redirects of one request.
GLANCE, REDIRECTS = 0.1, 3
# Seconds for an answer: a hub takes up to a minute to commit and to say that the time ran out.
PATIENCE = httpx2.Timeout(120.0, connect=20.0)
_ENDED = "the run has ended"
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN, then run the same command again"
_WRITE = "the token needs permission to write to this repository"
_ROOM = "free storage, or ask for more, then run the same command again"
# Words with which hubs refuse for want of storage. The status alone does not tell.
_STORAGE = ("storage", "quota", "limit", "too large")


def until_stopped(stopped: Event, call: Callable[[], T]) -> T:
    """The result of a call that is abandoned when the run ends. It works in a thread that does not outlive the process.

    Raises:
        WorkError: the run has ended. Whatever else the call raises.
    """
    refuse_stopped(stopped)
    with threads(1) as pool:
        future = pool.submit(call)
        while not wait([future], GLANCE).done:
            refuse_stopped(stopped)
        return future.result()


def refuse_stopped(stopped: Event) -> None:
    """Raise the error that ends work after the run has ended.

    Raises:
        WorkError: the run has ended.
    """
    if stopped.is_set():
        raise WorkError(_ENDED)


def insist(where: str, stopped: Event, call: Callable[[], T], attempts: int | None = None) -> T:
    """Call until it succeeds, waiting longer each time, at most `attempts` times or as often as `hub_faults` says.

    Raises:
        WorkError: the failure is final, or the last attempt failed, or the run has ended.
    """
    attempt = 1
    while True:
        refuse_stopped(stopped)
        try:
            guard()
            return call()
        except (*FAULTS, Doubtful) as error:
            await_next(where, error, attempt, attempts)
            attempt += 1


def await_next(where: str, error: Exception, attempt: int, attempts: int | None = None) -> None:
    """Wait before the next attempt.

    Raises:
        WorkError: a retry is useless, or this was the last attempt.
    """
    lasting = refused(where, error)
    if lasting is not None:
        raise lasting from None
    try:
        pause(where, error, 1 << 30 if attempts is not None and attempt >= attempts else attempt)
    except SourceError as final:
        message = final.message.replace(f"({1 << 30} attempts)", f"({attempt} attempts)")
        why = reason(error.response) if isinstance(error, HfHubHTTPError) else ""
        raise WorkError(f"{message}: {why}" if why else message, hint=final.hint) from None


def refused(where: str, error: Exception) -> WorkError | None:
    """The error to report if the hub refuses for good, with the reason that it gives; else None."""
    if isinstance(error, OfflineModeIsEnabled):
        return WorkError(f"{where}: cannot write to a hub while offline", hint="unset HF_HUB_OFFLINE")
    if not isinstance(error, HfHubHTTPError):
        return None
    status, why = error.response.status_code, reason(error.response)
    words = f": {why}" if why else ""
    if status == 401:
        return WorkError(
            f"{where}: the hub does not accept the token (401): it is missing, wrong or expired", hint=_LOGIN
        )
    if status in (402, 403, 413, 507):
        room = status != 403 or any(word in why.casefold() for word in _STORAGE)
        return WorkError(f"{where}: the hub refuses to store this ({status}){words}", hint=_ROOM if room else _WRITE)
    if status in TRANSIENT:
        return None
    return WorkError(f"{where}: the hub answers {status}{words}")


def reason(response: httpx2.Response) -> str:
    """The reason that a hub gives for a refusal, in one short line without the token and without queries."""
    try:
        body = msgspec.json.decode(response.content)
    except (ValueError, httpx2.HTTPError, httpx2.StreamError):
        body = None
    said = response.headers.get("x-error-message") or (body.get("error") if isinstance(body, dict) else "")
    if not isinstance(said, str):
        return ""
    token = get_token()
    line = said.replace(token, "...") if token else said
    words = [shown(word) if "://" in word else word for word in line.split()]
    return shortened(" ".join(words), 200)


def api(name: RepositoryName, *parts: str) -> str:
    """An address of the hub's interface for a repository; parts are quoted."""
    path = "/".join(quote(part, safe="") for part in parts)
    return f"{constants.ENDPOINT}/api/models/{name.repository}/{path}"


def post(url: str, *, json: Any = None, data: bytes | None = None, kind: str = "") -> httpx2.Response:
    """One POST of JSON or of bytes of a given kind, and its answer; the token goes to the hub's own origin alone.

    Raises:
        HfHubHTTPError, httpx2.HTTPError: it fails. WorkError: it is redirected to a different origin.
    """
    response = posted(url, json=json, data=data, kind=kind)
    hf_raise_for_status(response)
    return response


def posted(url: str, *, json: Any = None, data: bytes | None = None, kind: str = "") -> httpx2.Response:
    """The same with any answer, even a failure. A repository that was renamed redirects within its origin."""
    headers = request_headers() | ({"Content-Type": kind, "Accept": kind} if kind else {})
    response = _posted(url, headers, json, data)
    for _ in range(REDIRECTS):
        if not response.has_redirect_location:
            break
        there = response.url.join(response.headers["location"])
        if there.origin != response.url.origin:
            names = shown(str(response.url).partition("?")[0]), shown(str(there).partition("?")[0])
            raise WorkError(f"{names[0]}: is redirected to {names[1]}", hint="set HF_ENDPOINT to the hub itself")
        response = _posted(str(there), headers, json, data)
    return response


def _posted(url: str, headers: dict[str, str], json: Any, data: bytes | None) -> httpx2.Response:
    return get_session().post(url, headers=headers, json=json, content=data, timeout=PATIENCE, follow_redirects=False)


def get(url: str) -> httpx2.Response:
    """One GET with the token, and its answer; raises as `post` does."""
    response = get_session().get(url, headers=request_headers(), timeout=PATIENCE, follow_redirects=True)
    hf_raise_for_status(response)
    return response


def valid(response: httpx2.Response, kind: type[T]) -> T:
    """An answer's JSON as a value of this type.

    Raises:
        Doubtful: it is not one.
    """
    try:
        return msgspec.json.decode(response.content, type=kind)
    except (ValueError, RecursionError) as error:
        raise Doubtful(f"the hub's answer is not valid: {error}".splitlines()[0]) from None


def storage_address(text: str) -> str:
    """An address of storage that the hub names for uploads; a hub that is reached by https may not name plain http.

    The token is never sent there, because it has a different origin (`hub_guard`), except to an address of the hub's
    own.

    Raises:
        WorkError: it is not an address, or a plain one.
    """
    try:
        url = httpx2.URL(text)
    except (httpx2.InvalidURL, ValueError):
        url = httpx2.URL("")
    secure = httpx2.URL(constants.ENDPOINT).scheme == "https"
    if not url.host or url.scheme not in (("https",) if secure else ("http", "https")):
        what = f"names {shown(shortened(text))!r} for uploads, which is not such an address"
        raise WorkError(f"{shown(constants.ENDPOINT)}: {what}", hint="set HF_ENDPOINT to the hub itself")
    return text
