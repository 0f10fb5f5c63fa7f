"""Which layout a checkpoint's files are in, told by the manifests of its ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from dsctl.errors import FormatError
from dsctl.layouts import LAYOUTS, Layout
from dsctl.layouts.deepseek import file_of
from dsctl.layouts.hf import Hf, folder
from dsctl.layouts.manifests import MANIFEST, Manifest, dealt, spread
from dsctl.layouts.ranks import Ranks, Shares
from dsctl.models import Family


def manifest_files(files: Iterable[str]) -> list[str]:
    """The files that are manifests: one in a folder of a rank, or one in each such folder."""
    parts = [(file, file.split("/")) for file in files if file.rpartition("/")[2] == MANIFEST]
    return [file for file, names in parts if len(names) == 1 or (len(names) == 2 and names[0].startswith("rank-"))]


def _files_of_ranks(files: frozenset[str]) -> int:
    """How many ranks the files of DeepSeek's inference layout are for; 0 where these are no such files."""
    world = len(files)
    return world if files and files == {file_of(rank, world) for rank in range(world)} else 0


def recognise(
    files: Iterable[str], manifests: Mapping[str, Manifest], families: Callable[[], Iterable[Family]], place: str
) -> Layout:
    """The layout of a checkpoint with these safetensors files and manifests; `place` is what a person calls it.

    Raises:
        FormatError: the manifests contradict each other.
    """
    if not manifests:
        world = _files_of_ranks(frozenset(files))
        shares = Shares.of(families(), Ranks(world, world)) if world else None
        return LAYOUTS["deepseek"].arranged(families(), shares) if shares else LAYOUTS["hf"]
    ranks = spread(manifests, place)
    present = tuple(sorted(one.rank for one in manifests.values()))
    one = next(iter(manifests.values()))
    if one.layout not in LAYOUTS:
        raise FormatError(f"{place}: unknown layout {one.layout!r}", hint=f"known: {', '.join(LAYOUTS)}")
    shares = Shares.of(families(), ranks, present, dealt(manifests.values()))
    if MANIFEST in manifests:
        return Hf(shares, folder(one.rank))
    for file, said in manifests.items():
        if file != f"{folder(said.rank)}/{MANIFEST}":
            raise FormatError(f"{file}: is of rank {said.rank}, in another's folder")
    return LAYOUTS[one.layout].arranged(families(), shares)
