"""Small checkpoints for the modules that plan and read: headers made by hand, no torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from tests.support.headers import fp8, lay_out, opened


@pytest.fixture
def source(tmp_path: Path) -> Checkpoint:
    """A checkpoint in FP8 blocks."""
    return fp8(tmp_path / "src")


@pytest.fixture
def decoded(source: Checkpoint, tmp_path: Path) -> Checkpoint:
    """The folder that its conversion to BF16 would make."""
    return opened(lay_out(make_plan(source, Request("bf16")), tmp_path / "decoded"))
