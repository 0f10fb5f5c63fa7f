"""Scales of four-bit groups that do not follow from the values, kept in a side file for the way back. No torch.

`odd-scales.dsctl` is a safetensors file. A tensor has the name of its scales. It holds either all of them, as stored
(F8_E8M0), or only the odd ones: U8 [n, 5], for each its row-major index (four bytes, little endian) and its code.
Scales without an entry follow from the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dsctl.checkpoint.reading import read_header
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorRef, TensorSpec
from dsctl.stores import WORKING, Store

ODD = "odd-scales.dsctl"
# The bytes of an odd scale: its index and its code.
ENTRY = 5
# The most scales that an index of four bytes can address.
MOST = 1 << 32
_PIECE = "odd-scales-"


def piece_file(job: int) -> str:
    """The path below the target where a job keeps its odd scales until the run ends."""
    return f"{WORKING}/{_PIECE}{job:08d}.dsctl"


def is_piece(name: str) -> bool:
    """Whether a file of a working folder holds a job's odd scales."""
    number = name.removeprefix(_PIECE).removesuffix(".dsctl")
    return number.isascii() and number.isdecimal() and f"{WORKING}/{name}" == piece_file(int(number))


class OddScales(NamedTuple):
    """The file's tensors by name."""

    refs: Mapping[str, TensorRef]

    def of(self, name: str, spec: TensorSpec) -> TensorRef | None:
        """The kept scales with this name, checked against the stored specs.

        Raises:
            FormatError: they do not match.
        """
        ref = self.refs.get(name)
        if ref is None:
            return None
        some = ref.spec.dtype == "U8" and len(ref.spec.shape) == 2 and ref.spec.shape[1] == ENTRY
        # More entries are never written: storing all scales takes less.
        some = some and ref.nbytes <= spec.nbytes
        if not some and ref.spec != spec:
            what = f"{name} is {ref.spec.dtype} {list(ref.spec.shape)}, scales are {spec.dtype} {list(spec.shape)}"
            raise FormatError(f"{ODD}: {what}", hint=f"no loader needs {ODD}: without it, values are the same")
        return ref


def read_odd(store: Store, files: Mapping[str, int]) -> OddScales | None:
    """The odd scales kept in a folder with these files, or None if it has no such file.

    Raises:
        FormatError, SourceError: as `read_header`.
    """
    return OddScales(read_header(store, ODD, files[ODD]).tensors) if ODD in files else None
