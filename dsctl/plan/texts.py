"""The texts of a target: config.json, indexes, manifests of ranks, and the list of other files to copy. No torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from dsctl.checkpoint.checkpoint import ORIGINAL
from dsctl.checkpoint.drafters import nested
from dsctl.checkpoint.generic_config import generic_config
from dsctl.checkpoint.odd_scales import ODD
from dsctl.checkpoint.quantization import in_drafts, quantization_config
from dsctl.checkpoint.side_files import WHOLE
from dsctl.codecs.codec import Codec
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.plain import TORCH_NAMES, Plain
from dsctl.core.boxes import Box
from dsctl.core.config_fields import edited, quantization_of, text_fields, value_at, with_quantization, with_value
from dsctl.core.header import TensorSpec
from dsctl.core.params import Param
from dsctl.layouts import recorded_name
from dsctl.layouts.folders import folder
from dsctl.layouts.layout import Layout
from dsctl.layouts.manifests import MANIFEST, encode, manifest
from dsctl.plan.grafted import stale
from dsctl.plan.grafted_config import grafted_config, known_text
from dsctl.plan.plan import Placed, PlacedPart, Want
from dsctl.plan.request import DROPPED, KEEP, KEPT, ONLY, RECIPE
from dsctl.plan.target import Target
from dsctl.stores import INDEX, SIGNED, STATEMENT

# Weights in this and other file formats: remaining ones are not copied beside the converted weights.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".ckpt", ".h5", ".msgpack", ".onnx")


# Signatures of a folder's files, by model-signing and as docs/attestation.md names cosign's: false for other files.
SIGNATURES = ("model.sig", "dsctl.sigstore.json")


def carried(target: Target, made: Collection[str] = ()) -> dict[str, int]:
    """The source's other files, copied unchanged, with their sizes; without those that are `made`."""
    checkpoint, request = target.checkpoint, target.request
    derived = checkpoint.layout.texts(text_fields(checkpoint.config or {}))
    replaced = {"config.json", INDEX, SIGNED, STATEMENT, MANIFEST, *SIGNATURES, *derived, *checkpoint.headers}
    part = request.only or request.skip or request.layers or request.experts or request.mtp == ONLY
    quantized = request.to == RECIPE or not target.formats.format.plain
    if target.saves or quantized or part or target.restores:
        replaced |= {ORIGINAL, ODD}
    if target.layout.published:
        replaced.add(WHOLE)
    replaced |= stale(checkpoint, target.grafted)
    folders = tuple(f"{file.rpartition('/')[0]}/" for file in checkpoint.manifests if "/" in file)
    folders += tuple(f"{apart}/" for apart in nested(checkpoint.files))
    return {
        file: size
        for file, size in checkpoint.files.items()
        if file not in replaced and file not in made and not file.endswith(WEIGHTS) and not file.startswith(folders)
    }


def texts(target: Target, wants: Sequence[Want], placed: Mapping[str, tuple[Placed, ...]]) -> dict[str, bytes]:
    """config.json, the index, and the files that a layout of ranks adds.

    Raises:
        PlanError: no single `quantization_config` can describe how the parameters are stored.
    """
    parts = [part for places in placed.values() for one in places for part in one.parts]
    found = {"config.json": _config(target, wants, parts)} if target.checkpoint.config is not None else {}
    config = found.get("config.json", b"")
    found |= rank_texts(target.layout, placed, [want.param for want in wants], config)
    found |= target.layout.texts(text_fields(json.loads(config or b"{}")))
    if target.layout.shares is not None:
        return found
    known = _kept_index(target, parts)
    if known is not None or {part.file for part in parts} != {"model.safetensors"}:
        found[INDEX] = known or index_text(index_of(parts))
    return found


def _kept_index(target: Target, parts: Iterable[PlacedPart]) -> bytes | None:
    """The index of the folder to restore, byte for byte, including its stated sizes."""
    files = _specs(parts)
    return next((known for side in target.kept if (known := side.index(files)) is not None), None)


