"""Match a checkpoint's tensors with its architecture: every parameter's pieces; missing, surplus and wrong tensors.

If every family is complete and has one form of storage, as in published checkpoints, `regular` describes it without an
object per tensor; `survey` finds the pieces of any other checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from dsctl.checkpoint.mismatches import Stored, mismatch
from dsctl.checkpoint.pieces import Fault, Piece, Survey
from dsctl.codecs.codec import CODES, SCALE, Codec
from dsctl.core.header import TensorRef, TensorSpec
from dsctl.core.params import Family, Param
from dsctl.layouts.layout import Layout, Slot
from dsctl.layouts.manifests import MANIFEST
from dsctl.layouts.naming import Ending, endings, stored_name

# Faults of weights that may or may not be quantized.
_UNREAD = (
    "missing-weight", "missing-scale", "wrong-shape", "wrong-dtype", "wrong-scale", "not-packed", "other-grid",
    "wrong-scale-dtype",
)  # fmt: skip
# The codec, if any, for stored tensors: by the index in `Contents.readers`, a shape and the tensors' specs.
_Matched = dict[tuple[object, ...], Codec | None]


@dataclass(frozen=True)
class Contents:
    """The stored tensors of a checkpoint by shard and name, and the expectation: families, layout and codecs.

    `place` is its printed name. `known`: the families belong to a known architecture.
    """

    place: str
    known: bool
    families: tuple[Family, ...]
    layout: Layout
    codecs: tuple[Codec, ...]
    catalogue: Mapping[str, Mapping[str, TensorRef]]
    quantization: Mapping[str, Any] | None
    manifests: tuple[str, ...]

    @cached_property
    def parts(self) -> tuple[tuple[Codec, tuple[tuple[str, Ending], ...]], ...]:
        """Every codec to try, with its parts' endings in this layout."""
        return tuple((codec, endings(self.layout, codec.dialect, codec.parts)) for codec in self.codecs)

    @cached_property
    def readers(self) -> tuple[tuple[tuple[Ending, ...], tuple[Codec, ...]], ...]:
        """The same, with consecutive codecs grouped if their parts have the same names."""
        ended = groupby(self.parts, key=lambda pair: tuple(ending for _, ending in pair[1]))
        return tuple((ends, tuple(codec for codec, _ in pairs)) for ends, pairs in ended)

    @cached_property
    def every_ending(self) -> tuple[Ending, ...]:
        """Every ending of any part, once."""
        return tuple(dict.fromkeys(ending for ends, _ in self.readers for ending in ends))

    def stored(self, tensor: str, codec: Codec, part: str) -> str:
        """The name of a part of a tensor."""
        return stored_name(self.layout, tensor, codec.dialect, part)


def regular(contents: Contents, specs: Mapping[str, TensorSpec]) -> dict[Family, Codec] | None:
    """How each family is stored, if each has one form of storage and nothing is missing, surplus or wrong; else None.

    `specs` is every stored tensor by name.
    """
    if not contents.layout.published:
        return None
    found: dict[Family, Codec] = {}
    for family in contents.families:
        codec = _alike(contents, family, specs)
        if codec is None:
            return None
        found[family] = codec
    held = sum(family.count * len(codec.parts) for family, codec in found.items())
    return found if held == len(specs) else None


def _alike(contents: Contents, family: Family, specs: Mapping[str, TensorSpec]) -> Codec | None:
    """The codec of a family whose parameters all have the dtypes and shapes of the first one."""
    names = family.names()
    for codec, ends in contents.parts:
        first = {part: spec for part, (off, on) in ends if (spec := specs.get(names[0].removesuffix(off) + on))}
        reader = codec.reads(family.shape, first) if len(first) == len(codec.parts) else None
        if reader is None:
            continue
        for part, (off, on) in ends:
            tensors = [name.removesuffix(off) + on for name in names] if on else names
            if list(map(specs.get, tensors)).count(first[part]) != len(names):
                return None
        return reader
    return None


def survey(contents: Contents) -> Survey:
    """Every parameter's pieces, and the tensors that do not belong to a parameter."""
    found = Survey()
    unused = {shard: dict(names) for shard, names in contents.catalogue.items()}
    matched: _Matched = {}
    for param in (param for family in contents.families for param in family.params()):
        pieces = []
        for slot in contents.layout.slots(param):
            piece = _piece(contents, slot, param, matched)
            if isinstance(piece, Fault):
                found.faults.append(piece)
                if param.family.mtp:
                    found.mtp.add(piece)
                if piece.code == "missing-tensor":
                    found.missing.append(param)
                    continue
                _forget(contents, slot, unused)
                continue
            pieces.append(piece)
            names = unused[slot.shard]
            for ref in piece.refs:
                names.pop(ref.name, None)
        found.pieces[param.name] = tuple(pieces)
    found.extra = [ref for names in unused.values() for ref in names.values()]
    if contents.known:
        found.faults += [
            Fault("extra-tensor", ref.name, f"in {ref.file}, but the architecture has no such tensor")
            for ref in found.extra
        ]
    found.faults += missing_ranks(contents)
    tables = {name for family in contents.families if family.table for name in family.names()}
    codecs = {piece.codec for name, pieces in found.pieces.items() if name not in tables for piece in pieces}
    unread = any(fault.code in _UNREAD for fault in found.faults)
    found.faults += [f for f in undeclared(contents, codecs) if not unread or f.code != "declared-not-stored"]
    return found


