"""Pair the tensors of an unknown architecture: which names are the parts of one quantized matrix. Pure, no torch.

Names are looked up, never parsed: a dialect says what the scale of a parameter is called, so a tensor with that ending
names its parameter, and the pair counts only if all parts are stored and a codec reads their dtypes and shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dsctl.checkpoint.mismatches import Stored, mismatch
from dsctl.checkpoint.pieces import Fault
from dsctl.codecs.codec import CODES, SCALE, Codec
from dsctl.core.header import TensorSpec
from dsctl.core.params import OTHER
from dsctl.layouts.naming import DIALECTS

# How many columns an element of the codes may hold: one, two codes in a byte, four or eight in a word.
_COLUMNS = (1, 2, 4, 8)
# Endings of parts that no dialect here has, by which other programs store zero points, orders and block scales.
_FOREIGN = ("_zero_point", "_g_idx")
# Endings of codes and scales in forms that no codec reads: MXFP4 of stacked experts, GPTQ and AWQ.
_UNREAD = (("_blocks", "_scales"), ("qweight", "scales"))
# The ending that only scales have, in whatever checkpoint.
_TELLING = "_scale_inv"
# Dtypes that only codes have.
_CODED = ("F8_E4M3", "F8_E5M2", "F4")
# The one that always has scales beside it.
_SCALED = "F8_E4M3"
# Dtypes for two four-bit codes in a byte.
_PAIRS = ("I8", "U8")


class Reading(NamedTuple):
    """A quantized matrix: its shape, the codec that reads it, and its tensors in the order of the codec's parts."""

    shape: tuple[int, int]
    codec: Codec
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Paired:
    """The quantized matrices by name, the tensors in a form that no codec reads, and the faults.

    `broken` are the tensors that faults are about.
    """

    read: dict[str, Reading] = field(default_factory=dict)
    unread: frozenset[str] = frozenset()
    faults: tuple[Fault, ...] = ()
    broken: frozenset[str] = frozenset()


class _Readers(NamedTuple):
    """Codecs whose parts have the same names, and their place in the order of trying."""

    place: int
    dialect: str
    parts: tuple[str, ...]
    codecs: tuple[Codec, ...]


def paired(specs: Mapping[str, TensorSpec], codecs: Iterable[Codec], strict: bool = True) -> Paired:
    """Pair these tensors, by name. Of the codecs that read a matrix, the first counts.

    Without `strict`, which is for methods of quantization that no codec has, codes without a scale are no fault.
    """
    readers = _grouped(codec for codec in codecs if codec.quantized and SCALE in codec.parts)
    found = _found(specs, readers)
    doubtful = _doubtful(found, specs)
    read = {name: one for name, one in found.items() if name not in doubtful}
    used = {tensor for one in read.values() for tensor in one.tensors}
    left = [name for name in specs if name not in used]
    foreign = _foreign(left, read)
    for name in foreign:
        used -= {*read.pop(name).tensors}
    told = _Told(specs, readers, read, strict)
    faults, broken, unread = list(doubtful.values()), {t for name in doubtful for t in found[name].tensors}, set[str]()
    unread |= {tensor for tensors in foreign.values() for tensor in tensors}
    for name in left:
        if name not in broken and name not in unread:
            told.look(name)
    faults += told.faults
    return Paired(read, frozenset(unread | told.unread - told.broken), tuple(faults), frozenset(broken | told.broken))


def shape_of(codec: Codec, specs: Mapping[str, TensorSpec]) -> tuple[Codec, tuple[int, int]] | None:
    """The codec that reads parts with these specs, and the shape of the matrix; None if the codec does not read them.

    Codes show the shape: a dtype may hold several columns in an element, and scales show how many.
    """
    codes = specs[CODES].shape
    if len(codes) != 2:
        return None
    for columns in _COLUMNS:
        shape = codes[0], codes[1] * columns
        if (reader := codec.reads(shape, specs)) is not None:
            return reader, shape
    return None


def _grouped(codecs: Iterable[Codec]) -> tuple[_Readers, ...]:
    groups: dict[tuple[str, tuple[str, ...]], list[Codec]] = {}
    for codec in codecs:
        groups.setdefault((codec.dialect, codec.parts), []).append(codec)
    return tuple(_Readers(place, *key, tuple(found)) for place, (key, found) in enumerate(groups.items()))


