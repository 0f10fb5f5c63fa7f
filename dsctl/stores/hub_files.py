"""Whole files of a repository, stored where huggingface_hub stores them: in a folder or in its cache.

huggingface_hub places the files and keeps its records. Files that it would download by plain HTTP are downloaded here,
so that bytes that arrived before a failure, a stall or a kill stay on the disk. Xet is left to hf_xet.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, try_to_load_from_cache
from huggingface_hub._local_folder import get_local_download_paths, write_download_metadata
from huggingface_hub.file_download import HfFileMetadata, _cache_commit_hash_for_specific_revision, repo_folder_name
from huggingface_hub.utils import WeakFileLock, tqdm  # type: ignore[attr-defined]  # exported lazily
from huggingface_hub.utils._runtime import is_xet_available

from dsctl.core.errors import Interrupted
from dsctl.core.files import failure, open_own
from dsctl.stores.hub_entries import WantedFile
from dsctl.stores.hub_faults import Doubtful, persist, spoils
from dsctl.stores.hub_guard import request_headers
from dsctl.stores.hub_requests import arriving
from dsctl.version import __version__

Going = Callable[[], bool]


class _Paths(NamedTuple):
    """The path at which a file grows, its final path, and the lock held meanwhile."""

    partial: Path
    final: Path
    lock: Path


def cache_of(repository: str) -> Path:
    """The folder of a repository in the hub's cache."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def fetch(wanted: WantedFile, folder: Path | None, anew: bool, going: Going) -> Path:
    """Download a file into a folder, or into the hub's cache, and give its path.

    Raises:
        SourceError: it cannot be downloaded. WorkError: it cannot be written. Interrupted: it is no longer wanted.
    """
    try:
        return _fetch(wanted, folder, anew, going)
    except OSError as error:
        raise failure(folder or cache_of(wanted.repository), error) from None


def _fetch(wanted: WantedFile, folder: Path | None, anew: bool, going: Going) -> Path:
    if folder is None:
        # The reference lets offline commands find the commit. A read-only cache may still hold the file.
        with contextlib.suppress(OSError):
            _cache_commit_hash_for_specific_revision(str(cache_of(wanted.repository)), wanted.named, wanted.commit)
    there = None if anew else _there(wanted, folder)
    if there is not None:
        return there
    cached = try_to_load_from_cache(wanted.repository, wanted.file, revision=wanted.commit)
    known = persist(wanted.bytes.where, lambda: _metadata(wanted))
    if (isinstance(cached, str) and folder and not anew) or (known.xet_file_data is not None and is_xet_available()):
        return _by_hub(wanted, folder, anew)
    etag = str(known.etag)
    paths = _in_folder(folder, wanted.file, etag) if folder else _in_cache(wanted.repository, etag)
    with WeakFileLock(paths.lock):
        # A different process may have downloaded it meanwhile, or a different commit may have the same file.
        if anew or not _whole(paths.final, wanted):
            _grow(wanted, paths.partial, anew, going)
            os.replace(paths.partial, paths.final)
    if folder is not None:
        write_download_metadata(folder, wanted.file, wanted.commit, etag)
        return paths.final
    if anew and isinstance(cached, str):
        Path(cached).unlink(missing_ok=True)
    return _by_hub(wanted, None, False)


def _there(wanted: WantedFile, folder: Path | None) -> Path | None:
    """The file if it is present with its full size."""
    path = (folder or cache_of(wanted.repository) / "snapshots" / wanted.commit) / wanted.file
    return path if _whole(path, wanted) else None


def _whole(path: Path, wanted: WantedFile) -> bool:
    return path.is_file() and path.stat().st_size == wanted.bytes.size


def _metadata(wanted: WantedFile) -> HfFileMetadata:
    known = get_hf_file_metadata(wanted.bytes.url, headers=request_headers(), endpoint=wanted.endpoint)
    etag = known.etag or ""
    if not etag or etag.strip(".") != etag or not set(etag) <= _PLAIN:
        raise Doubtful("the hub's answer has no entity tag for the file")
    return known


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def _in_folder(folder: Path, file: str, etag: str) -> _Paths:
    paths = get_local_download_paths(folder, file)
    return _Paths(paths.incomplete_path(etag), paths.file_path, paths.lock_path)


def _in_cache(repository: str, etag: str) -> _Paths:
    cache = cache_of(repository)
    blob, lock = cache / "blobs" / etag, Path(constants.HF_HUB_CACHE) / ".locks" / cache.name / f"{etag}.lock"
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    return _Paths(blob.with_name(f"{etag}.incomplete"), blob, lock)


def _grow(wanted: WantedFile, path: Path, anew: bool, going: Going) -> None:
    """Append the missing bytes to a file; `anew` starts it over."""
    size = wanted.bytes.size
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(open_own(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), "ab") as file:
        if anew or file.tell() > size:
            file.truncate(0)
        at = file.seek(0, os.SEEK_END)
        rest = arriving(wanted.bytes._replace(begin=at), size, skippable=size)
        bar: Any = tqdm  # untyped, and the bars are huggingface_hub's own
        bar = bar(total=size, initial=at, desc=wanted.file, unit="B", unit_scale=True, name="huggingface_hub.http_get")
        with contextlib.closing(rest), bar:
            for chunk in rest:
                if not going():
                    raise Interrupted("the download has ended")
                file.write(chunk)
                file.flush()
                bar.update(len(chunk))


def _by_hub(wanted: WantedFile, folder: Path | None, anew: bool) -> Path:
    """Let huggingface_hub download the file or find the part that is present."""
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
                wanted.repository, wanted.file, revision=wanted.commit, local_dir=folder, force_download=spoilt,
                endpoint=wanted.endpoint, library_name="dsctl", library_version=__version__,
            )
        )  # fmt: skip

    return Path(persist(wanted.bytes.where, download))
