"""Where a checkpoint's bytes come from."""

from __future__ import annotations

from typing import Protocol

from dsctl.stores.local import LocalFolder

INDEX = "model.safetensors.index.json"
SIGNED = "dsctl.json"
WORKING = ".dsctl"


class Store(Protocol):
    """A place that holds files. Frozen and picklable: every worker opens what it needs itself."""

    @property
    def place(self) -> str:
        """What a person calls it."""

    def files(self) -> dict[str, int]:
        """Every file by its relative name (slashes), with its size in bytes."""

    def read(self, file: str, begin: int, end: int) -> bytes:
        """The bytes [begin, end) of a file.

        Raises:
            SourceError: they cannot be read, or the file ends before `end`.
        """

    def read_into(self, file: str, begin: int, buffer: memoryview) -> None:
        """Fill the buffer with a file's bytes from `begin` on; raises like `read`."""


STORES = {"folder": LocalFolder}

__all__ = ["INDEX", "SIGNED", "STORES", "WORKING", "LocalFolder", "Store"]
