"""The part of `dsctl.stores.hub` that uses huggingface_hub. It takes a third of a second to load, so it loads late."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import (
    HfApi,
    cached_assets_path,
    constants,
    get_token,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars  # type: ignore[attr-defined]

from dsctl.core.errors import SourceError
from dsctl.stores import hub_files, hub_requests
from dsctl.stores.hub_entries import HubFile, HubRange, OpenedCommit, Reached, WantedFile
from dsctl.stores.hub_faults import persist
from dsctl.stores.hub_guard import guard
from dsctl.stores.hub_listing import commit_of, tree
from dsctl.stores.objects import shown
from dsctl.version import __version__


def opened(repository: str, revision: str, where: str) -> OpenedCommit | str:
    """A revision's commit and its listing; when offline, the folder of its snapshot in the hub's cache.

    Raises:
        SourceError: the repository or revision does not exist or is not in the cache, access is denied, or the hub
            cannot be reached.
    """
    # Its warnings contain signed addresses; our own errors report the causes.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if constants.is_offline_mode():
        return _snapshot_here(repository, revision)
    commit = persist(where, lambda: commit_of(repository, revision))
    return OpenedCommit(commit, constants.ENDPOINT, persist(where, lambda: tree(repository, commit)))


def _snapshot_here(repository: str, revision: str) -> str:
    def look() -> str:
        return snapshot_download(repository, revision=revision, local_files_only=True)

    return persist(f"{repository}@{revision}", look)


def fill(wanted: HubRange, buffer: memoryview) -> bool:
    """Fill the buffer with a file's bytes; return False if the hub serves whole files only.

    Raises:
        SourceError: the bytes cannot be read, or the hub serves a different file than it listed.
    """
    try:
        hub_requests.fill(wanted, buffer)
    except hub_requests.RangesIgnored:
        return False
    return True


def cached(repository: str, commit: str, listed: HubFile) -> str | None:
    """The folder of the snapshot in the hub's cache, if it holds the complete file."""
    path = try_to_load_from_cache(repository, listed.name, revision=commit)
    if not isinstance(path, str) or os.stat(path).st_size != listed.size:
        return None
    return path.removesuffix("/" + listed.name)


def fetch(wanted: WantedFile, folder: Path | None, anew: bool, going: Callable[[], bool]) -> Path:
    """As `hub_files.fetch`."""
    return hub_files.fetch(wanted, folder, anew, going)


def snapshot(repository: str, commit: str) -> Path:
    """The folder in which the hub's cache keeps a commit; it may not exist yet."""
    return hub_files.cache_of(repository) / "snapshots" / commit


def assets(owner: str, commit: str) -> Path:
    """The folder in which huggingface_hub lets libraries keep small files of a commit."""
    return cached_assets_path("dsctl", namespace=owner, subfolder=commit)


def show_progress(shown: bool) -> None:
    """Turn huggingface_hub's progress bars on or off."""
    (enable_progress_bars if shown else disable_progress_bars)()


def reach(seconds: float) -> Reached:
    """Ask the hub for a trivial answer. A failure is a result here, not an error."""
    api = HfApi(library_name="dsctl", library_version=__version__)
    token = get_token() is not None
    if constants.is_offline_mode():
        return Reached(shown(api.endpoint), False, "HF_HUB_OFFLINE is set", token)
    try:
        guard()
        api.model_info("deepseek-ai/DeepSeek-V3.2", timeout=seconds)
    except HfHubHTTPError as error:
        # Any answer, even a refusal, shows that the hub can be reached.
        return Reached(shown(api.endpoint), error.response is not None, "", token)
    except SourceError as error:
        return Reached(shown(api.endpoint), False, error.message, token)
    except Exception as error:  # noqa: BLE001  the client raises what its transport does
        return Reached(shown(api.endpoint), False, type(error).__name__, token)
    return Reached(shown(api.endpoint), True, "", token)
