"""A file's entry in `dsctl.json`: its size and its digests, and the comparison of bytes with them. No torch."""

from __future__ import annotations

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import msgspec

from dsctl.core import digests
from dsctl.core.digests import Bytes, InOrder, Sums
from dsctl.core.errors import FormatError
from dsctl.core.header import Header, TensorRef, parse
from dsctl.stores import Store

CHUNK_BYTES = 8 << 20
# More parts than any tensor is joined from.
MOST_PARTS = 1 << 20
# Each run of equally long parts of a joined tensor: their number, and the bytes of each.
Cuts = tuple[tuple[int, int], ...]


class SignedFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file's size in bytes and its digests, in hexadecimal: at least one of `blake3`, `tree` and `sha256`.

    `blake3` is that of the bytes of a file without tensors. A safetensors file has `tree` (see `dsctl.core.digests`),
    the digests of its tensors in `tensors` (base64), and in `cuts` the parts of its joined tensors. `sha256` is that of
    the bytes of any file.
    """

    size: int
    blake3: str = ""
    tree: str = ""
    tensors: str = ""
    cuts: dict[str, Cuts] = {}
    sha256: str = ""

    @property
    def digest(self) -> str:
        """The digest that stands for the file in messages and comparisons."""
        return self.tree or self.blake3 or self.sha256

    @property
    def kind(self) -> str:
        """The name of that digest."""
        return "BLAKE3 tree" if self.tree else "BLAKE3" if self.blake3 else "SHA-256"

    @property
    def algorithms(self) -> tuple[str, ...]:
        """The names of the digests that bytes are compared with."""
        return ("BLAKE3",) * bool(self.tree or self.blake3) + ("SHA-256",) * bool(self.sha256)

    def json(self) -> dict[str, Any]:
        """The entry as `dsctl.json` keeps it."""
        return msgspec.json.decode(msgspec.json.encode(self))  # type: ignore[no-any-return]


def signed_bytes(size: int, sums: Sums) -> SignedFile:
    """The entry of a file without tensors."""
    return SignedFile(size, blake3=sums.blake3, sha256=sums.sha256)


class Stretch(NamedTuple):
    """Bytes of a file from `begin` on that were digested together."""

    begin: int
    digest: bytes


def entries_of(said: Any) -> dict[str, SignedFile]:
    """The entries in the `files` of `dsctl.json`, by name.

    Raises:
        ValueError: they are not entries: a size or every digest is missing.
    """
    try:
        found = msgspec.convert(said, dict[str, SignedFile])
    except msgspec.ValidationError as error:
        raise ValueError(f"files: {error}") from None
    for name, entry in found.items():
        if not 0 <= entry.size < 1 << 63 or not entry.digest:
            raise ValueError(f"files: {name}: the size or the digest is missing")
    return found


def signed_tree(header_bytes: bytes, size: int, stretches: Iterable[Stretch], sha256: str = "") -> SignedFile:
    """The entry of a safetensors file from the digests of its stretches, which together cover all of its tensors.

    A tensor whose stretches cover it in several parts is a joined one.

    Raises:
        ValueError: they do not cover the tensors.
    """
    header = parse(header_bytes[8:], "", None)
    waiting = sorted({*stretches})
    found: list[bytes] = []
    cuts: dict[str, Cuts] = {}
    at = 0
    for ref in tensors_of(header):
        parts = []
        while at < len(waiting) and waiting[at].begin < ref.end:
            parts.append(waiting[at])
            at += 1
        if not parts or parts[0].begin != ref.begin:
            raise ValueError(f"{ref.name}: there is no digest of its first bytes")
        ends = [*(part.begin for part in parts[1:]), ref.end]
        if len(parts) > 1:
            lengths = [end - part.begin for part, end in zip(parts, ends, strict=True)]
            cuts[ref.name] = tuple((len(list(run)), length) for length, run in groupby(lengths))
        found.append(digests.joined([part.digest for part in parts]))
    if at < len(waiting):
        raise ValueError("a digest is of bytes outside all tensors")
    whole = digests.tree(digests.digest(header_bytes), found).hex()
    return SignedFile(size, tree=whole, tensors=b64encode(b"".join(found)).decode(), cuts=cuts, sha256=sha256)


def tensors_of(header: Header) -> Iterator[TensorRef]:
    """The tensors of a file that have bytes, in file order."""
    return (ref for ref in header.tensors.values() if ref.nbytes)


class Signer:
    """Computes the entry of a file from its bytes in order, with the kinds of digests that another entry has.

    `header` is the file's, or None if it does not have a valid one.
    """

    def __init__(self, like: SignedFile, header: Header | None) -> None:
        self._cuts = like.cuts
        self._blake3 = digests.hasher() if like.blake3 else None
        self._sha256 = hashlib.sha256() if like.sha256 else None
        self._tree = InOrder(_sizes(header, like.cuts)) if like.tree and header else None
        self._size = 0

    def update(self, data: Bytes) -> None:
        """Take the next bytes of the file."""
        for one in (self._blake3, self._sha256, self._tree):
            if one is not None:
                one.update(data)
        self._size += len(data)

    def entry(self) -> SignedFile:
        """The entry, when all bytes were taken. Without a valid header, `tree` is empty."""
        head, *tensors = (self._tree.found if self._tree else None) or [b""]
        return SignedFile(
            self._size,
            blake3=self._blake3.digest().hex() if self._blake3 else "",
            tree=digests.tree(head, tensors).hex() if self._tree else "",
            tensors=b64encode(b"".join(tensors)).decode(),
            cuts=self._cuts,
            sha256=self._sha256.hexdigest() if self._sha256 else "",
        )


def read_entry(store: Store, file: str, size: int, like: SignedFile) -> SignedFile:
    """The entry of a stored file, with the kinds of digests of another entry.

    Raises:
        SourceError: it cannot be read.
    """
    signer = Signer(like, _header(store, file, size) if like.tree else None)
    for begin in range(0, size, CHUNK_BYTES):
        signer.update(store.read(file, begin, min(begin + CHUNK_BYTES, size)))
    return signer.entry()


def _header(store: Store, file: str, size: int) -> Header | None:
    try:
        return parse(store.head(file, size)[8:], file, size)
    except FormatError:
        return None


def differences(expected: SignedFile, found: SignedFile, header: Header | None) -> list[str]:
    """What differs between the entry that a file should have and the one that its bytes give: `its SHA-256`, `its
    header`, or the names of tensors. `header` is the file's if its tensors shall be named."""
    kinds = ("BLAKE3", expected.blake3, found.blake3), ("SHA-256", expected.sha256, found.sha256)
    differ = [f"its {kind}" for kind, one, other in kinds if one != other]
    if expected.tree == found.tree:
        return differ
    before, after = _split(expected.tensors), _split(found.tensors)
    if header is None:
        return [*differ, "its contents"]
    if len(before) != len(after) or before == after:
        return [*differ, "its header"]
    refs = zip(tensors_of(header), before, after, strict=True)
    return differ + [ref.name for ref, one, other in refs if one != other]


def _split(tensors: str) -> list[bytes]:
    try:
        return list(digests.split(b64decode(tensors, validate=True)))
    except ValueError:
        return []


def _sizes(header: Header, cuts: Mapping[str, Cuts]) -> Iterator[Sequence[int]]:
    """The bytes of every part that has a digest: of the header, then of each tensor."""
    yield (header.size,)
    for ref in tensors_of(header):
        cut = cuts.get(ref.name, ())
        fits = all(count > 0 and length > 0 for count, length in cut)
        few = sum(count for count, _ in cut) <= MOST_PARTS
        if fits and few and sum(count * length for count, length in cut) == ref.nbytes:
            yield [length for count, length in cut for _ in range(count)]
        else:
            yield (ref.nbytes,)
