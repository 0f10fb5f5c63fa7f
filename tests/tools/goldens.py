"""Outputs kept as text, at two widths: `python -m tests.tools.goldens` writes them anew after a meant change."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import safetensors

from tests.support.command import dsctl

FOLDER = Path(__file__).parents[1] / "golden"
WIDTHS = (80, 200)


class Golden(NamedTuple):
    """A command whose output is kept; it runs in a folder that holds `tiny` and `tiny-bf16`, made from it."""

    name: str
    words: tuple[str, ...]
    widths: tuple[int, ...] = WIDTHS


GOLDENS = (
    Golden("models", ("models",)),
    Golden("formats", ("formats",)),
    Golden("diff-v3-v3.2", ("diff", "v3", "v3.2")),
    Golden("diff-v2-v3", ("diff", "v2", "v3")),
    Golden("diff-glm-5-glm-5.2", ("diff", "glm-5", "glm-5.2")),
    Golden("diff-v3-r1", ("diff", "v3", "r1")),
    Golden("diff-v3.2-v4-pro", ("diff", "v3.2", "v4-pro")),
    Golden("diff-v4-flash-v4-flash-0731", ("diff", "v4-flash", "v4-flash-0731"), (200,)),
    Golden("diff-v4-flash-v4.1-flash", ("diff", "v4-flash", "v4.1-flash")),
    Golden("diff-tiny-bf16", ("diff", "tiny", "tiny-bf16")),
    Golden("diff-v3-v3.2-markdown", ("diff", "v3", "v3.2", "--markdown"), (80,)),
    Golden("verify-tiny", ("verify", "tiny", "--against", "tiny-bf16")),
    Golden("compare-tiny-bf16", ("compare", "tiny", "tiny-bf16")),
    Golden("inspect-v3.2", ("inspect", "v3.2")),
    Golden("inspect-v3.2-tree", ("inspect", "v3.2", "--tree"), (200,)),
    Golden("inspect-v4-flash", ("inspect", "v4-flash")),
    Golden("inspect-v4.1-flash", ("inspect", "v4.1-flash")),
    Golden("inspect-tiny", ("inspect", "tiny", "--tensors", "*.layers.[01].*", "--fold"), (200,)),
    Golden("plan-v3.2", ("plan", "v3.2", "--to", "bf16")),
    Golden("plan-v4-pro", ("plan", "v4-pro", "--tp", "8")),
    Golden("plan-v4.1-flash", ("plan", "v4.1-flash", "--tp", "8")),
    Golden("plan-v3.2-ep", ("plan", "v3.2", "--tp", "4", "--ep", "64", "--batch", "256", "--to", "bf16")),
)


def make_folders(folder: Path) -> None:
    """What the commands of `GOLDENS` name."""
    dsctl("tiny", "v3.2", folder / "tiny")
    dsctl("convert", folder / "tiny", folder / "tiny-bf16", "--bf16")


def output(golden: Golden, width: int) -> str:
    """What the command prints at a width, run in the current folder; the library's version stands as X.Y.Z."""
    with mock.patch.dict(os.environ, {"COLUMNS": str(width)}):
        return dsctl(*golden.words).replace(f"safetensors {safetensors.__version__}", "safetensors X.Y.Z")


def file(golden: Golden, width: int) -> Path:
    """Where its output is kept."""
    return FOLDER / f"{golden.name}.{width}.txt"


def write() -> None:
    """Write every file anew."""
    with tempfile.TemporaryDirectory() as folder:
        make_folders(Path(folder))
        os.chdir(folder)
        for golden in GOLDENS:
            for width in golden.widths:
                file(golden, width).write_text(output(golden, width))
        os.chdir(FOLDER)


if __name__ == "__main__":
    write()
