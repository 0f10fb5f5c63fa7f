"""Checks before a run begins, so that it does not fail after hours: room on the disk, scales, files."""

from __future__ import annotations

import shutil
from pathlib import Path

from dsctl.checkpoint.scales import refuse_bad_scales, scales_to_check
from dsctl.codecs.codec import SCALES, Codec
from dsctl.core.errors import PlanError
from dsctl.core.files import existing
from dsctl.core.header import TensorRef
from dsctl.plan.plan import Plan
from dsctl.run.consume import gone
from dsctl.run.merges import refuse_bad_adapter
from dsctl.stores import Store


def check_space(plan: Plan, target: Path, most: int | None = None) -> None:
    """Refuse a run for which the disk has no room; `most` are the bytes it takes if fewer than its output.

    Files of an earlier run in the target are continued or removed, so their space counts as free.

    Raises:
        PlanError: with the bytes needed and the bytes free.
    """
    free, needed = shutil.disk_usage(existing(target)).free, plan.bytes_out if most is None else most
    if most is None:
        needed -= sum(_allocated(path) for path in target.rglob("*") if path.is_file() and not path.is_symlink())
    if needed > free:
        raise PlanError(
            f"{target}: needs {needed:,} bytes of disk, but only {free:,} are free",
            hint=f"free {needed - free:,} bytes, or convert a part with --only",
        )


def check_source(plan: Plan, store: Store) -> None:
    """Refuse a source that would fail after hours: impossible scales, or files to copy that do not open.

    Raises:
        FormatError: a scale is NaN, infinite, zero or negative, or a value of an adapter is not finite.
        SourceError: a file cannot be read.
    """
    for name in plan.carried if not store.remote else ():
        store.read(name, 0, 0)
    refuse_bad_adapter(plan, store)
    refuse_bad_scales(store, [ref for ref in scales_to_check(_scales(plan)) if ref.file not in gone(store)])


def _scales(plan: Plan) -> dict[TensorRef, Codec]:
    """The scales that a plan decodes with or copies, and their codecs."""
    regions = ((step, region) for step in plan.steps for region in (*step.reads, *((step.kept,) if step.kept else ())))
    return {
        region.ref(step.name, part): region.codec
        for step, region in regions
        if region.codec.quantized
        for part in region.parts
        if part.name in SCALES
    }


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512
