"""Make a faithful small checkpoint of a known release: its names, dtypes, config keys and files, with random weights.

The same release, recipe and seed give the same bytes. Values are drawn per parameter from its own name and the seed,
rounded to BF16 and then quantized, so a `bf16` checkpoint holds exactly what its FP8 sibling was quantized from.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from dsctl.errors import PlanError, WorkError
from dsctl.header import TensorSpec, build
from dsctl.journal import replace_file
from dsctl.stores import INDEX
from dsctl.tiny.blueprint import Blueprint, Recipe, Stored, blueprint
from dsctl.tiny.texts import texts
from dsctl.tiny.values import bands, encoded

__all__ = ["Blueprint", "Made", "Recipe", "blueprint", "make"]

THREADS = 8


class Made(NamedTuple):
    """What was made: its parameters, values and tensors, the bytes of the tensors, and the weight files.

    `present`: the folder held these very bytes already, and nothing was written.
    """

    release: str
    folder: str
    parameters: int
    values: int
    tensors: int
    nbytes: int
    files: tuple[str, ...]
    sizes: dict[str, int]
    present: bool


def make(release: str, folder: str | Path, recipe: Recipe | None = None) -> Made:
    """Write a small checkpoint of a release (by any of its names) into a new or empty folder.

    A folder that holds the same checkpoint, byte for byte, is left as it is.

    Raises:
        UsageError: no such release, or sizes that fit no checkpoint of it.
        PlanError: the folder holds something else, or the disk has no room.
        WorkError: it cannot be written; nothing is left behind.
    """
    recipe, target = recipe or Recipe(), Path(folder)
    plan = blueprint(release, recipe)
    present = _present(plan, target, recipe.seed)
    if not present:
        _make(plan, target, recipe.seed)
    values = sum(item.param.family.values for item in plan.stored)
    tensors = sum(len(item.places) for item in plan.stored)
    return Made(
        plan.release, str(target), len(plan.stored), values, tensors, plan.nbytes, plan.files, plan.sizes, present
    )


def _make(plan: Blueprint, target: Path, seed: int) -> None:
    created = _claim(target, plan.nbytes)
    try:
        _write(plan, target, seed)
    except BaseException as error:
        _clear(target, created)
        if isinstance(error, OSError):
            raise WorkError(f"{target}: {error.strerror or error}") from None
        raise


def _present(plan: Blueprint, target: Path, seed: int) -> bool:
    """Whether the folder holds this checkpoint and nothing else; it is made once more beside it to tell."""
    names = {*plan.files, *texts(plan.release, plan.config), INDEX}
    try:
        if not target.is_dir() or {path.name for path in target.iterdir()} != names:
            return False
        with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=f".{target.name}-") as folder:
            again = Path(folder, "again")
            _make(plan, again, seed)
            return not any(map(any, filecmp.cmpfiles(target, again, names, shallow=False)[1:]))
    except PlanError:  # no room for the copy
        return False
    except OSError as error:
        raise WorkError(f"{target}: {error.strerror or error}") from None


def _claim(target: Path, nbytes: int) -> bool:
    """Make sure of an empty folder with enough room; whether it had to be made."""
    try:
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise PlanError(f"{target}: exists and is not a folder")
        created = not target.exists()
        if not created and any(target.iterdir()):
            raise PlanError(f"{target}: is not empty", hint="choose a new folder")
        place = next(path for path in (target, *target.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        if free < nbytes:
            raise PlanError(f"{target}: needs {nbytes:,} bytes of disk, {free:,} are free")
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkError(f"{target}: {error.strerror or error}") from None
    return created


def _clear(target: Path, created: bool) -> None:
    for path in target.iterdir():
        path.unlink()
    if created:
        target.rmdir()


def _write(plan: Blueprint, target: Path, seed: int) -> None:
    """All weights under temporary names, then their names, then the small files; the index comes last."""
    specs: list[dict[str, TensorSpec]] = [{} for _ in plan.files]
    for place in plan.places:
        specs[place.file][place.tensor] = place.spec
    parts = [target / f"{name}.part" for name in plan.files]
    files: list[int] = []
    offsets: list[dict[str, int]] = []
    try:
        for part, tensors in zip(parts, specs, strict=True):
            header, begins = build(tensors)
            files.append(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
            offsets.append(begins)
            _pwrite(files[-1], memoryview(header), 0)
        _fill(plan, files, offsets, seed)
    finally:
        for descriptor in files:
            os.close(descriptor)
    for part, name in zip(parts, plan.files, strict=True):
        os.rename(part, target / name)
    index = json.dumps(plan.index(), indent=2) + "\n"
    for name, text in (*texts(plan.release, plan.config).items(), (INDEX, index)):
        replace_file(target / name, text.encode())


def _fill(plan: Blueprint, files: list[int], offsets: list[dict[str, int]], seed: int) -> None:
    deviation = float(plan.config.get("initializer_range") or 0.02)

    def write(item: Stored) -> None:
        for band, values in bands(item.param, seed, deviation):
            for suffix, data in encoded(values, item.codec).items():
                place = item.places[suffix]
                first = item.codec.box(suffix, band, item.param.shape).start[0]
                row = place.spec.nbytes // place.spec.shape[0]
                _pwrite(files[place.file], data, offsets[place.file][place.tensor] + first * row)

    pool = ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), THREADS))
    try:
        for _ in pool.map(write, plan.stored):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _pwrite(descriptor: int, view: memoryview, offset: int) -> None:
    while len(view):
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
