"""A hub's listing of a repository: the commit of a revision, and every file of that commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urljoin

import msgspec
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_session, hf_raise_for_status  # type: ignore[attr-defined]  # exported lazily

from dsctl.core.errors import SourceError
from dsctl.core.file_names import problem_of
from dsctl.stores.hub_entries import HubFile
from dsctl.stores.hub_faults import Doubtful
from dsctl.stores.hub_guard import request_headers
from dsctl.version import __version__

# The hub sends a thousand files a page.
MOST_PAGES = 1000
# SHA-256 in hexadecimal; git's usual SHA-1 is shorter.
LONGEST_COMMIT = 64


class _Lfs(msgspec.Struct):
    oid: str
    size: int


class _ListedEntry(msgspec.Struct):
    type: str
    path: str
    size: int = 0
    oid: str | None = None
    lfs: _Lfs | None = None


def commit_of(repository: str, revision: str) -> str:
    """The commit of a branch, a tag or a commit's own name.

    Raises:
        Doubtful: the answer has no commit.
    """
    api, timeout = HfApi(library_name="dsctl", library_version=__version__), constants.HF_HUB_DOWNLOAD_TIMEOUT
    try:
        commit = api.model_info(repository, revision=revision, timeout=timeout).sha or ""
    except HFValidationError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Doubtful(f"the hub's answer is not valid: {type(error).__name__}") from None
    if not (commit.isascii() and commit.isalnum() and len(commit) <= LONGEST_COMMIT):
        raise Doubtful("the hub's answer has no commit")
    return commit


def tree(repository: str, commit: str) -> tuple[HubFile, ...]:
    """Every file of a commit, by name.

    Raises:
        SourceError: a name leads out of the repository.
        Doubtful: the answer is not a listing.
    """
    where = f"{repository}@{commit[:12]}"
    url = f"{constants.ENDPOINT}/api/models/{repository}/tree/{commit}?recursive=true&expand=false"
    try:
        answer = [entry for page in pages(url, where) for entry in page]
        entries = [entry for entry in msgspec.convert(answer, list[_ListedEntry]) if entry.type == "file"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Doubtful(f"the hub's listing is not valid: {error}".splitlines()[0]) from None
    for entry in entries:
        if entry.size < 0 or (entry.lfs and entry.lfs.size < 0):
            raise SourceError(f"{where}: {entry.path} is listed with an impossible size")
    refuse_names([entry.path for entry in entries], where)
    return tuple(sorted(map(_listed, entries)))


def _listed(entry: _ListedEntry) -> HubFile:
    if entry.lfs is None:
        return HubFile(entry.path, entry.size, None, entry.oid)
    return HubFile(entry.path, entry.lfs.size, entry.lfs.oid.removeprefix("sha256:"), entry.oid)


def pages(url: str, where: str) -> Iterator[list[Any]]:
    """The pages of a listing; each page has the address of the next.

    Raises:
        SourceError: the listing does not end, or a page has a different origin.
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
    """Refuse a listing whose files cannot be written below a folder, or would overwrite records there.

    Raises:
        SourceError: the message spells out the first such name.
    """
    if problem := problem_of(names):
        raise SourceError(f"{where}: {problem}", hint=_REFUSED)


_REFUSED = "nothing was read or written: report this to the owner of the repository or hub"
