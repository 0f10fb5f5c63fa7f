"""Drafters stored alone: in a folder of their own, or in a subfolder of a checkpoint. Pure, no torch."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from dsctl.core.header import Header
from dsctl.core.params import NO_DRAFTER, Drafter, Family
from dsctl.layouts.layout import Layout
from dsctl.stores import CONFIG

# Subfolders in which loaders look for a drafter with its own config.json: sgl-project/sglang, speculative_hook.py
# (dspark); hiyouga/LLaMA-Factory pull request 10648 (mtp).
FOLDERS = ("dspark", "mtp")


def nested(files: Iterable[str]) -> tuple[str, ...]:
    """The subfolders among these files that hold a drafter with a config of its own."""
    files = frozenset(files)
    return tuple(folder for folder in FOLDERS if f"{folder}/{CONFIG}" in files)


def is_nested(file: str, folders: Iterable[str]) -> bool:
    """Whether a file is in one of these subfolders."""
    return file.startswith(tuple(f"{folder}/" for folder in folders))


def is_alone(drafter: Drafter, headers: Mapping[str, Header], index: Mapping[str, str] | None) -> bool:
    """Whether all stored tensors are a drafter's. An ordinary checkpoint is known by its first tensor."""
    if drafter == NO_DRAFTER or not any(header.names for header in headers.values()):
        return False
    held = all(drafter.has(name) for header in headers.values() for name in header.names)
    return held and all(map(drafter.has, index or ()))


def without_model(families: Iterable[Family], layout: Layout, stored: Container[str]) -> tuple[Family, ...]:
    """The families of a drafter alone. Loaders take a copy of the embedding or head that is absent from the target."""

    def is_there(family: Family) -> bool:
        return any(slot.tensor in stored for param in family.params() for slot in layout.slots(param))

    drafts = (family for family in families if family.mtp)
    return tuple(family for family in drafts if family.twin is None or is_there(family))