def parameter_of(tensor: str, dialect: str, part: str) -> str | None:
    """The parameter whose part has this name in a dialect, or None if no parameter's has."""
    off, on = DIALECTS[dialect].endings.get(part, ("", ""))
    name = tensor.removesuffix(on) + off if tensor.endswith(on) else ""
    return name if name and name != tensor and DIALECTS[dialect].tensor(name, part) == tensor else None


def _found(specs: Mapping[str, TensorSpec], readers: tuple[_Readers, ...]) -> dict[str, Reading]:
    """Every matrix that some codec reads, by name; of several readings the one that is tried first."""
    found: dict[str, tuple[int, Reading]] = {}
    known: dict[tuple[object, ...], tuple[Codec, tuple[int, int]] | None] = {}
    endings = tuple({DIALECTS[one.dialect].endings.get(SCALE, ("", ""))[1] for one in readers})
    for tensor in (name for name in specs if name.endswith(endings)):
        for place, dialect, parts, codecs in readers:
            name = parameter_of(tensor, dialect, SCALE)
            if name is None or (name in found and found[name][0] <= place):
                continue
            tensors = tuple(DIALECTS[dialect].tensor(name, part) for part in parts)
            there = [specs.get(one) for one in tensors]
            if None in there:
                continue
            key = place, *there
            if key not in known:
                held = {part: spec for part, spec in zip(parts, there, strict=True) if spec is not None}
                known[key] = next((one for codec in codecs if (one := shape_of(codec, held))), None)
            if (reading := known[key]) is not None:
                found[name] = place, Reading(reading[1], reading[0], tensors)
    return {name: reading for name, (_, reading) in found.items()}


def _doubtful(found: Mapping[str, Reading], specs: Mapping[str, TensorSpec]) -> dict[str, Fault]:
    """Matrices that share a tensor with a different one, or whose name is also that of a tensor beside their parts."""
    owners: dict[str, list[str]] = {}
    for name, one in found.items():
        for tensor in one.tensors:
            owners.setdefault(tensor, []).append(name)
    faults = {}
    for tensor, names in owners.items():
        for name in names if len(names) > 1 else ():
            other = names[0] if name != names[0] else names[1]
            faults[name] = Fault("wrong-scale", name, f"{tensor} would be a part of {other}, too: cannot be paired")
    for name, one in found.items():
        if name in specs and name not in one.tensors:
            what = f"is stored as {one.tensors[0]} and under its own name: one of them does not belong here"
            faults[name] = Fault("wrong-scale", name, what)
    return faults


def _foreign(left: Iterable[str], read: Mapping[str, Reading]) -> dict[str, list[str]]:
    """Matrices beside which a part is stored that their codec does not know, with all of their tensors."""
    endings = {ending for one in DIALECTS.values() for _, ending in one.endings.values() if ending.startswith("_")}
    every = (*sorted(endings), *_FOREIGN)
    found: dict[str, list[str]] = {}
    for tensor in left:
        for ending in every:
            name = tensor.removesuffix(ending)
            if name != tensor and name in read:
                found.setdefault(name, [*read[name].tensors]).append(tensor)
    return found


