"""A folder of safetensors files as it is, for deltas: every header, every other file, no model. No torch."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from dsctl.checkpoint.delta_form import IN_PLACE, refuse_delta
from dsctl.checkpoint.reading import read_headers, read_json
from dsctl.core.errors import FormatError, SourceError
from dsctl.core.header import Header, TensorRef
from dsctl.stores import ATTRIBUTES, INDEX, SIGNED, STATEMENT, WORKING, Store
from dsctl.stores.local import LocalFolder

SUFFIX = ".safetensors"
_UNFINISHED = (".part", ".new")


@dataclass(frozen=True)
class WeightFiles:
    """The headers of a folder's safetensors files, by name, and the sizes of its other files without dsctl's audit."""

    store: Store
    headers: dict[str, Header]
    sides: dict[str, int]
    sizes: dict[str, int]

    @cached_property
    def _named(self) -> Counter[str]:
        return Counter(name for header in self.headers.values() for name in header.names)

    @cached_property
    def _file_of(self) -> dict[str, str]:
        return {name: file for file, header in self.headers.items() for name in header.names}

    @property
    def repeated(self) -> str:
        """A tensor's name that several files hold, such as those of ranks; empty if there is none."""
        return next((name for name, times in self._named.items() if times > 1), "")

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors."""
        return sum(header.nbytes for header in self.headers.values())

    def tensor(self, file: str, name: str) -> TensorRef | None:
        """The tensor of this name: that of this file, or that of the only file that holds it."""
        header = self.headers.get(file)
        if header is not None and name in header.tensors:
            return header.tensors[name]
        if self._named[name] != 1:
            return None
        return self.headers[self._file_of[name]].tensors[name]


def identified(header: Header, size: int) -> str:
    """What `dsctl.json` records of a weight file of the source."""
    return f"{size} bytes, header sha256 {hashlib.sha256(header.raw).hexdigest()}"


def open_weights(store: Store, in_place: bool = False) -> WeightFiles:
    """Open a folder for a delta. With `in_place` one may be half applied to it.

    Raises:
        SourceError: it cannot be read, or has no safetensors file. FormatError: a header is broken, the folder is
            unfinished, or it is itself a delta.
    """
    begun = isinstance(store, LocalFolder) and os.path.exists(os.path.join(store.root, WORKING, IN_PLACE))
    if begun and not in_place:
        what = "a delta is being applied here in place, and is not finished"
        raise FormatError(f"{store.place}: {what}", hint="run the same `dsctl delta apply --in-place` again")
    sizes = store.files()
    if begun:
        # Those that a run in place was writing when it was killed: it writes them again.
        sizes = {name: size for name, size in sizes.items() if not name.endswith(_UNFINISHED)}
    files = {name: size for name, size in sizes.items() if name.endswith(SUFFIX)}
    if unfinished := sorted(name for name in sizes if name.endswith(_UNFINISHED)):
        what = f"holds {unfinished[0]}, a file that is not finished"
        raise FormatError(f"{store.place}: {what}", hint="finish the run that makes it, or remove the file")
    if not files:
        raise SourceError(f"{store.place}: has no {SUFFIX} file")
    refuse_delta((read_json(store, INDEX, sizes) or {}).get("metadata"), store.place)
    sides = {
        name: size for name, size in sizes.items() if name not in files and name not in (ATTRIBUTES, SIGNED, STATEMENT)
    }
    return WeightFiles(store, read_headers(store, files), sides, sizes)