def _specs(parts: Iterable[PlacedPart]) -> dict[str, dict[str, TensorSpec]]:
    """The target's tensors by file and name."""
    files: dict[str, dict[str, TensorSpec]] = {}
    for part in parts:
        files.setdefault(part.file, {})[part.tensor] = part.spec
    return files


def _config(target: Target, wants: Sequence[Want], parts: Iterable[PlacedPart]) -> bytes:
    config, request = target.checkpoint.config or {}, target.request
    if target.checkpoint.grafts:
        made = grafted_config(target, wants)
        return known_text(target, made) or json_text(made)
    without_mtp = _without_mtp(target, config) if request.mtp == DROPPED else dict(config)
    if request.to == KEEP and not (request.mtp == ONLY and _declares_others(target, wants)):
        return _kept_config(target, without_mtp)
    codec = target.formats.format
    quantization = _declared(target, wants)
    made = _say_published(target, wants, edit_config(without_mtp, codec, quantization))
    if made == config and target.layout.shares is None and target.checkpoint.layout.published:
        return target.checkpoint.store.read("config.json", 0, target.checkpoint.files["config.json"])
    if target.restores and target.original:
        before = target.original.config
        if _decoded(target, before) == _decoded(target, config) and request.mtp == KEPT:
            quantized = [want.codec for want in wants if want.codec.quantized and not want.param.family.table]
            same = (
                _is_original(target, wants, parts)
                if target.checkpoint.generic or target.returns
                else (quantization_of(before) or {}) == _quantization(before, quantized if codec.plain else [codec])
            )
            if same and _agrees(target, wants, before):
                return target.original.texts["config.json"]
    return json_text(made)


def _declares_others(target: Target, wants: Sequence[Want]) -> bool:
    """Whether the source's config declares formats that the drafter is not stored in."""

    def declaring(codecs: Iterable[Codec]) -> set[Codec]:
        return {_as_declared(codec) for codec in codecs if codec.config() is not None}

    held = target.checkpoint.quantization is not None
    return held and declaring(piece.codec for want in wants for piece in want.pieces) != declaring(
        piece.codec
        for param in target.checkpoint.params
        if not param.family.table
        for piece in target.checkpoint.survey.pieces.get(param.name, ())
    )


def _declared(target: Target, wants: Sequence[Want]) -> dict[str, Any] | None:
    """The `quantization_config` of the target."""
    if (found := target.checkpoint.generic) is None:
        alone = target.request.mtp == ONLY or target.checkpoint.alone
        told = [(want.param, want.codec) for want in wants]
        return quantization_config([*told, *(in_drafts(told) if alone else ())])
    stored = [(want.param, want.pieces[0].codec, want.codec) for want in wants]
    return generic_config(stored, target.checkpoint.quantization, found.unread)


def _is_original(target: Target, wants: Iterable[Want], parts: Iterable[PlacedPart]) -> bool:
    """Whether the target is stored as the original in every tensor, so that the original's config is true of it."""
    assert target.original is not None
    files = _specs(parts)
    same = files.keys() == target.original.headers.keys()
    same = same and all(target.original.header(file, specs) for file, specs in files.items())
    return same and all(target.returns.get(want.param.name) == want.codec for want in wants if want.codec.quantized)


