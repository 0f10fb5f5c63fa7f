"""Checkpoints of a few hundred bytes, and every kind of delta between them; and ways to spoil those."""

from __future__ import annotations

import json
import shutil
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsctl.checkpoint.reading import read_header
from dsctl.checkpoint.signed_files import SignedFile, read_entry
from dsctl.core.frames import compressed
from dsctl.core.header import TensorSpec, build
from dsctl.stores.local import LocalFolder
from tests.support import shared_deltas
from tests.support.command import dsctl
from tests.support.raw_tensors import BITS, RawTensor, places_of, save_folder

SIGNED = "dsctl.json"
Change = Callable[[Any], object]


class Little(NamedTuple):
    """A base, a later state with the same tensors and one with others, and deltas by name: `xor`, `overwrite` and
    `theirs` lead to `new`; `own`, which only dsctl can apply, to `other`; `next` leads from `new` to `third`."""

    old: Path
    new: Path
    other: Path
    third: Path
    deltas: dict[str, Path]

    def result(self, kind: str) -> Path:
        return self.other if kind == "own" else self.new


def raw(dtype: str, *shape: int, seed: int = 0) -> RawTensor:
    size = int(np.prod(shape, dtype=int)) * BITS[dtype] // 8
    return RawTensor(dtype, shape, np.random.default_rng([seed, size]).integers(0, 256, size, np.uint8))


def changed(tensor: RawTensor, places: int = 5) -> RawTensor:
    data = tensor.data.copy()
    data[1 : 1 + places] ^= 1
    return tensor._replace(data=data)


def little(folder: Path) -> Little:
    """Make all of them."""
    first = {"a": raw("BF16", 8, 40), "b": raw("F32", 30), "e": raw("U8", 0)}
    second = {"c": raw("U8", 301), "d": raw("BF16", 64)}
    old = save_folder(folder / "old", {"x.safetensors": first, "y.safetensors": second})
    (old / "config.json").write_text('{"a": 1}')
    (old / "old.txt").write_text("old")
    (old / "kept.txt").write_text("kept")
    after = {"x.safetensors": first | {"a": changed(first["a"])}, "y.safetensors": second | {"c": changed(second["c"])}}
    new = save_folder(folder / "new", after)
    shutil.copy(old / "config.json", new)
    (new / "kept.txt").write_text("kept")
    (new / "new.txt").write_text("new")
    more = {"a": changed(first["a"]), "b": raw("F32", 31, seed=1), "e": first["e"]}
    other = save_folder(folder / "other", {"x.safetensors": more, "z.safetensors": {"n": raw("I8", 77, seed=2)}})
    (other / "config.json").write_text('{"a": 2}')
    (other / "kept.txt").write_text("kept")
    deltas = {kind: folder / kind for kind in ("xor", "overwrite", "own")}
    dsctl("delta", "make", old, new, deltas["xor"], "--anyway")
    dsctl("delta", "make", old, new, deltas["overwrite"], "--anyway", "--encoding", "overwrite")
    dsctl("delta", "make", old, other, deltas["own"], "--anyway")
    deltas["theirs"] = shared_deltas.write(old, new, folder / "theirs", files=2)
    third = Path(shutil.copytree(new, folder / "third"))
    for name in ("a", "c"):
        place = places_of(third)[name]
        place.write(changed(RawTensor(place.dtype, place.shape, place.read()), 50).data)
    dsctl("delta", "make", new, third, folder / "next", "--version", 2, "--anyway")
    return Little(old, new, other, third, deltas | {"next": folder / "next"})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def weights(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(folder).items() if name.endswith(".safetensors")}


def said(folder: Path, change: Change, name: str = SIGNED) -> None:
    """Change the JSON of a file."""
    value = json.loads((folder / name).read_text())
    change(value)
    (folder / name).write_text(json.dumps(value))


def record(folder: Path, change: Change) -> None:
    """Change the record of a delta."""
    said(folder, lambda value: change(value["delta"]))


def rewritten(
    folder: Path, file: str, frames: Mapping[str, bytes], sums: Mapping[str, str] | None = None, sign: bool = True
) -> None:
    """Put other frames into a file of a delta; with `sign`, `dsctl.json` lists the file as it is then."""
    header = read_header(LocalFolder.at(folder), file, (folder / file).stat().st_size)
    data = (folder / file).read_bytes()
    held = {name: data[ref.begin : ref.end] for name, ref in header.tensors.items()} | frames
    specs = {name: TensorSpec("U8", (len(frame),)) for name, frame in held.items()}
    head, _ = build(specs, {**header.metadata, **(sums or {})}, in_order=True)
    (folder / file).write_bytes(head + b"".join(held.values()))
    if sign:
        signed_again(folder, file)


def signed_again(folder: Path, *files: str) -> None:
    """Let `dsctl.json`, if there is one, list files as they are now."""
    if not (folder / SIGNED).exists():
        return
    store = LocalFolder.at(folder)

    def change(value: Any) -> None:
        for file in files:
            size = (folder / file).stat().st_size
            like = SignedFile(**value["files"].get(file, {"size": 0, "tree": "0"}))
            value["files"][file] = read_entry(store, file, size, like).json()

    said(folder, change)


def packed(data: bytes) -> str:
    """Bytes as the record keeps a header."""
    return b64encode(compressed(data)).decode()
