"""The drafter of a checkpoint: which one it is, whether it is without its model, and drafters in subfolders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dsctl import models
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.drafters import is_nested, nested
from dsctl.checkpoint.reading import read_json
from dsctl.core.amounts import plural, size
from dsctl.core.errors import FormatError
from dsctl.stores import CONFIG
from dsctl.verify.findings import Finding


def known_drafter(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """The drafter that a checkpoint's tensors show, as `CheckScope.drafter` has it."""
    try:
        found, alone = checkpoint.drafter, checkpoint.alone
    except FormatError:
        return None
    return found.json(alone)


def findings(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Notes on a drafter without its model, and findings about drafters in subfolders."""
    try:
        alone = checkpoint.alone
    except FormatError:
        alone = False
    if alone:
        copies = any(family.twin for family in checkpoint.described if family.mtp)
        left = copies and not any(family.twin for family in checkpoint.families)
        what = f"holds a drafter without its model: {checkpoint.drafter}"
        without = "; it has no copies of the embedding and head, which engines take from the model" * left
        yield Finding("drafter-alone", checkpoint.store.place, what + without)
    for folder in nested(checkpoint.files):
        yield _apart(checkpoint, folder)


def _apart(checkpoint: Checkpoint, folder: str) -> Finding:
    sizes = [
        size for file, size in checkpoint.files.items() if is_nested(file, (folder,)) and file.endswith(".safetensors")
    ]
    declared = _declared(checkpoint, folder)
    if not sizes:
        what = f"declares a drafter{declared}, but the folder has no .safetensors files"
        return Finding("drafter-missing", f"{folder}/{CONFIG}", what)
    what = f"a drafter with a config of its own{declared}: {plural(len(sizes), 'file')}, {size(sum(sizes))}"
    check = f"not checked here: `dsctl verify {checkpoint.store.place}/{folder}`"
    return Finding("drafter-apart", folder, f"{what}; {check}")


def _declared(checkpoint: Checkpoint, folder: str) -> str:
    """The drafter that the config of a subfolder declares, in words; empty if it cannot be read."""
    try:
        config = read_json(checkpoint.store, f"{folder}/{CONFIG}", checkpoint.files)
        return f", {models.recognise(config).drafter(config)}" if config is not None else ""
    except FormatError:
        return ""
