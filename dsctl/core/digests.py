"""BLAKE3 digests of bytes, and of a safetensors file as a tree: its header and every tensor by itself.

The tree digest of a file is the BLAKE3 digest of the digests of its header (with the eight length bytes) and of its
tensors, in file order, tensors without bytes left out. A tensor that was joined from several matrices is digested one
matrix after the other: its digest is then that of their digests. So every digest can be computed where the bytes are
written, in any order and by any process. BLAKE3: https://github.com/BLAKE3-team/BLAKE3-specs, 32 bytes of output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from blake3 import blake3

SIZE = 32
# Bytes that are digested and then written or dropped at a time: they stay in a core's own cache in between.
PIECE_BYTES = 1 << 20

Bytes = bytes | bytearray | memoryview


class Hasher(Protocol):
    """A digest in the making."""

    def update(self, data: Bytes, /) -> object: ...

    def digest(self) -> bytes: ...


def hasher() -> Hasher:
    """A BLAKE3 digest of no bytes yet."""
    return blake3()


class Sums(NamedTuple):
    """Digests of a file's bytes, in hexadecimal; `sha256` is empty if it was not asked for."""

    blake3: str
    sha256: str = ""


def digest(data: Bytes) -> bytes:
    """The BLAKE3 digest of bytes."""
    return blake3(data).digest()


def joined(digests: Sequence[bytes]) -> bytes:
    """The digest of a tensor from those of its parts: the only part's own, or the digest of all of them."""
    return digests[0] if len(digests) == 1 else digest(b"".join(digests))


def tree(header: bytes, tensors: Iterable[bytes]) -> bytes:
    """The tree digest of a file from the digests of its header and its tensors."""
    return digest(b"".join((header, *tensors)))


def split(digests: bytes) -> Iterator[bytes]:
    """The digests in a run of them."""
    return (digests[at : at + SIZE] for at in range(0, len(digests), SIZE))


class InOrder:
    """Digests of the parts of a file, fed with its bytes in order.

    `sizes` has, for each digest, the bytes of its parts one after the other; none of them is 0.
    """

    def __init__(self, sizes: Iterable[Sequence[int]]) -> None:
        self._groups = iter([tuple(group) for group in sizes])
        self._parts: Iterator[int] = iter(())
        self._of_group: list[bytes] = []
        self._left = 0
        self._hasher = hasher()
        self.found: list[bytes] = []
        self._next_part()

    def update(self, data: Bytes) -> None:
        """Take the next bytes; those after the last part are not digested."""
        view = memoryview(data)
        while view and self._left:
            taken = view[: self._left]
            self._hasher.update(taken)
            self._left -= len(taken)
            view = view[len(taken) :]
            if not self._left:
                self._of_group.append(self._hasher.digest())
                self._hasher = hasher()
                self._next_part()

    def _next_part(self) -> None:
        part = next(self._parts, None)
        if part is None:
            if self._of_group:
                self.found.append(joined(self._of_group))
                self._of_group = []
            self._parts = iter(next(self._groups, ()))
            part = next(self._parts, 0)
        self._left = part
