"""A repository on a hub, pinned to one commit: headers and tensors are read by range, nothing else is downloaded.

Endpoint, token, cache and offline mode are huggingface_hub's own (HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit

from dsctl.core.errors import SourceError
from dsctl.core.header import read_head
from dsctl.stores.hub_entries import HubFile, HubRange, OpenedCommit, Reached, WantedFile
from dsctl.stores.local import LocalFolder
from dsctl.stores.objects import shown

SCHEME = "hf://"
ENDPOINT = "HF_ENDPOINT"
# The folder in which a repository keeps the record of a run that is not finished.
UNFINISHED = ".dsctl-run"
# The headers of V3's files have about 75 kB; a second request reads the rest of a longer one. All first reads together
# should stay below 2 % of the smallest usual request, the indexers of V3.2.
FIRST_READ = 80 << 10
MAX_CACHED_JSON = 64 << 20


def is_repository(text: str) -> bool:
    """Whether a text has the form of `org/name`, `org/name@revision` or `hf://...`."""
    if text.startswith(SCHEME):
        return True
    repository = text.partition("@")[0]
    parts = repository.split("/")
    return len(parts) == 2 and all(part and part.strip(".~") == part and part.isascii() for part in parts)


def split(text: str) -> tuple[str, str]:
    """Repository and revision (default: `main`) of `[hf://]org/name[@revision]`."""
    repository, _, revision = text.removeprefix(SCHEME).partition("@")
    return repository.strip("/"), revision or "main"


@dataclass(frozen=True, slots=True)
class HubRepository:
    """One commit of a repository and its listing. Files in the hub's cache are read from there."""

    repository: str
    commit: str
    endpoint: str
    listing: tuple[HubFile, ...]
    # The requested branch or tag.
    named: str = ""

    @classmethod
    def at(cls, text: str) -> HubRepository | LocalFolder:
        """The repository that `[hf://]org/name[@revision]` names; its snapshot in the cache when offline.

        Raises:
            SourceError: the repository or revision does not exist or is not finished, access is denied, or the hub
                cannot be reached.
        """
        check_settings()
        repository, revision = split(text)
        found = _client().opened(repository, revision, text.removeprefix(SCHEME))
        if isinstance(found, str):
            return LocalFolder.at(found)
        if any(listed.name.startswith(f"{UNFINISHED}/") for listed in found.listing):
            what = "is not finished: a run of dsctl writes it, or was interrupted"
            raise SourceError(f"{text.removeprefix(SCHEME)}: {what}", hint="run the same command again to finish it")
        return cls(repository, found.commit, found.endpoint, found.listing, revision)

    @property
    def place(self) -> str:
        return f"{self.repository}@{self.commit[:12]}"

    @property
    def remote(self) -> bool:
        return True

    @property
    def revision(self) -> str:
        return self.commit

    def files(self) -> dict[str, int]:
        return {listed.name: listed.size for listed in self.listing}

    def head(self, file: str, size: int) -> bytes:
        kept = self._kept(f"{file}.header")
        known = _load(kept)
        if known is None:
            known = read_head(lambda begin, end: self.read(file, begin, end), file, size, FIRST_READ)
            _save(kept, known)
        return known

    def read(self, file: str, begin: int, end: int) -> bytes:
        whole_json = file.endswith(".json") and begin == 0 and end == self._listed(file).size <= MAX_CACHED_JSON
        kept = self._kept(file)
        known = _load(kept) if whole_json else None
        if known is not None and len(known) == end:
            return known
        buffer = bytearray(end - begin)
        self.read_into(file, begin, memoryview(buffer))
        if whole_json:
            _save(kept, buffer)
        return bytes(buffer)

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
        wanted = self._range(file, begin)
        if begin + len(buffer) > wanted.size:
            raise SourceError(f"{wanted.where}: file ends at byte {wanted.size:,}, expected more")
        local = self._cached(file)
        if local is None:
            if _client().fill(wanted, buffer):
                return
            local = self._download(file)
        local.read_into(file, begin, buffer)

    def _listed(self, file: str) -> HubFile:
        for listed in self.listing:
            if listed.name == file:
                return listed
        raise SourceError(f"{self.place}: no file {file}")

    def cached(self, file: str) -> bool:
        """Whether the hub's cache holds the complete file."""
        return self._cached(file) is not None

    def _cached(self, file: str) -> LocalFolder | None:
        """The snapshot in the hub's cache, if it holds the complete file."""
        folder = _client().cached(self.repository, self.commit, self._listed(file))
        return None if folder is None else LocalFolder(folder)

    def fetch(
        self, file: str, folder: Path | None = None, anew: bool = False, going: Callable[[], bool] = lambda: True
    ) -> Path:
        """Download a whole file into a folder, or into the hub's cache, and give its path; resumed where begun.

        Raises:
            SourceError: it cannot be downloaded. WorkError: it cannot be written. Interrupted: `going` returns false.
        """
        wanted = WantedFile(self.repository, self.named or self.commit, file, self.endpoint, self._range(file, 0))
        return _client().fetch(wanted, folder, anew, going)

    def snapshot(self) -> Path:
        """The folder in which the hub's cache keeps this commit; it may not exist yet."""
        return _client().snapshot(self.repository, self.commit)

    def _range(self, file: str, begin: int) -> HubRange:
        """A file's bytes from `begin` on."""
        url = f"{self.endpoint}/{self.repository}/resolve/{self.commit}/{quote(file)}"
        return HubRange(url, begin, self._listed(file).size, self.commit, f"{self.place}/{file}")

    def _download(self, file: str) -> LocalFolder:
        self.fetch(file)
        local = self._cached(file)
        if local is None:
            raise SourceError(f"{self.place}/{file}: the hub sent a different size than it listed")
        return local

    def _kept(self, name: str) -> Path:
        """The folder for small files of this commit, in the place that huggingface_hub reserves for libraries."""
        host = urlsplit(shown(self.endpoint)).netloc.replace(":", "-")
        owner = f"{host}--{self.repository.replace('/', '--')}"
        return _client().assets(owner, self.commit) / name.replace("/", "--")


