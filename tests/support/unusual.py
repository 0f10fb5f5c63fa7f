"""A small DeepSeek V4 whose experts have scales that do not follow from their values, as some of a trained one's do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.support.checkpoints import tiny

SIZES = {
    "layers": 5, "experts": 4, "hidden": 256, "heads": 2, "vocab": 128, "moe_intermediate": 128, "shards": 3,
}  # fmt: skip

Tensors = dict[str, torch.Tensor]


def unusual(factory: pytest.TempPathFactory, release: str) -> Path:
    """A checkpoint of a release, made once: tests read it and write elsewhere."""
    if release not in _MADE:
        folder = factory.mktemp("unusual") / release
        sizes = SIZES | ({"layers": 8} if release == "v4.1-flash" else {})
        shutil.copytree(tiny(factory, release, **sizes), folder)
        rewrite(folder, _with_odd_scales)
        _MADE[release] = folder
    return _MADE[release]


_MADE: dict[str, Path] = {}


def rewrite(folder: Path, change: Callable[[Tensors], None]) -> None:
    """Change stored tensors, in whatever files they are."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            held = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a dict
        change(held)
        save_file(held, file)


def _with_odd_scales(held: Tensors) -> None:
    """Codes of zero with a sign, groups of small codes alone, groups of zeros with a large scale."""
    for name, tensor in held.items():
        if ".experts." not in name or tensor.dtype != torch.int8:
            continue
        codes = tensor.view(torch.uint8)
        codes[0, :16] = 0x80
        codes[1, 16:32] = 0x12
        codes[2, :16] = 0x07
        codes[5, :] = 0
        if ".experts.1.w2." in name:
            codes &= 0x99


def same_files(one: Path, other: Path) -> None:
    """Every file of one folder is in the other, byte for byte."""
    for path in (path for path in one.rglob("*") if path.is_file()):
        assert (other / path.relative_to(one)).read_bytes() == path.read_bytes(), path.name
