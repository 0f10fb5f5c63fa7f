"""What a folder holds: the bytes of its files, and its tensors."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes by its place in the folder, but no audit and no statement: both name the source."""
    named = ("dsctl.json", "dsctl.intoto.json")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in named)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder's own safetensors files by name."""
    files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: tensor for file in files for name, tensor in file.items()}


def linked(folder: Path, place: Path) -> Path:
    """A copy of a folder for tests that change no weights in place: files of weights are hard links."""
    return Path(shutil.copytree(folder, place, copy_function=_link))


def _link(path: str, place: str) -> str:
    if not path.endswith(".safetensors"):
        return str(shutil.copy2(path, place))
    os.link(path, place)
    return place
