"""Send the bytes of one file by git LFS, whole or in parts (git-lfs docs/api/batch.md; huggingface_hub lfs.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from math import ceil
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import msgspec
from huggingface_hub import constants
from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]  # exported lazily

from dsctl.core.errors import WorkError
from dsctl.core.files import refusal
from dsctl.core.visible import shortened
from dsctl.stores.hub_faults import Doubtful
from dsctl.stores.hub_guard import request_headers
from dsctl.stores.repositories import Report, RepositoryWriter, Sent, Upload
from dsctl.stores.repository_requests import PATIENCE, insist, post, posted, refuse_stopped, storage_address, valid

CHUNK = 1 << 20
# Parts of an upload at most, as stores of objects allow.
MOST_PARTS = 10_000
# Requests for fresh addresses after storage refused the old ones, which are valid for some hours only.
RENEWALS = 3
_KIND = "application/vnd.git-lfs+json"


class _Action(msgspec.Struct):
    href: str
    header: dict[str, Any] = {}


class _Failure(msgspec.Struct):
    code: int = 0
    message: str = ""


class _Object(msgspec.Struct):
    oid: str
    size: int
    actions: dict[str, _Action] | None = None
    error: _Failure | None = None


class _Batch(msgspec.Struct):
    objects: list[_Object]


class _Expired(Exception):
    """Storage refuses an address that the hub named; the hub may name a fresh one."""


def send(writer: RepositoryWriter, upload: Upload) -> Sent:
    """Send a file as `RepositoryWriter.send` does, by LFS."""
    sent = _digested(writer, upload)
    where = f"{writer.place}/{upload.name}"
    for renewal in range(RENEWALS + 1):
        actions = insist(where, writer.stopped, lambda: _actions(writer, sent))
        if actions is None:
            upload.report(sent.size)
            return sent
        sending = _Sending(writer, upload, where)
        try:
            sending.put(sent, actions)
        except _Expired as expired:
            upload.report(-sending.done)
            if renewal == RENEWALS:
                raise WorkError(f"{where}: {expired}", hint="try again later") from None
            continue
        break
    return sent


def _digested(writer: RepositoryWriter, upload: Upload) -> Sent:
    """The file's size and digest. LFS needs it before; storage compares the bytes that it gets with it.

    Raises:
        WorkError: the file cannot be read, or has a different digest than it should.
    """
    try:
        with open(upload.path, "rb", buffering=0) as file:
            digest, size = hashlib.sha256(), 0
            while chunk := file.read(CHUNK):
                refuse_stopped(writer.stopped)
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise refusal(upload.path, error, WorkError) from None
    refuse_changed(upload, digest.hexdigest())
    return Sent(upload.name, size, digest.hexdigest())


def refuse_changed(upload: Upload, found: str) -> None:
    """Refuse a file that does not have the digest that it should have.

    Raises:
        WorkError: with both digests.
    """
    if upload.sha256 not in (None, found):
        what = f"its SHA-256 is {found[:12]}, {str(upload.sha256)[:12]} was expected"
        raise WorkError(f"{upload.path}: {what}", hint="the file was changed: run the same command again")


def _actions(writer: RepositoryWriter, sent: Sent) -> dict[str, _Action] | None:
    """What the hub asks to be done with a file; None if it has it.

    Raises:
        WorkError: the hub refuses this file.
    """
    asked = {
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "objects": [{"oid": sent.sha256, "size": sent.size}],
        "hash_algo": "sha256",
        "ref": {"name": writer.name.branch},
    }
    url = f"{constants.ENDPOINT}/{writer.name.repository}.git/info/lfs/objects/batch"
    response = post(url, data=msgspec.json.encode(asked), kind=_KIND)
    found = [one for one in valid(response, _Batch).objects if (one.oid, one.size) == (sent.sha256, sent.size)]
    if len(found) != 1:
        raise Doubtful("the hub's answer is not about the file that was asked for")
    if found[0].error is not None:
        failure = found[0].error
        said = shortened(" ".join(failure.message.split()), 200)
        raise WorkError(f"{writer.place}/{sent.name}: the hub refuses the file ({failure.code}): {said}")
    if found[0].actions is not None and "upload" not in found[0].actions:
        raise Doubtful("the hub does not say where to send the file")
    return found[0].actions


class _Sending:
    """The transfer of one file to the addresses that the hub named; `done` counts the bytes that arrived."""

    def __init__(self, writer: RepositoryWriter, upload: Upload, where: str) -> None:
        self._writer, self._upload, self._where, self.done = writer, upload, where, 0

    def put(self, sent: Sent, actions: dict[str, _Action]) -> None:
        """Send the bytes and have them verified.

        Raises:
            _Expired: storage does not take the addresses. WorkError: it fails otherwise.
        """
        action = actions["upload"]
        href = storage_address(action.href)
        length = action.header.get("chunk_size")
        if length is None:
            self._part(href, 0, sent.size)
        else:
            self._parts(sent, href, action.header)
        verify = actions.get("verify")
        if verify is not None:
            address = storage_address(verify.href)
            asked = {"oid": sent.sha256, "size": sent.size}
            insist(self._where, self._writer.stopped, lambda: post(address, json=asked))

    def _parts(self, sent: Sent, href: str, header: dict[str, Any]) -> None:
        length = int(str(header["chunk_size"])) if str(header["chunk_size"]).isdecimal() else 0
        numbers = sorted(int(key) for key in header if key.isascii() and key.isdecimal())
        wanted = ceil(sent.size / length) if length else 0
        if not 0 < wanted <= MOST_PARTS or numbers != list(range(1, wanted + 1)):
            raise WorkError(f"{self._where}: the hub's addresses do not cover the file", hint="try again later")
        parts, urls = [], {int(key): value for key, value in header.items() if key.isascii() and key.isdecimal()}
        for number in numbers:
            begin = (number - 1) * length
            tag = self._part(storage_address(str(urls[number])), begin, min(begin + length, sent.size))
            if not tag:
                raise WorkError(f"{self._where}: storage does not confirm part {number:,}", hint="try again later")
            parts.append({"partNumber": number, "etag": tag})
        asked = {"oid": sent.sha256, "parts": parts}
        insist(
            self._where,
            self._writer.stopped,
            lambda: _checked(posted(href, data=msgspec.json.encode(asked), kind=_KIND)),
        )

    def _part(self, url: str, begin: int, end: int) -> str:
        """Send the bytes [begin, end) to one address; return the entity tag in the answer."""
        response = insist(self._where, self._writer.stopped, lambda: self._put(url, begin, end))
        return str(response.headers.get("etag", ""))

    def _put(self, url: str, begin: int, end: int) -> httpx2.Response:
        told = _Told(self._upload.report)
        headers = {"User-Agent": request_headers()["user-agent"], "Content-Length": str(end - begin)}
        body = _bytes_of(self._upload.path, begin, end, told, self._writer.stopped)
        try:
            response = _checked(
                get_session().put(url, content=body, headers=headers, timeout=PATIENCE, follow_redirects=False)
            )
        except BaseException:
            told.take_back()
            raise
        told.fill(end - begin)
        self.done += end - begin
        return response


class _Told:
    """Counts the bytes of one request, so that those of a failed one can be taken back."""

    def __init__(self, report: Report) -> None:
        self._report, self._nbytes = report, 0

    def add(self, nbytes: int) -> None:
        """Report these bytes."""
        self._nbytes += nbytes
        self._report(nbytes)

    def take_back(self) -> None:
        """Report that none of them arrived."""
        self._report(-self._nbytes)

    def fill(self, total: int) -> None:
        """Report the rest."""
        if total != self._nbytes:
            self._report(total - self._nbytes)


def _bytes_of(path: Path, begin: int, end: int, told: _Told, stopped: Event) -> Iterator[bytes]:
    """The bytes [begin, end) of a file in chunks, until the run ends."""
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(begin)
            while begin < end:
                refuse_stopped(stopped)
                chunk = file.read(min(CHUNK, end - begin))
                if not chunk:
                    raise WorkError(f"{path}: became shorter while it was sent", hint="run the same command again")
                begin += len(chunk)
                yield chunk
                told.add(len(chunk))
    except OSError as error:
        raise refusal(path, error, WorkError) from None


def _checked(response: httpx2.Response) -> httpx2.Response:
    """An answer of storage, if it is a success.

    Raises:
        _Expired: the address is not, or no longer, accepted. HfHubHTTPError: a different failure.
    """
    if response.status_code in (301, 302, 307, 308, 400, 401, 403, 404, 410):
        raise _Expired(f"storage refuses the upload ({response.status_code})")
    hf_raise_for_status(response)
    return response
