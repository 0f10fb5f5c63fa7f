"""The part of `dsctl.stores.repositories` that uses huggingface_hub, so it loads late."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Sequence
from urllib.parse import quote

import msgspec
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from dsctl.core.errors import SourceError, WorkError
from dsctl.core.visible import shortened
from dsctl.stores import hub_requests, repository_commits, repository_lfs, repository_xet
from dsctl.stores.hub_entries import HubFile, HubRange
from dsctl.stores.hub_faults import Doubtful
from dsctl.stores.hub_listing import LONGEST_COMMIT, pages, tree
from dsctl.stores.repositories import (
    MAIN,
    Commit,
    Head,
    RepositoryState,
    RepositoryWriter,
    Sent,
    Sorting,
    Unsorted,
    Upload,
)
from dsctl.stores.repository_requests import api, insist, post, until_stopped, valid
from dsctl.version import __version__

# Files in one question about how to store them (a limit of the hub's), and the largest file that `read` reads.
SORTED_AT_ONCE = 256
MOST_READ = 64 << 20


class _Sorted(msgspec.Struct):
    path: str
    uploadMode: str  # noqa: N815  the hub's name
    shouldIgnore: bool = False  # noqa: N815


class _Sortings(msgspec.Struct):
    files: list[_Sorted]


class _Message(msgspec.Struct):
    message: str = ""


class _Card(msgspec.Struct):
    errors: list[_Message] = []
    warnings: list[_Message] = []


def look(writer: RepositoryWriter) -> RepositoryState:
    """As `RepositoryWriter.look`."""
    return until_stopped(writer.stopped, lambda: _look(writer))


def _look(writer: RepositoryWriter) -> RepositoryState:
    # Warnings of huggingface_hub contain addresses with signatures; our own errors report the causes.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    name = writer.name
    private, commit = insist(writer.place, writer.stopped, lambda: _found(writer, name.branch))
    if private is not None and not commit:
        private, _ = insist(writer.place, writer.stopped, lambda: _found(writer, None))
    if private is None or not commit:
        return RepositoryState(private, None)
    return RepositoryState(private, Head(commit, insist(writer.place, writer.stopped, lambda: _tree(writer, commit))))


def _tree(writer: RepositoryWriter, commit: str) -> tuple[HubFile, ...]:
    return tree(writer.name.repository, commit)


def _found(writer: RepositoryWriter, revision: str | None) -> tuple[bool | None, str]:
    """Whether the repository is private (None: it does not exist), and the revision's commit, if that exists."""
    client = HfApi(library_name="dsctl", library_version=__version__)
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    try:
        info = client.model_info(writer.name.repository, revision=revision, timeout=timeout)
    except RevisionNotFoundError:
        return False, ""
    except RepositoryNotFoundError:
        return None, ""
    except (LookupError, TypeError, AttributeError) as error:
        raise Doubtful(f"the hub's answer is not valid: {type(error).__name__}") from None
    commit = info.sha or ""
    if not (commit.isascii() and commit.isalnum() and len(commit) <= LONGEST_COMMIT):
        raise Doubtful("the hub's answer has no commit")
    return bool(info.private), commit


def create(writer: RepositoryWriter, private: bool) -> Head:
    """As `RepositoryWriter.create`."""
    return until_stopped(writer.stopped, lambda: _create(writer, private))


def _create(writer: RepositoryWriter, private: bool) -> Head:
    state, place, branch = _look(writer), writer.place, writer.name.branch
    existed = state.exists
    if not existed:
        insist(place, writer.stopped, lambda: _create_repository(writer, private))
        state = _look(writer)
    if state.head is None and branch.startswith("refs/"):
        what = f"{place}: there is no such pull request"
        raise WorkError(what, hint="open it on the hub first, or write to a branch")
    if state.head is None and state.exists and branch != MAIN:
        insist(place, writer.stopped, lambda: _create_branch(writer))
        state = _look(writer)
    if state.head is None:
        raise WorkError(f"{place}: was created, but the hub does not show it", hint="try again later")
    if not existed and private and not state.private:
        what = f"{place}: the hub created a public repository, a private one was asked for"
        raise WorkError(what, hint="change it in the settings of the repository, then run the same command again")
    return state.head


def _create_repository(writer: RepositoryWriter, private: bool) -> None:
    owner, _, name = writer.name.repository.partition("/")
    asked = {"name": name, "organization": owner, "type": "model", "visibility": "private" if private else "public"}
    _unless_exists(f"{constants.ENDPOINT}/api/repos/create", asked)


