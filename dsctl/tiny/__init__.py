"""Make a small checkpoint of a known release: the same names, dtypes, config keys and files, with random weights.

The same release, recipe and seed give the same bytes. The values of a parameter depend on its name and the seed. They
are rounded to BF16 and then quantized, so a `bf16` checkpoint holds exactly the values that its FP8 sibling encodes.
"""

from __future__ import annotations

import filecmp
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dsctl.core.config_fields import text_fields
from dsctl.core.errors import PlanError, WorkError
from dsctl.core.extras import require_torch
from dsctl.core.files import alone_in, beside, make_folders, refusal, replace_file, sync_folder, write_all
from dsctl.core.header import PT, TensorSpec, build
from dsctl.core.processors import cores
from dsctl.core.progress import Advance
from dsctl.stores import INDEX
from dsctl.tiny.blueprint import Blueprint, TinyRecipe, blueprint
from dsctl.tiny.draws import tasks
from dsctl.tiny.texts import texts
from dsctl.tiny.workers import Filling, fill

# The folder in the target that exists until the checkpoint is finished.
UNFINISHED = ".unfinished"


class Made(NamedTuple):
    """A small checkpoint: how many parameters, values and tensors it has, the tensors' bytes, and the weight files.

    `present`: the folder already held the same bytes, and nothing was written.
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


def make(
    release: str,
    folder: str | Path,
    recipe: TinyRecipe | None = None,
    advance: Advance = lambda nbytes: None,
    workers: int | None = 1,
) -> Made:
    """Write a small checkpoint of a release (by any of its names) to a new or empty folder.

    A folder that holds the same checkpoint, byte for byte, stays unchanged. A folder that a killed run left unfinished
    is made again from the start. `advance` is called with the tensors' bytes as they are written. With more than one
    worker (None: one per core), processes make a large checkpoint, and the calling script needs the
    `if __name__ == "__main__":` that multiprocessing asks for. Otherwise at most 8 threads do.

    Raises:
        UsageError: no such release, or sizes that are impossible for it.
        PlanError: torch is not installed, the folder holds other files, or the disk has no room.
        ResumeError: another run is making a checkpoint in the folder.
        WorkError: it cannot be written; nothing is left behind, and the same call starts again.
    """
    recipe = recipe or TinyRecipe()
    return make_planned(blueprint(release, recipe), folder, recipe.seed, advance, workers)


def make_planned(
    plan: Blueprint,
    folder: str | Path,
    seed: int = 0,
    advance: Advance = lambda nbytes: None,
    workers: int | None = 1,
) -> Made:
    """Write a planned checkpoint, see `make`."""
    target, how = Path(folder), _How(seed, workers or cores(), advance)
    require_torch("making weights")
    present = _present(plan, target, how)
    if not present:
        _make(plan, target, how)
    values = sum(item.param.family.values for item in plan.stored)
    tensors = sum(len(item.places) for item in plan.stored)
    return Made(
        plan.release, str(target), len(plan.stored), values, tensors, plan.nbytes, plan.files, plan.sizes, present
    )


class _How(NamedTuple):
    seed: int
    workers: int
    advance: Advance


def _make(plan: Blueprint, target: Path, how: _How) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise PlanError(f"{target}: exists and is not a folder")
    created = not target.exists()
    make_folders(target)
    with alone_in(target):
        try:
            _claim(target, plan)
            try:
                _write(plan, target, how)
            except BaseException:
                _empty(target)
                raise
        except BaseException as error:
            if created:
                target.rmdir()
            if isinstance(error, OSError):
                raise refusal(target, error, WorkError) from None
            raise


def _present(plan: Blueprint, target: Path, how: _How) -> bool:
    """Whether the folder holds this checkpoint and nothing else; a second copy is made beside it to compare."""
    names = _names(plan)
    try:
        if not target.is_dir() or _entries(target) != _with_folders(names):
            return False
        # Always the same name, so that the files of a killed run are found.
        again = target.absolute().with_name(f".{target.name}-again")
        _make(plan, again, how)
        try:
            return not any(map(any, filecmp.cmpfiles(target, again, names, shallow=False)[1:]))
        finally:
            shutil.rmtree(again)
    except PlanError:  # no room for the copy
        return False
    except OSError as error:
        raise refusal(target, error, WorkError) from None


def _names(plan: Blueprint) -> set[str]:
    """The files of a finished checkpoint."""
    return {*plan.files, *texts(plan.release, plan.config, plan.other_files), INDEX}


def _entries(folder: Path) -> set[str]:
    """All files and folders in a folder by relative name, folders with a slash at the end; links are not followed."""
    found = ((path, path.relative_to(folder).as_posix()) for path in folder.rglob("*"))
    return {f"{name}/" if path.is_dir() and not path.is_symlink() else name for path, name in found}


def _with_folders(names: Iterable[str]) -> set[str]:
    """Files and the folders that contain them."""
    names = set(names)
    return names | {f"{parent}/" for name in names for parent in Path(name).parents[:-1]}


def _unfinished(target: Path, plan: Blueprint) -> bool:
    """Whether a killed run left the folder: it holds only the working folder, and files with a checkpoint's names."""
    working = target / UNFINISHED
    if working.is_symlink() or not working.is_dir():
        return False
    names = _names(plan)
    known = {*names, *(f"{name}.part" for name in plan.files), *(str(beside(Path(name))) for name in names)}
    inside = _entries(working)
    outside = {name for name in _entries(target) if name.partition("/")[0] != UNFINISHED}
    return outside <= _with_folders(names) and inside <= _with_folders(known)


