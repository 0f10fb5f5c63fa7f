"""Plan a delta of two folders: which tensors are compared, where each difference goes, upper bounds. Pure, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dsctl.checkpoint.delta_form import OVERWRITE, OVERWRITE_MOST, SHARED, checksum
from dsctl.checkpoint.weight_files import WeightFiles
from dsctl.core.amounts import plural
from dsctl.core.errors import PlanError
from dsctl.core.frames import bound
from dsctl.core.header import DTYPE_BITS, TensorRef, TensorSpec, build

# Bytes of an overwriting frame's content for each byte that differs, and before them.
_OVERWRITING, _COUNT = 5, 4


class Pair(NamedTuple):
    """A tensor of the new side and the one of the old side that it is compared with. `whole`: it is stored itself."""

    file: str
    new: TensorRef
    old: TensorRef | None
    whole: bool

    @property
    def width(self) -> int:
        """Bytes of an element; 1 for elements smaller than a byte."""
        return max(1, DTYPE_BITS[self.new.spec.dtype] // 8)

    @property
    def read_bytes(self) -> int:
        return self.new.nbytes + (self.old.nbytes if self.old else 0)


class DeltaFile(NamedTuple):
    """A file of the delta: the name of the new side's file, its tensors in that file's order, the most bytes it has."""

    name: str
    pairs: tuple[Pair, ...]
    most: int


@dataclass(frozen=True)
class Differing:
    """The plan of a delta. `left` are tensors that only the old side has; `headers` the new side's files whose header
    the old side does not have; `own` says why only dsctl can apply the delta, empty if other readers can."""

    files: tuple[DeltaFile, ...]
    left: tuple[TensorRef, ...]
    headers: tuple[str, ...]
    own: tuple[str, ...]

    @property
    def pairs(self) -> Iterator[Pair]:
        return (pair for file in self.files for pair in file.pairs)

    @property
    def bytes_in(self) -> int:
        """The bytes of both sides that are read."""
        return sum(pair.read_bytes for pair in self.pairs) + sum(ref.nbytes for ref in self.left)

    @property
    def most(self) -> int:
        """The most bytes of all files with tensors."""
        return sum(file.most for file in self.files)


def differing(old: WeightFiles, new: WeightFiles, encoding: str, kind: str) -> Differing:
    """Pair the tensors of two sides. `encoding` and `kind` (of checksums) are those of `delta_form`.

    Raises:
        PlanError: a tensor is too long for the encoding.
    """
    files, taken = [], set()
    for name, header in new.headers.items():
        pairs = []
        for ref in header.tensors.values():
            was = old.tensor(name, ref.name)
            if was is not None:
                taken.add((was.file, was.name))
            pairs.append(Pair(name, ref, was, was is None or was.nbytes != ref.nbytes))
            if encoding == OVERWRITE and ref.nbytes >= OVERWRITE_MOST and not pairs[-1].whole:
                what = f"{ref.name} has {ref.nbytes:,} bytes, which is too long for an overwriting delta"
                raise PlanError(f"{new.store.place}: {what}", hint="leave --encoding out")
        files.append(DeltaFile(name, tuple(pairs), _most(pairs, encoding, kind)))
    refs = (ref for header in old.headers.values() for ref in header.tensors.values())
    left = tuple(ref for ref in refs if (ref.file, ref.name) not in taken)
    unlike = (name for name, one in new.headers.items() if name not in old.headers or old.headers[name].raw != one.raw)
    found = Differing(tuple(files), left, tuple(unlike), ())
    return Differing(found.files, left, found.headers, tuple(_own(found, old, new, encoding)))


def _most(pairs: list[Pair], encoding: str, kind: str) -> int:
    """The most bytes of a file with the differences of all of these tensors."""
    empty = checksum(kind).hexdigest()
    frames = {pair.new.name: TensorSpec("U8", (bound(_content(pair, encoding)),)) for pair in pairs}
    header, _ = build(frames, {pair.new.name: empty for pair in pairs})
    return len(header) + sum(spec.nbytes for spec in frames.values())


def _content(pair: Pair, encoding: str) -> int:
    nbytes = pair.new.nbytes
    return _COUNT + _OVERWRITING * nbytes if encoding == OVERWRITE and not pair.whole else nbytes


def _own(found: Differing, old: WeightFiles, new: WeightFiles, encoding: str) -> Iterator[str]:
    """Why engines and trainers cannot read the delta."""
    if encoding not in SHARED:
        yield f"the encoding {encoding} is dsctl's own"
    added = [pair.new.name for pair in found.pairs if pair.old is None]
    if added:
        yield f"{_tensors(added)} new"
    if found.left:
        yield f"{_tensors([ref.name for ref in found.left])} removed"
    unlike = [pair.new.name for pair in found.pairs if pair.old is not None and pair.old.spec != pair.new.spec]
    if unlike:
        yield f"{plural(len(unlike), 'tensor')} of another dtype or shape, such as {unlike[0]}"
    if repeated := new.repeated or old.repeated:
        yield f"several files hold {repeated}"
    if inner := next((name for name in new.headers if "/" in name), ""):
        yield f"{inner} is in a folder of its own"


def _tensors(names: list[str]) -> str:
    """A number of tensors with an example."""
    return f"{names[0]} is" if len(names) == 1 else f"{len(names):,} tensors, such as {names[0]}, are"
