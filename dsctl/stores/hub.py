"""A repository on a hub, pinned to one commit: headers and tensors are read by range, nothing else is downloaded.

Endpoint, token, cache and offline mode are huggingface_hub's own (HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

from dsctl.core.errors import SourceError
from dsctl.core.header import read_head
from dsctl.stores.local import LocalFolder
from dsctl.stores.objects import shown
from dsctl.version import __version__

if TYPE_CHECKING:
    from dsctl.stores.hub_requests import Listed, Range

SCHEME = "hf://"
ENDPOINT = "HF_ENDPOINT"
# The headers of V3's files are about 75 kB; a second request reads what is missing of a longer one. All of them
# together are to stay below 2 % of what is least often asked for, the indexers of V3.2.
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
    """Repository and revision (`main` where none is given) of `[hf://]org/name[@revision]`."""
    repository, _, revision = text.removeprefix(SCHEME).partition("@")
    return repository.strip("/"), revision or "main"


@dataclass(frozen=True, slots=True)
class HubRepository:
    """One commit of a repository and its listing. Files that the hub's cache holds are read from there."""

    repository: str
    commit: str
    endpoint: str
    listing: tuple[Listed, ...]
    # The branch or tag that was asked for.
    named: str = ""

    @classmethod
    def at(cls, text: str) -> HubRepository | LocalFolder:
        """The repository that `[hf://]org/name[@revision]` names; its snapshot in the cache when offline.

        Raises:
            SourceError: no such repository or revision, no access, or the hub cannot be reached.
        """
        check_settings()
        from huggingface_hub import constants

        from dsctl.stores.hub_requests import commit_of, persist, tree

        # Its warnings name signed addresses; what matters of them is told in our own errors.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        repository, revision = split(text)
        if constants.is_offline_mode():
            return LocalFolder.at(cached_snapshot(repository, revision))
        where = text.removeprefix(SCHEME)
        commit = persist(where, lambda: commit_of(repository, revision))
        listing = persist(where, lambda: tree(repository, commit))
        return cls(repository, commit, constants.ENDPOINT, listing, revision)

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
        whole_json = file.endswith(".json") and begin == 0 and end == self._size(file) <= MAX_CACHED_JSON
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
        from dsctl.stores.hub_requests import RangesIgnored, fill

        wanted = self._range(file, begin)
        if begin + len(buffer) > wanted.size:
            raise SourceError(f"{wanted.where}: file ends at byte {wanted.size:,}, expected more")
        local = self._cached(file)
        if local is None:
            try:
                fill(wanted, buffer)
            except RangesIgnored:
                local = self._download(file)
        if local is not None:
            local.read_into(file, begin, buffer)

    def _size(self, file: str) -> int:
        for listed in self.listing:
            if listed.name == file:
                return listed.size
        raise SourceError(f"{self.place}: no file {file}")

    def cached(self, file: str) -> bool:
        """Whether the hub's cache holds a file in full."""
        return self._cached(file) is not None

    def _cached(self, file: str) -> LocalFolder | None:
        """The snapshot in the hub's cache, where it holds this file in full."""
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.repository, file, revision=self.commit)
        if not isinstance(path, str) or os.stat(path).st_size != self._size(file):
            return None
        return LocalFolder(path.removesuffix("/" + file))

    def fetch(
        self, file: str, folder: Path | None = None, anew: bool = False, going: Callable[[], bool] = lambda: True
    ) -> Path:
        """Download a whole file into a folder, or into the hub's cache, and give its path; resumed where begun.

        Raises:
            SourceError: it cannot be had. WorkError: it cannot be written. Interrupted: `going` says no more.
        """
        from dsctl.stores.hub_files import Wanted, fetch

        return fetch(
            Wanted(self.repository, self.named or self.commit, file, self.endpoint, self._range(file, 0)),
            folder,
            anew,
            going,
        )

    def snapshot(self) -> Path:
        """Where the hub's cache keeps this commit, whether it does so already or not."""
        from dsctl.stores.hub_files import cache_of

        return cache_of(self.repository) / "snapshots" / self.commit

    def _range(self, file: str, begin: int) -> Range:
        """A file's bytes from `begin` on."""
        from dsctl.stores.hub_requests import Range

        url = f"{self.endpoint}/{self.repository}/resolve/{self.commit}/{quote(file)}"
        return Range(url, begin, self._size(file), self.commit, f"{self.place}/{file}")

    def _download(self, file: str) -> LocalFolder:
        self.fetch(file)
        local = self._cached(file)
        if local is None:
            raise SourceError(f"{self.place}/{file}: the hub sends another size than it listed")
        return local

    def _kept(self, name: str) -> Path:
        """Where small things read from this commit are kept, in the place that huggingface_hub keeps for libraries."""
        from huggingface_hub import cached_assets_path

        host = urlsplit(shown(self.endpoint)).netloc.replace(":", "-")
        owner = f"{host}--{self.repository.replace('/', '--')}"
        return cached_assets_path("dsctl", namespace=owner, subfolder=self.commit) / name.replace("/", "--")