def _claim(target: Path, plan: Blueprint) -> None:
    """Make sure that a folder is empty, emptying an unfinished one, and that its disk has room."""
    if any(target.iterdir()):
        if not _unfinished(target, plan):
            raise PlanError(f"{target}: is not empty", hint="choose a new folder")
        _empty(target)
    free = shutil.disk_usage(target).free
    if free < plan.nbytes:
        raise PlanError(f"{target}: needs {plan.nbytes:,} bytes of disk, but only {free:,} are free")


def _empty(target: Path) -> None:
    """Remove the files of an unfinished run; the working folder last, because it marks the others as dsctl's."""
    working = target / UNFINISHED
    found = [path for path in target.rglob("*") if path != working]
    for path in sorted(found, key=lambda path: -len(path.parts)):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    if working.is_dir():
        working.rmdir()


def _write(plan: Blueprint, target: Path, how: _How) -> None:
    """Write all files to a working folder, and move them to their places when they are on the disk, the index last.

    While the working folder exists, the checkpoint is unfinished.
    """
    working = target / UNFINISHED
    working.mkdir()
    sync_folder(target)
    specs: list[dict[str, TensorSpec]] = [{} for _ in plan.files]
    for place in plan.places:
        specs[place.file][place.tensor] = place.spec
    parts = [working / f"{name}.part" for name in plan.files]
    files: list[int] = []
    offsets: list[dict[str, int]] = []
    try:
        for part, tensors in zip(parts, specs, strict=True):
            header, begins = build(tensors, {} if plan.bare else PT)
            files.append(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666))
            offsets.append(begins)
            write_all(files[-1], header, 0)
        deviation = float(text_fields(plan.config).get("initializer_range") or 0.02)
        filling = Filling(tuple(part.absolute() for part in parts), how.seed, deviation)
        fill(filling, tasks(plan, offsets), plan.nbytes, how.workers, how.advance)
        for descriptor in files:
            os.fsync(descriptor)
    finally:
        for descriptor in files:
            os.close(descriptor)
    index = json.dumps(plan.index(), indent=2) + "\n"
    small = {**texts(plan.release, plan.config, plan.other_files), INDEX: index}
    inner = {Path(name).parent for name in small if "/" in name}
    for folder in (start / one for one in sorted(inner) for start in (working, target)):
        folder.mkdir()
    for name, text in small.items():
        replace_file(working / name, text.encode())
    for part, name in zip(parts, plan.files, strict=True):
        os.rename(part, target / name)
    for name in small:
        os.rename(working / name, target / name)
    sync_folder(target)
    _remove_empty(working)
    for folder in (target / one for one in inner):
        sync_folder(folder)
    sync_folder(target.absolute().parent)


def _remove_empty(folder: Path) -> None:
    for inner in folder.iterdir():
        inner.rmdir()
    folder.rmdir()
