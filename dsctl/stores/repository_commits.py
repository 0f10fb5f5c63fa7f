"""One commit to a branch of a hub, made once however often its answer is lost."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import msgspec
from huggingface_hub.errors import HfHubHTTPError

from dsctl.core.errors import ResumeError, WorkError
from dsctl.stores import ATTRIBUTES
from dsctl.stores.hub_entries import HubFile
from dsctl.stores.hub_faults import FAULTS, Doubtful
from dsctl.stores.hub_listing import LONGEST_COMMIT
from dsctl.stores.repositories import Commit, Content, Head, RepositoryWriter, Sent
from dsctl.stores.repository_requests import api, await_next, post, refuse_stopped, valid

# The branch is not where it was (412), or is being changed (409).
_MOVED = (409, 412)


class _Made(msgspec.Struct):
    commitOid: str  # noqa: N815  the hub's name


def commit(writer: RepositoryWriter, commit: Commit, parent: Head, newest: Callable[[], Head | None]) -> Head:
    """Make a commit on top of `parent`; `newest` asks the hub for the newest one.

    The hub refuses a commit whose parent is not the newest one, so that of two requests for it at most one succeeds.

    Raises:
        ResumeError: somebody else committed in the meantime. WorkError: the hub refuses or cannot be reached.
    """
    made, data = expected(commit, parent), b"".join(_lines(commit, parent.commit))
    for attempt in count(1):
        refuse_stopped(writer.stopped)
        try:
            return Head(_post(writer, data), made)
        except (*FAULTS, Doubtful) as error:
            failed: WorkError | None = None
            try:
                await_next(writer.place, _as_doubtful(error), attempt)
            except WorkError as final:
                failed = final
            if failed is not None and not _is_unknown(error):
                raise failed from None
            now = newest()
            if now is None:
                raise WorkError(f"{writer.place}: the hub does not show it any more", hint="check it") from None
            if now.commit != parent.commit:
                return _ours(writer, now, made, commit)
            if failed is not None:
                raise failed from None
    raise AssertionError("unreachable")


def _post(writer: RepositoryWriter, data: bytes) -> str:
    url = api(writer.name, "commit", writer.name.branch)
    made = valid(post(url, data=data, kind="application/x-ndjson"), _Made).commitOid
    if not (made.isascii() and made.isalnum() and len(made) <= LONGEST_COMMIT):
        raise Doubtful("the hub's answer has no commit")
    return made


def _is_unknown(error: Exception) -> bool:
    """Whether the commit may have been made in spite of this failure."""
    if not isinstance(error, HfHubHTTPError):
        return True
    return error.response.status_code >= 500 or error.response.status_code in (408, 429, *_MOVED)


def _as_doubtful(error: Exception) -> Exception:
    """A failure to find the branch as expected is looked into, not reported at once."""
    moved = isinstance(error, HfHubHTTPError) and error.response.status_code == 412
    return Doubtful("the hub says that the branch has changed (412)") if moved else error


def _ours(writer: RepositoryWriter, now: Head, made: tuple[HubFile, ...], commit: Commit) -> Head:
    """The newest commit, if its files are exactly those that this commit makes.

    Raises:
        ResumeError: they are not.
    """
    own = {one.name for one in commit.adds} | set(commit.removes)
    there, here = _contents(now.listing, own), _contents(made, own)
    if there == here:
        return now
    other = (name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    # Our own files are different too if our commit was not made.
    first = min(other, key=lambda name: (name in own, name))
    what = f"{writer.place}: somebody else committed to it in the meantime ({first} is different)"
    raise ResumeError(what, hint="let only one command write there, then run the same command again")


def _contents(listing: tuple[HubFile, ...], own: set[str]) -> dict[str, tuple[int, str | None]]:
    """Sizes and digests by name; without the file that the hub writes itself, if we did not."""
    return {
        one.name: (one.size, one.sha256 or one.blob) for one in listing if one.name in own or one.name != ATTRIBUTES
    }


def expected(commit: Commit, parent: Head) -> tuple[HubFile, ...]:
    """The listing after a commit."""
    files = parent.files
    for name in commit.removes:
        files.pop(name, None)
    for add in commit.adds:
        files[add.name] = _listed(add)
    return tuple(files[name] for name in sorted(files))


def _listed(add: Sent | Content) -> HubFile:
    if isinstance(add, Sent):
        return HubFile(add.name, add.size, add.sha256, None)
    return HubFile(add.name, len(add.data), None, git_digest(add.data))


def git_digest(data: bytes) -> str:
    """The SHA-1 by which git, and so a hub, knows a regular file (git-hash-object)."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _lines(commit: Commit, parent: str) -> Iterator[bytes]:
    """The request: one JSON object a line, as huggingface_hub writes them (`_commit_api._prepare_commit_payload`)."""
    said = {"summary": commit.message, "description": commit.description, "parentCommit": parent}
    yield _line("header", said)
    for name in commit.removes:
        yield _line("deletedFile", {"path": name})
    for add in commit.adds:
        if isinstance(add, Sent):
            yield _line("lfsFile", {"path": add.name, "algo": "sha256", "oid": add.sha256, "size": add.size})
        else:
            content = base64.b64encode(add.data).decode()
            yield _line("file", {"content": content, "path": add.name, "encoding": "base64"})


def _line(key: str, value: Any) -> bytes:
    return msgspec.json.encode({"key": key, "value": value}) + b"\n"