def cached_snapshot(repository: str, revision: str) -> str:
    """The folder of a snapshot in the hub's cache; nothing is downloaded.

    Raises:
        SourceError: it is not there.
    """
    from huggingface_hub import snapshot_download

    from dsctl.stores.hub_requests import persist

    def look() -> str:
        return snapshot_download(repository, revision=revision, local_files_only=True)

    return persist(f"{repository}@{revision}", look)


def check_settings() -> None:
    """Refuse settings with which huggingface_hub cannot even be imported, or could reach nothing.

    Raises:
        SourceError: HF_ENDPOINT is not an address, or another variable of huggingface_hub's is not what it takes.
    """
    address = os.environ.get(ENDPOINT)
    if address is not None and not _is_address(address):
        hint = "write it as https://huggingface.co or http://localhost:8090"
        raise SourceError(f"{ENDPOINT}: {shown(address)!r} is not the address of a hub", hint=hint)
    try:
        import huggingface_hub.constants  # noqa: F401  reads the environment
    except ValueError as error:
        hint = "check the variables of the environment that begin with HF_"
        raise SourceError(f"huggingface_hub does not take its settings: {error}", hint=hint) from None


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def show_progress(shown: bool) -> None:
    """Let huggingface_hub draw its progress bars, or not."""
    check_settings()
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars  # type: ignore[attr-defined]

    (enable_progress_bars if shown else disable_progress_bars)()


def _load(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _save(path: Path, data: bytes | bytearray) -> None:
    """Keep what was read, if that is possible: a later command reads it again where it is not."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.replace(name, path)


class Reached(NamedTuple):
    """Whether the hub answers: its address, why it does not, and whether a token is at hand."""

    endpoint: str
    reached: bool
    why: str
    token: bool


def reach(seconds: float = 5.0) -> Reached:
    """Ask the hub for anything at all. Nothing that is wrong with it is an error here."""
    try:
        check_settings()
    except SourceError as error:
        return Reached(shown(os.environ.get(ENDPOINT, "")), False, error.message, False)
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    from dsctl.stores.hub_requests import guard

    api = HfApi(library_name="dsctl", library_version=__version__)
    token = get_token() is not None
    if constants.is_offline_mode():
        return Reached(shown(api.endpoint), False, "HF_HUB_OFFLINE is set", token)
    try:
        guard()
        api.model_info("deepseek-ai/DeepSeek-V3.2", timeout=seconds)
    except HfHubHTTPError as error:
        # An answer is an answer, whatever it says.
        return Reached(shown(api.endpoint), error.response is not None, "", token)
    except SourceError as error:
        return Reached(shown(api.endpoint), False, error.message, token)
    except Exception as error:  # noqa: BLE001  the client raises what its transport does
        return Reached(shown(api.endpoint), False, type(error).__name__, token)
    return Reached(shown(api.endpoint), True, "", token)