class HubClient(Protocol):
    """The module `dsctl.stores.hub_client`, loaded on first use because the hub's library is slow to import."""

    def opened(self, repository: str, revision: str, where: str) -> OpenedCommit | str: ...

    def fill(self, wanted: HubRange, buffer: memoryview) -> bool: ...

    def cached(self, repository: str, commit: str, listed: HubFile) -> str | None: ...

    def fetch(self, wanted: WantedFile, folder: Path | None, anew: bool, going: Callable[[], bool]) -> Path: ...

    def snapshot(self, repository: str, commit: str) -> Path: ...

    def assets(self, owner: str, commit: str) -> Path: ...

    def show_progress(self, shown: bool) -> None: ...

    def reach(self, seconds: float) -> Reached: ...


def _client() -> HubClient:
    from dsctl.stores import hub_client

    return hub_client


def check_settings() -> None:
    """Refuse settings with which huggingface_hub cannot be imported or cannot reach a hub.

    Raises:
        SourceError: HF_ENDPOINT is not an address, or huggingface_hub refuses a different variable of its own.
    """
    address = os.environ.get(ENDPOINT)
    if address is not None and not _is_address(address):
        hint = "write it as https://huggingface.co or http://localhost:8090"
        raise SourceError(f"{ENDPOINT}: {shown(address)!r} is not a hub's address", hint=hint)
    try:
        import huggingface_hub.constants  # noqa: F401  reads the environment
    except ValueError as error:
        hint = "check the environment variables that begin with HF_"
        raise SourceError(f"huggingface_hub refuses its settings: {error}", hint=hint) from None


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def show_progress(shown: bool) -> None:
    """Turn huggingface_hub's progress bars on or off."""
    check_settings()
    _client().show_progress(shown)


def _load(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _save(path: Path, data: bytes | bytearray) -> None:
    """Keep the bytes if possible; if not, a later command reads them again."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, path)


def reach(seconds: float = 5.0) -> Reached:
    """Ask the hub for a trivial answer. A failure is a result here, not an error."""
    try:
        check_settings()
    except SourceError as error:
        return Reached(shown(os.environ.get(ENDPOINT, "")), False, error.message, False)
    return _client().reach(seconds)