def _create_branch(writer: RepositoryWriter) -> None:
    """Let the branch begin at the first commit: it shall not have the files that `main` has now."""
    url = api(writer.name, "commits", MAIN)
    try:
        *_, oldest = [str(commit["id"]) for page in pages(url, writer.place) for commit in page]
    except (ValueError, LookupError, TypeError) as error:
        raise Doubtful(f"the hub's list of commits is not valid: {type(error).__name__}") from None
    _unless_exists(api(writer.name, "branch", writer.name.branch), {"startingPoint": oldest})


def _unless_exists(url: str, asked: dict[str, str]) -> None:
    try:
        post(url, json=asked)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise


def check_card(writer: RepositoryWriter, text: str) -> list[str]:
    """As `RepositoryWriter.check_card`."""
    asked, where = {"content": text, "repoType": "model"}, f"{writer.place}/README.md"

    def ask() -> _Card:
        try:
            return valid(post(f"{constants.ENDPOINT}/api/validate-yaml", json=asked), _Card)
        except HfHubHTTPError as error:
            if error.response.status_code != 400:
                raise
            return valid(error.response, _Card)

    card = until_stopped(writer.stopped, lambda: insist(where, writer.stopped, ask))
    if card.errors:
        said = "; ".join(shortened(" ".join(one.message.split()), 200) for one in card.errors[:3])
        raise WorkError(f"{where}: the hub refuses its front matter: {said}", hint="correct the lines between the ---")
    return [shortened(" ".join(one.message.split()), 200) for one in card.warnings]


def read(writer: RepositoryWriter, name: str, head: Head) -> bytes | None:
    """As `RepositoryWriter.read`."""
    listed, where = head.files.get(name), f"{writer.place}/{name}"
    if listed is None:
        return None
    if listed.size > MOST_READ:
        raise WorkError(f"{where}: has {listed.size:,} bytes, which is too large for such a file")
    url = f"{constants.ENDPOINT}/{writer.name.repository}/resolve/{head.commit}/{quote(name)}"
    data = bytearray(listed.size)
    wanted = HubRange(url, 0, listed.size, head.commit, where)

    def fill() -> None:
        if data:
            hub_requests.fill(wanted, memoryview(data))

    try:
        until_stopped(writer.stopped, fill)
    except SourceError as error:
        raise WorkError(error.message, hint=error.hint) from None
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    if (listed.sha256 or listed.blob) not in (None, hashlib.sha256(data).hexdigest() if listed.sha256 else git):
        raise WorkError(f"{where}: the hub sends different bytes than it lists", hint="try again later")
    return bytes(data)


def sort(writer: RepositoryWriter, files: Sequence[Unsorted], gitignore: str | None) -> dict[str, Sorting]:
    """As `RepositoryWriter.sort`."""
    return until_stopped(writer.stopped, lambda: _sort(writer, files, gitignore))


def _sort(writer: RepositoryWriter, files: Sequence[Unsorted], gitignore: str | None) -> dict[str, Sorting]:
    found: dict[str, Sorting] = {}
    rules = {} if gitignore is None else {"gitIgnore": gitignore}
    for begin in range(0, len(files), SORTED_AT_ONCE):
        batch = files[begin : begin + SORTED_AT_ONCE]
        asked = [{"path": one.name, "size": one.size, "sample": base64.b64encode(one.sample).decode()} for one in batch]
        found |= insist(writer.place, writer.stopped, lambda asked=asked: _sorted(writer, asked, rules))  # type: ignore[misc]
    return found


def _sorted(writer: RepositoryWriter, asked: list[dict[str, str | int]], rules: dict[str, str]) -> dict[str, Sorting]:
    question = {"files": asked} | rules
    answer = valid(post(api(writer.name, "preupload", writer.name.branch), json=question), _Sortings)
    said = {one.path: one for one in answer.files}
    found = {}
    for file in asked:
        one = said.get(str(file["path"]))
        if one is None or one.uploadMode not in ("lfs", "regular"):
            raise Doubtful(f"the hub does not say how to store {file['path']}")
        # The storage of LFS files does not take an empty one.
        found[one.path] = Sorting(one.uploadMode == "lfs" and file["size"] != 0, one.shouldIgnore)
    return found


def send(writer: RepositoryWriter, upload: Upload) -> Sent:
    """As `RepositoryWriter.send`."""
    return until_stopped(writer.stopped, lambda: _send(writer, upload))


def _send(writer: RepositoryWriter, upload: Upload) -> Sent:
    storage = repository_xet.storage(writer)
    if storage is None:
        return repository_lfs.send(writer, upload)
    return repository_xet.send(writer, upload)


def commit(writer: RepositoryWriter, commit: Commit, parent: Head) -> Head:
    """As `RepositoryWriter.commit`."""

    def newest() -> Head | None:
        return _look(writer).head

    return until_stopped(writer.stopped, lambda: repository_commits.commit(writer, commit, parent, newest))
