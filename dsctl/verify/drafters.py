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
from dsctl.core.params import NO_DRAFTER
from dsctl.stores import CONFIG
from dsctl.verify.findings import Finding

# The stage of a drafter that SGLang's script wrote (sgl-project/sglang, scripts/export_deepseek_nextn.py).
_EXPORTED = ("model.layers.0",)


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
        yield Finding("drafter-alone", checkpoint.store.place, _without_model(checkpoint))
    for folder in nested(checkpoint.files):
        yield _apart(checkpoint, folder)


def _without_model(checkpoint: Checkpoint) -> str:
    what = f"holds a drafter without its model: {checkpoint.drafter}"
    copies = any(family.twin for family in checkpoint.described if family.mtp)
    if copies and not any(family.twin for family in checkpoint.families):
        what += "; it has no copies of the embedding and head, which engines take from the model"
    if checkpoint.drafter.stages == _EXPORTED:
        what += "; in the form of SGLang's own export, which vLLM does not load"
    return what


def _apart(checkpoint: Checkpoint, folder: str) -> Finding:
    files = (file for file in checkpoint.files if is_nested(file, (folder,)) and file.endswith(".safetensors"))
    sizes = [checkpoint.files[file] for file in files]
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
        found = NO_DRAFTER if config is None else models.recognise(config).drafter(config)
    except FormatError:
        return ""
    return f", {found}" if found.kind else ""
