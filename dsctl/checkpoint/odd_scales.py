"""The scales of four-bit groups that their values do not tell, kept in a file of their own for the way back. No torch.

`odd-scales.dsctl` is a safetensors file. A tensor has the name of the scales that it is of. It is either all of them,
as they were stored (F8_E8M0), or the odd ones alone: U8 [n, 5], of each its place among all (four bytes, the lowest
first, row by row) and its code. Scales without an entry follow from the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from dsctl.checkpoint.reading import read_header
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorRef, TensorSpec
from dsctl.stores import WORKING, Store

ODD = "odd-scales.dsctl"
# The bytes of an odd scale: its place, and the code.
ENTRY = 5
# More scales than so many have no place in four bytes.
MOST = 1 << 32
_PIECE = "odd-scales-"


def piece_file(job: int) -> str:
    """Where a job keeps what it found until the run ends, below the target."""
    return f"{WORKING}/{_PIECE}{job:08d}.dsctl"


def is_piece(name: str) -> bool:
    """Whether a file of a working folder is such a piece."""
    number = name.removeprefix(_PIECE).removesuffix(".dsctl")
    return number.isascii() and number.isdecimal() and f"{WORKING}/{name}" == piece_file(int(number))


class OddScales(NamedTuple):
    """The file's tensors by name."""

    refs: Mapping[str, TensorRef]

    def of(self, name: str, spec: TensorSpec) -> TensorRef | None:
        """The kept scales of this name, where they can be some of those that are stored so.

        Raises:
            FormatError: they cannot.
        """
        ref = self.refs.get(name)
        if ref is None:
            return None
        some = ref.spec.dtype == "U8" and len(ref.spec.shape) == 2 and ref.spec.shape[1] == ENTRY
        # More entries than this are never written: all of the scales take less.
        some = some and ref.nbytes <= spec.nbytes
        if not some and ref.spec != spec:
            what = f"{name} is {ref.spec.dtype} {list(ref.spec.shape)}, scales are {spec.dtype} {list(spec.shape)}"
            raise FormatError(f"{ODD}: {what}", hint=f"no loader needs {ODD}: without it, values are the same")
        return ref


def read_odd(store: Store, files: Mapping[str, int]) -> OddScales | None:
    """What is kept in a folder with these files, or None where nothing says.

    Raises:
        FormatError, SourceError: as `read_header`.
    """
    return OddScales(read_header(store, ODD, files[ODD]).tensors) if ODD in files else None
