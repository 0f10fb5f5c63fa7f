"""A source together with a second one, whose files have a prefix: one store, so that a run reads from both.

More than two are joined one after another, each with a prefix of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsctl.core.errors import SourceError
from dsctl.stores.local import LocalFolder

if TYPE_CHECKING:
    from dsctl.stores import Store

# Before the names of the second source's files. No file of a checkpoint can have a name that begins so.
PREFIX = "original://"


@dataclass(frozen=True, slots=True)
class Joined:
    """A store and a second one beside it. `place` and `revision` are those of the first; `remote`: one of them is."""

    store: Store
    beside: Store
    prefix: str = PREFIX

    @property
    def place(self) -> str:
        return self.store.place

    @property
    def remote(self) -> bool:
        return self.store.remote or self.beside.remote

    @property
    def revision(self) -> str:
        return self.store.revision

    def files(self) -> dict[str, int]:
        return self.store.files() | {self.prefix + file: size for file, size in self.beside.files().items()}

    def head(self, file: str, size: int) -> bytes:
        store, name = self.place_of(file)
        return store.head(name, size)

    def read(self, file: str, begin: int, end: int) -> bytes:
        store, name = self.place_of(file)
        return store.read(name, begin, end)

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
        store, name = self.place_of(file)
        store.read_into(name, begin, buffer)

    def place_of(self, file: str) -> tuple[Store, str]:
        """The store that holds a file, which is not joined itself, and the file's name there."""
        store, name = (
            (self.beside, file.removeprefix(self.prefix)) if file.startswith(self.prefix) else (self.store, file)
        )
        return store.place_of(name) if isinstance(store, Joined) else (store, name)


def folder_beside(path: str) -> LocalFolder:
    """The folder at a path.

    Raises:
        SourceError: it is not a folder on this machine, or cannot be read.
    """
    hint = "name the folder of the original checkpoint"
    try:
        found = LocalFolder.at(path)
    except SourceError as error:
        raise SourceError(f"--original: {error}", hint=hint) from None
    if found.only:
        raise SourceError(f"--original: {path}: is not a folder", hint=hint)
    return found
