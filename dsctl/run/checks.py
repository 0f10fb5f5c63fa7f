"""What is looked at before a run begins, so that it does not fail after hours: room on the disk, scales, files."""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path

from dsctl.checkpoint.scales import refuse_bad_scales
from dsctl.codecs.codec import SCALE, SCALES
from dsctl.core.errors import PlanError
from dsctl.core.files import existing
from dsctl.core.header import TensorRef
from dsctl.plan.plan import Plan
from dsctl.run.consume import gone
from dsctl.stores import Store

# Scales of groups are looked at before a run where they take no more bytes than this, else while they are read: those
# of V4-Pro's experts take 49 GB. A block of more values than a group is `LARGE`.
LOOKED_AT = 1 << 30
LARGE = 1024


def check_space(plan: Plan, target: Path, most: int | None = None) -> None:
    """Refuse a run for which the disk has no room; `most` is what it takes where that is less than its output.

    What dsctl left in the target before is gone on with or removed, and takes no more room.

    Raises:
        PlanError: with how much is needed and how much is free.
    """
    free, needed = shutil.disk_usage(existing(target)).free, plan.bytes_out if most is None else most
    if most is None:
        needed -= sum(_allocated(path) for path in target.rglob("*") if path.is_file() and not path.is_symlink())
    if needed > free:
        raise PlanError(
            f"{target}: needs {needed:,} bytes of disk, {free:,} are free",
            hint=f"free {needed - free:,} bytes, or convert part of it with --only",
        )


def check_source(plan: Plan, store: Store) -> None:
    """Refuse a source that is bound to fail after hours: impossible scales, files to carry over that do not open.

    Raises:
        FormatError: a scale is NaN, infinite, zero or negative. SourceError: a file cannot be read.
    """
    for name in plan.carried if not store.remote else ():
        store.read(name, 0, 0)
    few, many = _scales(plan)
    scales = few + many if sum(ref.nbytes for ref in many) <= LOOKED_AT else few
    refuse_bad_scales(store, [ref for ref in scales if ref.file not in gone(store)])


def _scales(plan: Plan) -> tuple[list[TensorRef], list[TensorRef]]:
    """The scales that a plan computes with or moves: those of large blocks, and those of groups."""
    few: list[TensorRef] = []
    many: list[TensorRef] = []
    for step in plan.steps:
        for region in (*step.reads, *((step.kept,) if step.kept else ())):
            if region.codec.quantized:
                grouped = 0 < prod(region.codec.form.group) < LARGE
                for part in region.parts:
                    if part.name in SCALES:
                        (many if grouped and part.name == SCALE else few).append(region.ref(step.name, part))
    return few, many


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512
