"""Sources of a checkpoint's bytes: folders, hubs and object stores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from dsctl.core.errors import SourceError
from dsctl.stores.hub import SCHEME, HubRepository, is_repository, split
from dsctl.stores.joined import Joined
from dsctl.stores.local import LocalFolder
from dsctl.stores.objects import ObjectFolder, is_url
from dsctl.stores.places import overlap, path_of

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
# The same in Mistral's own format.
PARAMS, PARAMS_INDEX = "params.json", "consolidated.safetensors.index.json"
SIGNED = "dsctl.json"
# The in-toto statement about the files that `dsctl.json` lists.
STATEMENT = "dsctl.intoto.json"
WORKING = ".dsctl"
# Git's settings, which a hub writes and changes itself.
ATTRIBUTES = ".gitattributes"


class Store(Protocol):
    """A place that holds files. Frozen and picklable: every worker opens its own files."""

    @property
    def place(self) -> str:
        """The name that a person uses for it."""

    def files(self) -> dict[str, int]:
        """Every file by its relative name (slashes), with its size in bytes."""

    @property
    def remote(self) -> bool:
        """Whether every read costs a round trip, so that merging and reading ahead pay off."""

    @property
    def revision(self) -> str:
        """The identifier that pins the contents, such as a commit; empty if files may change."""

    def head(self, file: str, size: int) -> bytes:
        """A safetensors file's length prefix and header JSON.

        Raises:
            SourceError: they cannot be read.
            FormatError: the header does not fit in the file, or is absurdly long.
        """

    def read(self, file: str, begin: int, end: int) -> bytes:
        """The bytes [begin, end) of a file.

        Raises:
            SourceError: they cannot be read, or the file ends before `end`.
        """

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
        """Fill the buffer with a file's bytes from `begin` on; raises as `read` does."""


STORES = {"local": LocalFolder, "hub": HubRepository, "objects": ObjectFolder}


def store_at(text: str | Path) -> Store:
    """The store of a SRC: a folder, a .safetensors file, `[hf://]org/name[@revision]`, or a URL such as `s3://...`.

    What exists on this machine comes first.

    Raises:
        SourceError: the place is empty or does not exist, or cannot be reached.
    """
    said = path_of(str(text))
    if is_url(said) and not said.startswith(SCHEME) and not os.path.exists(said):
        return ObjectFolder.at(said)
    if not said.startswith(SCHEME) and (os.path.exists(said) or not is_repository(said)):
        return LocalFolder.at(said)
    try:
        return HubRepository.at(said)
    except SourceError as error:
        if said.startswith(SCHEME):
            raise
        raise SourceError(f"{error.message}; and no such folder here", hint=error.hint) from None


def separate(store: Store, target: str) -> bool:
    """Whether a target is outside the place of a store and does not contain it. All branches of a repository are one
    place."""
    if isinstance(store, Joined):
        return separate(store.store, target) and separate(store.beside, target)
    if target.startswith(SCHEME):
        # Branches of one repository share their commits, and a new branch begins with the files of an old one.
        return not isinstance(store, HubRepository) or store.repository.lower() != split(target)[0].lower()
    if isinstance(store, LocalFolder):
        # Of a single file nothing else in its folder is read.
        return not overlap(store.place if store.only else store.root, target)
    return not isinstance(store, ObjectFolder) or not overlap(store.url, target)
