"""Missing files that the index names, and their tensors. Does not load torch."""

from __future__ import annotations

from collections.abc import Sequence

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.pieces import ABSENT, Fault
from dsctl.layouts.naming import stored_name


def lost(checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """The files in the index that are missing or cannot be read, each with its tensors."""
    found: dict[str, list[str]] = {}
    for name, file in (checkpoint.index or {}).items():
        if file not in checkpoint.headers:
            found.setdefault(file, []).append(name)
    return {file: tuple(names) for file, names in found.items()}


def with_tensors(checkpoint: Checkpoint, what: str, names: Sequence[str]) -> str:
    """The description of a lost file's fault, with the number of its tensors."""
    return f"{what}; it holds {len(names):,} of {len(checkpoint.index or {}):,} tensors"


def of_files(checkpoint: Checkpoint, faults: list[Fault]) -> tuple[list[Fault], list[Fault]]:
    """Faults of missing files, and the other faults without those that follow from a missing file."""
    files = lost(checkpoint)
    if not files:
        return [], faults
    missing = {fault.where: fault for fault in faults if fault.code == "missing-shard"}
    rest = []
    for fault in faults:
        file = _file_of(checkpoint, fault) if fault.code in ABSENT else None
        if file is not None:
            missing.setdefault(file, Fault("missing-shard", file, "missing, but the index names it"))
        elif fault.code != "missing-shard":
            rest.append(fault)
    summed = [
        fault._replace(what=with_tensors(checkpoint, fault.what, files[file]), details=files[file])
        for file, fault in missing.items()
    ]
    return summed, rest


def _file_of(checkpoint: Checkpoint, fault: Fault) -> str | None:
    """The lost file, if any, that holds the missing tensor of a fault according to the index."""
    index = checkpoint.index or {}
    parts = dict.fromkeys((codec.dialect, part) for codec in checkpoint.codecs for part in codec.parts)
    files = (index.get(stored_name(checkpoint.layout, fault.where, *part)) for part in parts)
    return next((file for file in files if file is not None and file not in checkpoint.headers), None)
