"""Match what a checkpoint stores against its architecture: every parameter's pieces, what is missing, surplus or wrong.

A checkpoint whose families are each stored alike and whole, as published ones are, is told without an object per
tensor (`regular`); `survey` finds the pieces of any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dsctl.checkpoint.pieces import Fault, Piece, Survey
from dsctl.codecs import Codec
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.core.header import TensorRef, TensorSpec
from dsctl.core.params import Family, Param
from dsctl.layouts import Slot
from dsctl.layouts.hf import Hf
from dsctl.layouts.manifests import MANIFEST

if TYPE_CHECKING:
    from dsctl.checkpoint.checkpoint import Checkpoint


# Faults of weights of which nobody can say whether they are quantized.
_UNREAD = ("missing-weight", "missing-scale", "wrong-shape", "wrong-dtype", "wrong-scale")


def regular(checkpoint: Checkpoint, specs: Mapping[str, TensorSpec]) -> dict[Family, Codec] | None:
    """How each family is stored, where that is the same for all of it, and nothing is missing, surplus or wrong.

    `specs` is every stored tensor by name.
    """
    if not checkpoint.families or not isinstance(checkpoint.layout, Hf) or checkpoint.layout.shares:
        return None
    found: dict[Family, Codec] = {}
    for family in checkpoint.families:
        codec = _alike(checkpoint, family, specs)
        if codec is None:
            return None
        found[family] = codec
    held = sum(family.count * len(codec.suffixes) for family, codec in found.items())
    return found if held == len(specs) else None


def _alike(checkpoint: Checkpoint, family: Family, specs: Mapping[str, TensorSpec]) -> Codec | None:
    """The codec that reads every parameter of a family, all of them stored with the dtype and shapes of the first."""
    names = family.names()
    for codec in checkpoint.codecs:
        first = {suffix: spec for suffix in codec.suffixes if (spec := specs.get(names[0] + suffix))}
        reader = codec.reads(family.shape, first) if len(first) == len(codec.suffixes) else None
        if reader is None:
            continue
        for suffix, spec in first.items():
            stored = map(specs.get, [name + suffix for name in names] if suffix else names)
            if list(stored).count(spec) != len(names):
                return None
        return reader
    return None


def survey(checkpoint: Checkpoint) -> Survey:
    """Every parameter's pieces, and the tensors that belong to none."""
    found = Survey()
    unused = {shard: dict(names) for shard, names in checkpoint.catalogue.items()}
    matched: dict[tuple[object, ...], Codec] = {}
    for param in checkpoint.params:
        pieces = []
        for slot in checkpoint.layout.slots(param):
            piece = _piece(checkpoint, slot, param, matched)
            if isinstance(piece, Fault):
                found.faults.append(piece)
                if param.family.mtp:
                    found.mtp.add(piece)
                if piece.code == "missing-tensor":
                    found.missing.append(param)
                    continue
                _forget(checkpoint, slot, unused)
                continue
            pieces.append(piece)
            names = unused[slot.shard]
            for ref in piece.refs:
                names.pop(ref.name, None)
        found.pieces[param.name] = tuple(pieces)
    found.extra = [ref for names in unused.values() for ref in names.values()]
    if checkpoint.model is not None:
        found.faults += [
            Fault("extra-tensor", ref.name, f"in {ref.file}, but the architecture has no such tensor")
            for ref in found.extra
        ]
    found.faults += missing_ranks(checkpoint)
    codecs = {piece.codec for pieces in found.pieces.values() for piece in pieces}
    unread = any(fault.code in _UNREAD for fault in found.faults)
    found.faults += [f for f in undeclared(checkpoint, codecs) if not unread or f.code != "declared-not-stored"]
    return found


def misfits(checkpoint: Checkpoint, params: Iterable[Param]) -> int:
    """How many stored regions of some parameters are missing or wrong."""
    matched: dict[tuple[object, ...], Codec] = {}
    slots = ((slot, param) for param in params for slot in checkpoint.layout.slots(param))
    return sum(isinstance(_piece(checkpoint, slot, param, matched), Fault) for slot, param in slots)


def stored_shape(checkpoint: Checkpoint, param: Param) -> tuple[int, ...] | None:
    """The shape of the tensor that has a whole parameter's name; None where there is none."""
    for slot in checkpoint.layout.slots(param):
        ref = checkpoint.catalogue.get(slot.shard, {}).get(checkpoint.layout.stored(slot.tensor, ""))
        if ref is not None and slot.container == param.shape and slot.stack is None:
            return ref.spec.shape
    return None


def missing_ranks(checkpoint: Checkpoint) -> list[Fault]:
    """Ranks whose parts are not there, in a folder that is for all of them."""
    shares, alone = checkpoint.layout.shares, MANIFEST in checkpoint.manifests
    return [Fault("missing-rank", checkpoint.store.place, shares.said)] if shares and shares.said and not alone else []


