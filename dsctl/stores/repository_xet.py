"""Send the bytes of one file by Xet, with the library that huggingface_hub uses (hf_xet)."""

from __future__ import annotations

import contextlib
import time
from threading import Lock
from typing import Any, NamedTuple

import msgspec
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._runtime import is_xet_available
from huggingface_hub.utils._xet import get_xet_session, xet_headers_without_auth

from dsctl.core.errors import DsctlError, WorkError
from dsctl.core.files import refusal
from dsctl.core.visible import shortened
from dsctl.stores.hub_faults import Doubtful
from dsctl.stores.hub_guard import request_headers
from dsctl.stores.repositories import RepositoryWriter, Sent, Upload
from dsctl.stores.repository_lfs import refuse_changed
from dsctl.stores.repository_requests import GLANCE, api, get, insist, refuse_stopped, storage_address, valid
from dsctl.stores.threads import threads

# Attempts for a file; hf_xet itself repeats each of its requests several times.
ATTEMPTS = 3
# Seconds without any byte read or sent after which an upload has stalled, and seconds before the end of a token.
STALLED, EARLY = 300.0, 60.0


class _Said(msgspec.Struct):
    accessToken: str  # noqa: N815  the hub's names
    exp: int
    casUrl: str  # noqa: N815


class Storage(NamedTuple):
    """The address of the storage, a token that is good there alone, and when that ends."""

    url: str
    token: str
    expires: int


# By the address that gives tokens.
_known: dict[str, Storage] = {}
_lock = Lock()


def storage(writer: RepositoryWriter) -> Storage | None:
    """The storage that the hub names for uploads to a branch; None if it, or this machine, does not have Xet.

    Raises:
        WorkError: the hub refuses.
    """
    if not is_xet_available():
        return None
    with _lock:
        known = _known.get(_address(writer))
        if known is None or known.expires < time.time() + EARLY:
            known = insist(writer.place, writer.stopped, lambda: _ask(writer))
            if known is not None:
                _known[_address(writer)] = known
        return known


def _address(writer: RepositoryWriter) -> str:
    return api(writer.name, "xet-write-token", writer.name.branch)


def _ask(writer: RepositoryWriter) -> Storage | None:
    try:
        said = valid(get(_address(writer)), _Said)
    except HfHubHTTPError as error:
        # A hub without Xet does not know the address.
        if error.response.status_code == 404 and not error.response.headers.get("x-error-code"):
            return None
        raise
    return Storage(storage_address(said.casUrl), said.accessToken, said.exp)


def send(writer: RepositoryWriter, upload: Upload) -> Sent:
    """Send a file as `RepositoryWriter.send` does, by Xet: it reads the file once and computes the digest itself."""
    where = f"{writer.place}/{upload.name}"
    try:
        size = upload.path.stat().st_size
    except OSError as error:
        raise refusal(upload.path, error, WorkError) from None

    def attempt() -> Sent:
        to = storage(writer)
        if to is None:
            raise Doubtful("the hub does not name its Xet storage any more")
        told = 0

        def report(done: int) -> None:
            nonlocal told
            upload.report(done - told)
            told = done

        try:
            sent = _send(writer, upload, to, report)
        except Exception:
            report(0)
            raise
        report(size)
        return sent

    sent = insist(where, writer.stopped, attempt, ATTEMPTS)
    refuse_changed(upload, sent.sha256)
    if sent.size != size:
        raise WorkError(f"{upload.path}: was changed while it was sent", hint="run the same command again")
    return sent


def _send(writer: RepositoryWriter, upload: Upload, to: Storage, report: Any) -> Sent:
    """One attempt.

    Raises:
        Doubtful: it failed or stalled.
    """
    headers = request_headers()
    commit: Any = None
    try:
        session: Any = get_xet_session()  # type: ignore[no-untyped-call]
        commit = session.new_upload_commit(
            endpoint=to.url,
            token=to.token,
            token_expiry_unix_secs=to.expires,
            token_refresh_url=_address(writer),
            token_refresh_headers=headers,
            custom_headers=xet_headers_without_auth(headers),
        )
        handle = commit.start_upload_file(str(upload.path))
        _wait(writer, commit, report)
        info = handle.result().xet_info
        return Sent(upload.name, int(info.file_size), str(info.sha256))
    except DsctlError:
        _abort(commit)
        raise
    except Exception as error:  # noqa: BLE001  hf_xet raises what its runtime does
        _abort(commit)
        # A token that ended is the most likely cause that a new attempt can remove.
        with _lock:
            _known.pop(_address(writer), None)
        raise Doubtful(_words(error, to)) from None


def _wait(writer: RepositoryWriter, commit: Any, report: Any) -> None:
    """Wait for the end of an upload, and report its progress.

    Raises:
        TimeoutError: it does not advance. WorkError: the run has ended.
    """
    with threads(1) as pool:
        future = pool.submit(commit.wait_to_finish)
        seen, since = (-1, -1), time.monotonic()
        while not future.done():
            time.sleep(GLANCE)
            refuse_stopped(writer.stopped)
            progress = commit.progress()
            now = progress.total_bytes_completed, progress.total_transfer_bytes_completed
            if now != seen:
                seen, since = now, time.monotonic()
                report(int(progress.total_bytes_completed))
            elif time.monotonic() - since > STALLED:
                raise TimeoutError(f"no progress in {STALLED:.0f} seconds")
        future.result()


def _abort(commit: Any) -> None:
    if commit is not None:
        with contextlib.suppress(Exception):
            commit.abort()


def _words(error: Exception, to: Storage) -> str:
    """The failure in one line, without addresses, because they may be signed, and without the token."""
    line = " ".join(str(error).replace(to.token, "...").split())
    line = " ".join("(address)" if "://" in word else word for word in line.split())
    return f"the upload by Xet failed: {shortened(line, 160) or type(error).__name__}"
