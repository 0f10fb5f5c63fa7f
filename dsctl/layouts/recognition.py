"""Recognize a checkpoint's layout by its ranks' manifests, or by the names of its files and tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dsctl.core.errors import FormatError, PlanError, UsageError
from dsctl.core.header import Header, TensorSpec
from dsctl.core.params import Family
from dsctl.layouts import LAYOUTS, deepseek, layout_name, vllm
from dsctl.layouts.folders import folder
from dsctl.layouts.layout import Layout, native
from dsctl.layouts.manifests import MANIFEST, Manifest, dealt, spread
from dsctl.layouts.ranks import Ranks, Shares, check
from dsctl.layouts.transformers import is_marked, met

# Tensors of these modules exist in joined layouts only.
_JOINED = ("gate_up_proj", "fused_qkv_a_proj")
Families = Callable[[], tuple[Family, ...]]


def manifest_files(files: Iterable[str]) -> list[str]:
    """The manifests among these files: the one of a rank's folder, or one in each rank's folder."""
    parts = [(file, file.split("/")) for file in files if file.rpartition("/")[2] == MANIFEST]
    return [file for file, names in parts if len(names) == 1 or (len(names) == 2 and names[0].startswith("rank-"))]


def recognise(
    headers: Mapping[str, Header], manifests: Mapping[str, Manifest], families: Families, place: str
) -> Layout:
    """The layout of a checkpoint with these safetensors files and manifests; `place` names it in messages.

    Raises:
        FormatError: the manifests contradict each other.
    """
    if manifests:
        return _told(manifests, families, place)
    kind, world = of_ranks(headers), len(headers)
    if kind == "deepseek":
        return _deepseek(headers, families, place)
    if kind == "vllm":
        return _vllm(headers, families, world, place)
    joined = any(mark in name for header in headers.values() for name in header.names for mark in _JOINED)
    if joined or any(is_marked(name) for header in headers.values() for name in header.names):
        named = met(families(), {name for header in headers.values() for name in header.names})
        if named is not None:
            return named
    return _joined(headers, families) if joined else LAYOUTS["published"]


def of_ranks(files: Iterable[str]) -> str:
    """The layout, if any, with one file per rank under such names; ranks may be missing if names show the number."""
    names = frozenset(files)
    worlds = {place and place[1] for place in map(deepseek.rank_of, names)}
    if len(worlds) == 1 and None not in worlds:
        return "deepseek"
    return "vllm" if names and names == {vllm.file_of(rank) for rank in range(len(names))} else ""


def _shares(families: Families, ranks: Ranks, place: str, **more: Any) -> Shares:
    """The ranks' shares of a model.

    Raises:
        FormatError: the model cannot be split so.
    """
    try:
        check(families(), ranks, place)
    except (PlanError, UsageError) as error:
        raise FormatError(f"{place}: {error.message}") from None
    for family in families():
        length = 0 if family.split is None or family.table else family.shape[family.split]
        if length % ranks.cut(family):
            raise FormatError(f"{place}: {family.template}: {length:,} is not a multiple of {ranks.cut(family)} ranks")
    return Shares.of(families(), ranks, **more)


def _deepseek(files: Iterable[str], families: Families, place: str) -> Layout:
    """The layout of these ranks' files; some files may be missing."""
    places = [found for file in files if (found := deepseek.rank_of(file))]
    present, world = tuple(sorted(rank for rank, _ in places)), places[0][1]
    if len(present) < world and not families():
        return LAYOUTS["published"]
    shares = _shares(families, Ranks(world, world), place, present=present)
    return LAYOUTS["deepseek"].arranged(families(), shares)


def _told(manifests: Mapping[str, Manifest], families: Families, place: str) -> Layout:
    ranks = spread(manifests, place)
    present = tuple(sorted(one.rank for one in manifests.values()))
    one = next(iter(manifests.values()))
    name = layout_name(one.layout)
    if name not in LAYOUTS:
        raise FormatError(f"{place}: unknown layout {one.layout!r}", hint=f"known: {', '.join(LAYOUTS)}")
    shares = _shares(families, ranks, place, present=present, placed=dealt(manifests.values()))
    if MANIFEST in manifests:
        return LAYOUTS[name].arranged(families(), shares, folder(one.rank))
    for file, said in manifests.items():
        if file != f"{folder(said.rank)}/{MANIFEST}":
            raise FormatError(f"{file}: is for rank {said.rank}, in a different rank's folder")
    return LAYOUTS[name].arranged(families(), shares)


def _vllm(headers: Mapping[str, Header], families: Families, world: int, place: str) -> Layout:
    """vLLM's files; the first stacked experts show whether experts are whole or cut."""
    stored = headers[vllm.file_of(0)].tensors
    dealt_out = all(family.experts % world == 0 for family in families())
    layout = LAYOUTS["vllm"]
    for ranks in (*(Ranks(world, world),) * dealt_out, Ranks(world)):
        layout = LAYOUTS["vllm"].arranged(families(), _shares(families, ranks, place))
        slots = [layout.slots(next(family.params()))[0] for family in families() if family.experts and not family.mtp]
        shapes = [
            stored[slot.tensor].spec.shape == slot.stacked(TensorSpec("U8", slot.container)).shape
            for slot in slots
            if slot.tensor in stored
        ]
        if all(shapes):
            break
    return layout


def _joined(headers: Mapping[str, Header], families: Families) -> Layout:
    """The layout with joined tensors whose names match these tensors."""
    if native(families()):
        return LAYOUTS["published"]
    names = {name for header in headers.values() for name in header.names}
    for layout in (LAYOUTS["fused"].arranged(families(), None), LAYOUTS["stacked"].arranged(families(), None)):
        first = [layout.slots(next(family.params()))[0].tensor for family in families() if family.fused]
        if any(tensor in names for tensor in first):
            return layout
    return LAYOUTS["published"]