def _forget(checkpoint: Checkpoint, slot: Slot, unused: dict[str, dict[str, TensorRef]]) -> None:
    for codec in checkpoint.codecs:
        for suffix in codec.suffixes:
            unused.get(slot.shard, {}).pop(checkpoint.layout.stored(slot.tensor, suffix), None)


def _piece(checkpoint: Checkpoint, slot: Slot, param: Param, matched: dict[tuple[object, ...], Codec]) -> Piece | Fault:
    names, stored = checkpoint.catalogue.get(slot.shard, {}), checkpoint.layout.stored
    for codec in checkpoint.codecs:
        refs = tuple([names.get(stored(slot.tensor, suffix)) for suffix in codec.suffixes])
        if None in refs:
            continue
        found: tuple[TensorRef, ...] = refs  # type: ignore[assignment]
        if slot.stack is not None:
            if any(ref.spec.shape[:1] != (slot.stack[1],) for ref in found):
                continue
            found = tuple([unstacked(ref, *slot.stack) for ref in found])
        key = (codec, slot.container, *[ref.spec for ref in found])
        if key in matched:
            return Piece(slot, matched[key], found)
        specs = {suffix: ref.spec for suffix, ref in zip(codec.suffixes, found, strict=True)}
        reader = codec.reads(slot.container, specs)
        if reader is not None:
            matched[key] = reader
            return Piece(slot, reader, found)
    return _why_not(checkpoint, slot, param)


def unstacked(ref: TensorRef, index: int, count: int) -> TensorRef:
    """One of the tensors that are stored stacked along a first dimension."""
    spec = TensorSpec(ref.spec.dtype, ref.spec.shape[1:])
    each = ref.nbytes // count
    return TensorRef(ref.name, spec, ref.file, ref.begin + index * each, ref.begin + (index + 1) * each)


def _why_not(checkpoint: Checkpoint, slot: Slot, param: Param) -> Fault:
    names, stored = checkpoint.catalogue.get(slot.shard, {}), checkpoint.layout.stored
    name = f"{slot.shard}/{stored(slot.tensor, '')}" if slot.shard else stored(slot.tensor, "")
    suffixes = dict.fromkeys(suffix for codec in checkpoint.codecs for suffix in codec.suffixes)
    there = {suffix: names[tensor].spec for suffix in suffixes if (tensor := stored(slot.tensor, suffix)) in names}
    weight = there.get("")
    if not there:
        code = "missing-tensor"
        return Fault(code, name, "missing" + (" (MTP layer)" if param.family.mtp else ""))
    if weight is None:
        return Fault("missing-weight", name, "missing, although its scale is there")
    if weight.shape != slot.container:
        return Fault("wrong-shape", name, f"is {list(weight.shape)}, the architecture says {list(slot.container)}")
    if weight.dtype == "F8_E4M3" and len(there) == 1:
        return Fault("missing-scale", name, "FP8 without a scale: no tensor " + stored(slot.tensor, "_scale_inv"))
    others = ", ".join(f"{stored(slot.tensor, s)} {t.dtype} {list(t.shape)}" for s, t in there.items() if s)
    if others:
        return Fault("wrong-scale", name, f"{weight.dtype} {list(weight.shape)} does not go with {others}")
    return Fault("wrong-dtype", name, f"dtype {weight.dtype} is no format of its role, {param.role}")


def undeclared(checkpoint: Checkpoint, codecs: Iterable[Codec]) -> list[Fault]:
    """Where `quantization_config` and the codecs that read the weights disagree."""
    found = set(codecs)
    configs = {codec: config for codec in found if (config := codec.config()) is not None}
    says = checkpoint.quantization
    if configs and not says:
        what = f"weights are {', '.join(sorted({c.name for c in configs}))}, but there is no quantization_config"
        return [Fault("format-not-declared", "config.json", what)]
    if says and found and not configs:
        return [Fault("declared-not-stored", "config.json", "quantization_config is there, but no weight is quantized")]
    faults = [*disagreement(says or {}, configs.values(), "quant_method")]
    declared = checkpoint.codecs[0]
    for block in sorted({codec.block for codec in found if isinstance(codec, Fp8Block)}):
        if says and isinstance(declared, Fp8Block) and declared.block != block and not faults:
            what = f"weight_block_size is {list(declared.block)}, scales are stored for {list(block)}"
            faults.append(Fault("block-size", "config.json", what))
    return faults


def disagreement(says: Mapping[str, Any], configs: Iterable[Mapping[str, Any]], key: str) -> Iterator[Fault]:
    """Where a field of `quantization_config` is none that the stored formats' own configs have."""
    wanted = dict.fromkeys(sorted(config[key] for config in configs if key in config))
    if says and wanted and says.get(key) not in [*wanted]:
        what = f"{key} is {says.get(key)!r}, weights are stored for {', '.join(map(repr, wanted))}"
        yield Fault("format-not-declared", "config.json", what)