class _Told:
    """The tensors that belong to no matrix that is read: which are faults, and which are in a form not read here."""

    def __init__(
        self,
        specs: Mapping[str, TensorSpec],
        readers: tuple[_Readers, ...],
        read: Mapping[str, Reading],
        strict: bool,
    ) -> None:
        self._specs, self._readers, self._strict = specs, readers, strict
        self.faults: list[Fault] = []
        self.unread: set[str] = set()
        self.broken: set[str] = set()
        # What the names of matrices end with, by dialect, and the dtypes of their codes.
        self._last: dict[str, set[str]] = {}
        self._coded = set(_CODED)
        for name, one in read.items():
            self._last.setdefault(one.codec.dialect, set()).add(_last(name))
            self._coded.add(specs[one.tensors[0]].dtype)

    def look(self, tensor: str) -> None:
        """Add the fault of a tensor, or the tensor to those of an unread form, if it is either."""
        if tensor in self.broken or tensor in self.unread:
            return
        spec = self._specs[tensor]
        for name, dialect in self._owners(tensor):
            codes = DIALECTS[dialect].tensor(name, CODES)
            weight = self._specs.get(codes)
            if weight is not None and weight.dtype in self._coded:
                self._without_reader(name, dialect, codes)
                return
            if weight is None and self._is_scale(tensor, name, dialect):
                what = f"missing, although its scale {tensor} is there"
                self._doubt(Fault("missing-weight", name, what), tensor)
                return
            if weight is not None and tensor.endswith(_TELLING):
                what = f"is {weight.dtype} and not quantized, but has a scale: {tensor}"
                self._doubt(Fault("wrong-scale", name, what), tensor, codes)
                return
        for ours, theirs in (*_UNREAD, *(pair[::-1] for pair in _UNREAD)):
            if tensor.endswith(ours) and tensor.removesuffix(ours) + theirs in self._specs:
                self.unread.add(tensor)
                return
        if spec.dtype in _CODED or tensor.endswith("_packed"):
            self._codes(tensor, spec)

    def _owners(self, tensor: str) -> Iterator[tuple[str, str]]:
        """The parameters whose scale a tensor may be, by its name, each with the dialect."""
        for dialect in dict.fromkeys(one.dialect for one in self._readers):
            if (name := parameter_of(tensor, dialect, SCALE)) is not None:
                yield name, dialect

    def _is_scale(self, tensor: str, name: str, dialect: str) -> bool:
        """Whether a tensor without codes is a scale beyond doubt, by the other matrices of its dialect."""
        if tensor.endswith(_TELLING):
            return True
        return len(self._specs[tensor].shape) > 1 and _last(name) in self._last.get(dialect, ())

    def _without_reader(self, name: str, dialect: str, codes: str) -> None:
        """Codes with a scale that no codec reads: a scale of a wrong shape or dtype, or a form that is not read."""
        codecs = [(codec, one) for one in self._readers if one.dialect == dialect for codec in one.codecs]
        parts = dict.fromkeys(part for _, one in codecs for part in one.parts)
        named = {part: DIALECTS[dialect].tensor(name, part) for part in parts}
        there = {tensor: self._specs[tensor] for tensor in named.values() if tensor in self._specs}
        weight, scale = self._specs[codes], self._specs[named[SCALE]]
        able = [codec for codec, _ in codecs if weight.dtype in _dtypes(codec)]
        if len(weight.shape) != 2 or len(scale.shape) != 2 or not able:
            self.unread |= there.keys()
            return
        absent = [[named[part] for part in codec.parts if named[part] not in there] for codec in able]
        if all(absent):
            fewest = min(absent, key=len)
            self._doubt(Fault("wrong-scale", name, f"is stored without {', '.join(fewest)}"), *there)
            return
        shape = weight.shape[0], weight.shape[1] * (2 if weight.dtype in _PAIRS else 1)
        mine = [(codec, named[SCALE]) for codec, _ in codecs]
        self._doubt(mismatch(name, Stored(shape, weight, there), mine, OTHER), *there)

    def _codes(self, tensor: str, spec: TensorSpec) -> None:
        """Codes that no scale led to: one of a wrong form may be there."""
        named = [
            (name, one.dialect)
            for one in self._readers
            if DIALECTS[one.dialect].tensor(name := parameter_of(tensor, one.dialect, CODES) or tensor, CODES) == tensor
        ]
        for name, dialect in named:
            if DIALECTS[dialect].tensor(name, SCALE) in self._specs:
                self._without_reader(name, dialect, tensor)
                return
        if len(spec.shape) != 2 or (spec.dtype in _CODED and spec.dtype != _SCALED):
            self.unread.add(tensor)
            return
        used = [(name, dialect) for name, dialect in named if _last(name) in self._last.get(dialect, ())]
        ended = [(name, dialect) for name, dialect in named if name != tensor]
        for name, dialect in (used or ended or named)[:1]:
            scale = DIALECTS[dialect].tensor(name, SCALE)
            self._doubt(Fault("missing-scale", name, f"{spec.dtype} without a scale: {scale} is missing"), tensor)

    def _doubt(self, fault: Fault, *tensors: str) -> None:
        """Add a fault, or, under a method of quantization that no codec has, tensors in a form that is not read."""
        if not self._strict:
            self.unread |= {*tensors}
            return
        self.faults.append(fault)
        self.broken |= {*tensors}


def _dtypes(codec: Codec) -> set[str]:
    """The dtypes in which a codec's codes may be stored."""
    dtype = codec.specs(codec.block)[CODES].dtype
    return {dtype, *_PAIRS, "F4"} if codec.form.codes == "e2m1" else {dtype}


def _last(name: str) -> str:
    return name.rpartition(".")[2]
