"""The manifest of a rank's folder: the layout, the sizes, and the boxes of parameters that it holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

import msgspec

from dsctl.core.boxes import Box
from dsctl.core.errors import FormatError
from dsctl.core.params import Param
from dsctl.layouts.ranks import Ranks

MANIFEST = "dsctl-rank.json"
MOST = 1 << 16
Size = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Number = Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]


class Held(msgspec.Struct):
    """Parameters of one family for which a rank holds the same box: `box` is (start, stop) of each dimension."""

    template: str
    shape: tuple[int, ...]
    box: tuple[tuple[int, int], ...]
    layers: tuple[Number, ...] = ()
    experts: tuple[Number, ...] = ()


class Manifest(msgspec.Struct):
    """One rank's share; `dealt`: experts are not assigned in contiguous blocks."""

    layout: str
    rank: Number
    tp: Size
    ep: Size
    pp: Size
    dealt: bool
    parameters: tuple[Held, ...]

    @property
    def ranks(self) -> Ranks:
        return Ranks(self.tp, self.ep, self.pp)


def manifest(layout: str, rank: int, ranks: Ranks, dealt: bool, held: Iterable[tuple[Param, Box]]) -> Manifest:
    """A rank's holdings, families with equal boxes grouped."""
    return Manifest(layout, rank, ranks.tp, ranks.ep, ranks.pp, dealt, tuple(_folded(held)))


def _folded(held: Iterable[tuple[Param, Box]]) -> Iterator[Held]:
    groups: dict[tuple[str, Box], dict[int | None, list[int]]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for param, box in held:
        shapes[param.template] = param.shape
        experts = groups.setdefault((param.template, box), {}).setdefault(param.layer, [])
        if param.expert is not None:
            experts.append(param.expert)
    for (template, box), layers in groups.items():
        alike: dict[tuple[int, ...], list[int]] = {}
        for layer, experts in layers.items():
            alike.setdefault(tuple(experts), []).extend([] if layer is None else [layer])
        spans = tuple(zip(box.start, box.stop, strict=True))
        for experts_, numbers in alike.items():
            yield Held(template, shapes[template], spans, tuple(numbers), experts_)


def encode(one: Manifest) -> bytes:
    """A manifest's JSON."""
    return msgspec.json.encode(one) + b"\n"


def decode(raw: bytes, file: str) -> Manifest:
    """A manifest from its JSON.

    Raises:
        FormatError: it is not a manifest, or contradicts itself.
    """
    try:
        found = msgspec.json.decode(raw, type=Manifest)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{file}: is not a rank's manifest: {error}") from None
    ranks = found.ranks
    if not found.rank < ranks.world <= MOST or max(ranks.tp, ranks.ep) % min(ranks.tp, ranks.ep):
        raise FormatError(f"{file}: rank {found.rank} does not exist with TP {ranks.tp}, EP {ranks.ep}, PP {ranks.pp}")
    return found


def dealt(manifests: Iterable[Manifest]) -> dict[int, tuple[frozenset[int], ...]]:
    """The experts of every layer's parts, as far as these manifests show; empty for contiguous blocks."""
    found: dict[int, list[set[int]]] = {}
    for one in manifests:
        if not one.dealt:
            continue
        part = one.rank % one.ranks.stage // one.ranks.expert_cut
        for held in one.parameters:
            for layer in held.layers if held.experts else ():
                found.setdefault(layer, [set() for _ in range(one.ep)])[part].update(held.experts)
    return {layer: tuple(map(frozenset, parts)) for layer, parts in found.items()}


def spread(manifests: Mapping[str, Manifest], place: str) -> Ranks:
    """The sizes that all manifests agree on.

    Raises:
        FormatError: they disagree.
    """
    kinds = {(one.layout, one.tp, one.ep, one.pp, one.dealt): file for file, one in manifests.items()}
    if len(kinds) > 1:
        one, other = list(kinds.values())[:2]
        raise FormatError(f"{place}: {one} and {other} split a model in different ways")
    numbers: dict[int, str] = {}
    for file, manifest_ in manifests.items():
        if manifest_.rank in numbers:
            raise FormatError(f"{place}: {numbers[manifest_.rank]} and {file} are both for rank {manifest_.rank}")
        numbers[manifest_.rank] = file
    return next(iter(manifests.values())).ranks
