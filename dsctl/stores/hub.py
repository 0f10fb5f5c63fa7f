"""A repository on a hub, pinned to one commit: headers and tensors are read by range, nothing else is downloaded.

Endpoint, token, cache and offline mode are huggingface_hub's own (HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE).
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlsplit

from dsctl.errors import SourceError
from dsctl.header import read_head
from dsctl.stores.local import LocalFolder
from dsctl.version import __version__

if TYPE_CHECKING:
    from dsctl.stores.hub_requests import Listed

SCHEME = "hf://"
# The headers of V3's files are about 75 kB; a second request reads what is missing of a longer one.
FIRST_READ = 128 << 10
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

    @classmethod
    def at(cls, text: str) -> HubRepository | LocalFolder:
        """The repository that `[hf://]org/name[@revision]` names; its snapshot in the cache when offline.

        Raises:
            SourceError: no such repository or revision, no access, or the hub cannot be reached.
        """
        from huggingface_hub import HfApi, constants

        from dsctl.stores.hub_requests import persist, tree

        # Its warnings name signed addresses; what matters of them is told in our own errors.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        repository, revision = split(text)
        if constants.is_offline_mode():
            return LocalFolder.at(cached_snapshot(repository, revision))
        api, where = HfApi(library_name="dsctl", library_version=__version__), f"{repository}@{revision}"
        timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
        commit = persist(where, lambda: api.model_info(repository, revision=revision, timeout=timeout)).sha
        if not commit:
            raise SourceError(f"{where}: the hub names no commit")
        return cls(repository, commit, constants.ENDPOINT, persist(where, lambda: tree(repository, commit)))

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
        from dsctl.stores.hub_requests import Range, RangesIgnored, fill

        size, where = self._size(file), f"{self.place}/{file}"
        if begin + len(buffer) > size:
            raise SourceError(f"{where}: file ends at byte {size:,}, expected more")
        local = self._cached(file)
        if local is None:
            url = f"{self.endpoint}/{self.repository}/resolve/{self.commit}/{quote(file)}"
            try:
                fill(Range(url, begin, size, self.commit, where), buffer)
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

    def fetch(self, file: str, folder: str | None = None, anew: bool = False) -> str:
        """Download a whole file into a folder, or into the hub's cache, and give its path; resumed where begun.

        Raises:
            SourceError: it cannot be had.
        """
        from huggingface_hub import hf_hub_download

        from dsctl.stores.hub_requests import persist, spoils

        spoilt = anew

        def download() -> str:
            nonlocal spoilt
            try:
                return attempt()
            except OSError as error:
                spoilt = spoilt or spoils(error)
                raise

        def attempt() -> str:
            return str(
                hf_hub_download(
                    self.repository, file, revision=self.commit, local_dir=folder, force_download=spoilt,
                    endpoint=self.endpoint, library_name="dsctl", library_version=__version__,
                )
            )  # fmt: skip

        return persist(f"{self.place}/{file}", download)

    def snapshot(self) -> Path:
        """Where the hub's cache keeps this commit, whether it does so already or not."""
        from huggingface_hub import constants

        folder = f"models--{self.repository.replace('/', '--')}"
        return Path(constants.HF_HUB_CACHE) / folder / "snapshots" / self.commit

    def _download(self, file: str) -> LocalFolder:
        self.fetch(file)
        local = self._cached(file)
        if local is None:
            raise SourceError(f"{self.place}/{file}: the hub sends another size than it listed")
        return local

    def _kept(self, name: str) -> Path:
        """Where small things read from this commit are kept, in the place that huggingface_hub keeps for libraries."""
        from huggingface_hub import cached_assets_path

        host = urlsplit(self.endpoint).netloc.replace(":", "-")
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


def show_progress(shown: bool) -> None:
    """Let huggingface_hub draw its progress bars, or not."""
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
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(library_name="dsctl", library_version=__version__)
    token = get_token() is not None
    if constants.is_offline_mode():
        return Reached(api.endpoint, False, "HF_HUB_OFFLINE is set", token)
    try:
        api.model_info("deepseek-ai/DeepSeek-V3.2", timeout=seconds)
    except HfHubHTTPError as error:
        # An answer is an answer, whatever it says.
        return Reached(api.endpoint, error.response is not None, "", token)
    except Exception as error:  # noqa: BLE001  the client raises what its transport does
        return Reached(api.endpoint, False, type(error).__name__, token)
    return Reached(api.endpoint, True, "", token)