def misfits(contents: Contents, params: Iterable[Param]) -> int:
    """The number of missing or wrong regions of these parameters."""
    matched: _Matched = {}
    slots = ((slot, param) for param in params for slot in contents.layout.slots(param))
    return sum(isinstance(_piece(contents, slot, param, matched), Fault) for slot, param in slots)


def stored_shape(contents: Contents, param: Param) -> tuple[int, ...] | None:
    """The shape of the tensor with a whole parameter's name, or None if it does not exist."""
    for slot in contents.layout.slots(param):
        ref = contents.catalogue.get(slot.shard, {}).get(slot.tensor)
        if ref is not None and slot.container == param.shape and slot.stack is None:
            return ref.spec.shape
    return None


def missing_ranks(contents: Contents) -> list[Fault]:
    """Ranks whose parts are missing in a folder for all ranks."""
    shares, alone = contents.layout.shares, MANIFEST in contents.manifests
    return [Fault("missing-rank", contents.place, shares.said)] if shares and shares.said and not alone else []


def _forget(contents: Contents, slot: Slot, unused: dict[str, dict[str, TensorRef]]) -> None:
    for off, on in contents.every_ending:
        unused.get(slot.shard, {}).pop(slot.tensor.removesuffix(off) + on, None)


def _piece(contents: Contents, slot: Slot, param: Param, matched: _Matched) -> Piece | Fault:
    names, tensor = contents.catalogue.get(slot.shard, {}), slot.tensor
    for number, (ends, codecs) in enumerate(contents.readers):
        refs = tuple([names.get(tensor.removesuffix(off) + on if on else tensor) for off, on in ends])
        if None in refs:
            continue
        found: tuple[TensorRef, ...] = refs  # type: ignore[assignment]
        if slot.stack is not None:
            if any(ref.spec.shape[:1] != (slot.stack[1],) for ref in found):
                continue
            found = tuple([unstacked(ref, *slot.stack) for ref in found])
        key = (number, slot.container, *[ref.spec for ref in found])
        if key not in matched:
            matched[key] = _reader(codecs, slot.container, found)
        if (reader := matched[key]) is not None:
            return Piece(slot, reader, found)
    return _why_not(contents, slot, param)


def _reader(codecs: Iterable[Codec], shape: tuple[int, ...], refs: Iterable[TensorRef]) -> Codec | None:
    """The first codec that reads tensors with these specs."""
    specs = [ref.spec for ref in refs]
    found = (codec.reads(shape, dict(zip(codec.parts, specs, strict=True))) for codec in codecs)
    return next((reader for reader in found if reader is not None), None)


def unstacked(ref: TensorRef, index: int, count: int) -> TensorRef:
    """One tensor of a stack along the first dimension."""
    spec = TensorSpec(ref.spec.dtype, ref.spec.shape[1:])
    each = ref.nbytes // count
    return TensorRef(ref.name, spec, ref.file, ref.begin + index * each, ref.begin + (index + 1) * each)


def _why_not(contents: Contents, slot: Slot, param: Param) -> Fault:
    names = contents.catalogue.get(slot.shard, {})
    name = f"{slot.shard}/{slot.tensor}" if slot.shard else slot.tensor
    tensors = [slot.tensor.removesuffix(off) + on for off, on in contents.every_ending]
    there = {tensor: names[tensor].spec for tensor in tensors if tensor in names}
    weight = there.get(slot.tensor)
    if not there:
        code = "missing-tensor"
        return Fault(code, name, "missing" + (" (MTP layer)" if param.family.mtp else ""))
    if weight is None:
        return Fault("missing-weight", name, "missing, although its scale is there")
    codecs = [codec for codec in contents.codecs if contents.stored(slot.tensor, codec, CODES) == slot.tensor]
    known = [(codec, contents.stored(slot.tensor, codec, SCALE)) for codec in codecs if SCALE in codec.parts]
    return mismatch(name, Stored(slot.container, weight, there), known, param.role)


def undeclared(contents: Contents, codecs: Iterable[Codec]) -> list[Fault]:
    """Contradictions between `quantization_config` and the codecs that read the weights, except tables'."""
    found = set(codecs)
    configs = {codec: config for codec in found if (config := codec.config()) is not None}
    says = contents.quantization
    if configs and not says:
        what = f"weights are {', '.join(sorted({c.name for c in configs}))}, but quantization_config is absent"
        return [Fault("format-not-declared", "config.json", what)]
    if says and found and not configs:
        return [Fault("declared-not-stored", "config.json", "quantization_config is there, but no weight is quantized")]
    faults = [*disagreement(says or {}, configs.values(), "quant_method")]
    declared = contents.codecs[0]
    for block in sorted({codec.block for codec in found if codec.scale_fmt}):
        if says and declared.scale_fmt and declared.block != block and not faults:
            what = f"weight_block_size is {list(declared.block)}, scales are stored for {list(block)}"
            faults.append(Fault("block-size", "config.json", what))
    return faults


def disagreement(says: Mapping[str, Any], configs: Iterable[Mapping[str, Any]], key: str) -> Iterator[Fault]:
    """A field of `quantization_config` that contradicts the configs of the stored formats."""
    wanted = dict.fromkeys(sorted(config[key] for config in configs if key in config))
    if says and wanted and says.get(key) not in [*wanted]:
        what = f"{key} is {says.get(key)!r}, weights are stored for {', '.join(map(repr, wanted))}"
        yield Fault("format-not-declared", "config.json", what)
