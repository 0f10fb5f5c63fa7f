"""The two sides of a delta as one source of a run, and their tensors as the bytes to compare. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from dsctl.checkpoint.weight_files import WeightFiles, identified
from dsctl.core.header import DTYPE_BITS, TensorRef
from dsctl.stores import Store
from dsctl.stores.joined import Joined
from dsctl.work.differences import Side
from dsctl.work.readahead import Reader

# Before the names of the new side's files.
NEW = "new://"


@dataclass(frozen=True)
class Sources:
    """The old and the new side."""

    old: WeightFiles
    new: WeightFiles

    @property
    def store(self) -> Store:
        """Both sides as one store."""
        return Joined(self.old.store, self.new.store, NEW)

    def described(self) -> dict[str, str]:
        """Every weight file of both sides with what identifies it: its size and its header."""
        found: dict[str, str] = {}
        for prefix, side in (("", self.old), (NEW, self.new)):
            found |= {prefix + file: identified(header, side.sizes[file]) for file, header in side.headers.items()}
        return found


def side_of(ref: TensorRef, reader: Reader, prefix: str = "") -> Side:
    """A stored tensor as one side of a difference."""
    width = max(1, DTYPE_BITS[ref.spec.dtype] // 8)
    return Side(lambda at, buffer: reader.read_into(prefix + ref.file, ref.begin + at, buffer), ref.nbytes, width)