def _decoded(target: Target, config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the same checkpoint without quantization."""
    return _say_published(target, (), edit_config(config, Plain(target.formats.base_dtype)))


def _agrees(target: Target, wants: Iterable[Want], config: Mapping[str, Any]) -> bool:
    """Whether a config's fields that declare the format of a role, if it has them, are true of the target."""
    codes = _codes(wants)
    return all(
        {dict(values).get(one) for one in codes[role]} == {said}
        for role, published in target.formats.published.items()
        for name, values in published.fields
        if role in codes and (said := value_at(config, name)) is not None
    )


def _codes(wants: Iterable[Want]) -> dict[str, set[str]]:
    codes: dict[str, set[str]] = {}
    for want in wants:
        codes.setdefault(want.param.role, set()).add(want.codec.form.codes)
    return codes


def _say_published(target: Target, wants: Sequence[Want], config: dict[str, Any]) -> dict[str, Any]:
    """The config with the fields that declare the format of a role in releases, or without them if the target has
    another format."""
    codes = _codes(wants)
    for role, published in target.formats.published.items():
        for name, values in published.fields:
            stored = {dict(values).get(one) for one in codes.get(role, ())}
            config = with_value(config, name, stored.pop() if len(stored) == 1 else None)
    return config


def _without_mtp(target: Target, config: Mapping[str, Any]) -> dict[str, Any]:
    model = target.checkpoint.model
    return dict(config) if model is None else model.without_mtp(config)


def _kept_config(target: Target, config: Mapping[str, Any]) -> bytes:
    """The source's config.json, unchanged or without the MTP layer."""
    checkpoint = target.checkpoint
    if target.layout.shares is None and checkpoint.layout.shares is None:
        return json_text(config)
    known = checkpoint.store.read("config.json", 0, checkpoint.files["config.json"])
    return known if json.loads(known) == config else json_text(config)


def _quantization(before: Mapping[str, Any], stored: Iterable[Codec]) -> Any:
    """The original's own quantization_config, if it declares the same formats as the target's codecs."""
    said, stored = quantization_of(before) or {}, list(stored)
    declared = {_as_declared(codec) for codec in Fp8Block.declared(said)}
    same = declared == {_as_declared(codec) for codec in stored if codec.scale_fmt}
    methods = {(codec.config() or {}).get("quant_method") for codec in stored}
    return said if same and methods == {said.get("quant_method")} else None


def _as_declared(codec: Codec) -> Codec:
    """The codec as a config can declare it: without the dtype of stored scales, and without names."""
    return replace(codec, scale_dtype="F32", dialect="") if isinstance(codec, Fp8Block) else codec


def edit_config(
    config: Mapping[str, Any], codec: Codec, quantization: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A `config.json` for weights stored by `codec`, with matching quantization_config and dtype."""
    made = with_quantization(config, quantization)
    # Mistral's params.json, which calls the hidden size `dim`, has no field for a dtype.
    if codec.plain and "dim" not in text_fields(made):
        made = edited(made, {"dtype" if "dtype" in text_fields(made) else "torch_dtype": TORCH_NAMES[codec.plain]})
    return made


def index_of(parts: Iterable[PlacedPart]) -> dict[str, Any]:
    """The index of these tensors, with one entry each."""
    tensors = {part.tensor: part for part in parts}
    return {
        "metadata": {"total_size": sum(part.spec.nbytes for part in tensors.values())},
        "weight_map": {name: tensors[name].file.rpartition("/")[2] for name in sorted(tensors)},
    }


def rank_texts(
    layout: Layout, placed: Mapping[str, tuple[Placed, ...]], params: Iterable[Param], config: bytes
) -> dict[str, bytes]:
    """The files that complete every rank's folder: config.json, index and manifest."""
    if layout.shares is None or not layout.foldered:
        return {}
    shares = layout.shares
    texts: dict[str, bytes] = {}
    parts: dict[str, list[PlacedPart]] = {folder(rank): [] for rank in shares.present}
    held: dict[str, list[tuple[Param, Box]]] = {shard: [] for shard in parts}
    for param in params:
        for place in placed[param.name]:
            parts[place.slot.shard] += place.parts
            held[place.slot.shard].append((param, place.slot.region))
    for rank in shares.present:
        shard = folder(rank)
        described = manifest(recorded_name(layout.name), rank, shares.ranks, bool(shares.placed), held[shard])
        texts |= {
            f"{shard}/config.json": config,
            f"{shard}/{INDEX}": index_text(index_of(parts[shard])),
            f"{shard}/{MANIFEST}": encode(described),
        }
    return texts


def index_text(index: dict[str, Any]) -> bytes:
    """A faster `json_text` for an index, which holds no fractions."""
    return msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n"


def json_text(value: object) -> bytes:
    """JSON as in every text file of a target."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
