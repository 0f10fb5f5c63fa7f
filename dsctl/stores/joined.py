"""A source together with a second folder, whose files have a prefix: one store, so that a run reads from both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsctl.core.errors import SourceError
from dsctl.stores.local import LocalFolder

if TYPE_CHECKING:
    from dsctl.stores import Store

# Before the names of the second folder's files. No file of a checkpoint can have such a name.
PREFIX = "original://"


@dataclass(frozen=True, slots=True)
class Joined:
    """A store and a folder beside it. `place`, `remote` and `revision` are those of the store."""

    store: Store
    beside: LocalFolder

    @property
    def place(self) -> str:
        return self.store.place

    @property
    def remote(self) -> bool:
        return self.store.remote

    @property
    def revision(self) -> str:
        return self.store.revision

    def files(self) -> dict[str, int]:
        return self.store.files() | {PREFIX + file: size for file, size in self.beside.files().items()}

    def head(self, file: str, size: int) -> bytes:
        store, name = self._of(file)
        return store.head(name, size)

    def read(self, file: str, begin: int, end: int) -> bytes:
        store, name = self._of(file)
        return store.read(name, begin, end)

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
        store, name = self._of(file)
        store.read_into(name, begin, buffer)

    def _of(self, file: str) -> tuple[Store, str]:
        return (self.beside, file.removeprefix(PREFIX)) if file.startswith(PREFIX) else (self.store, file)


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
