"""Where a target's stored tensors go, and the texts that tell of it: indexes and the manifests of ranks. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from dsctl.core.boxes import Box
from dsctl.core.header import TensorSpec
from dsctl.core.params import Param
from dsctl.layouts import Layout, Slot
from dsctl.layouts.hf import folder
from dsctl.layouts.manifests import MANIFEST, encode, manifest
from dsctl.stores import INDEX


class PlacedPart(NamedTuple):
    """One stored tensor of the target: codec suffix, tensor name, file, what it is, its bytes where these are known."""

    suffix: str
    tensor: str
    file: str
    spec: TensorSpec
    stated: bytes | None = None


class Placed(NamedTuple):
    """A slot of the target and its stored tensors."""

    slot: Slot
    parts: tuple[PlacedPart, ...]


def index_of(parts: Iterable[PlacedPart]) -> dict[str, Any]:
    """The index of these tensors, each named once."""
    tensors = {part.tensor: part for part in parts}
    return {
        "metadata": {"total_size": sum(part.spec.nbytes for part in tensors.values())},
        "weight_map": {name: tensors[name].file.rpartition("/")[2] for name in sorted(tensors)},
    }


def rank_texts(
    layout: Layout, placed: Mapping[str, tuple[Placed, ...]], params: Iterable[Param], config: bytes
) -> dict[str, bytes]:
    """What makes every rank's folder complete: config.json, index and manifest."""
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
        told = manifest(layout.name, rank, shares.ranks, bool(shares.placed), held[shard])
        texts |= {
            f"{shard}/config.json": config,
            f"{shard}/{INDEX}": index_text(index_of(parts[shard])),
            f"{shard}/{MANIFEST}": encode(told),
        }
    return texts


def index_text(index: dict[str, Any]) -> bytes:
    """The same as `json_text` for an index, which holds no fractions: in less time."""
    return msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n"


def json_text(value: object) -> bytes:
    """JSON as every text file of a target has it."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
