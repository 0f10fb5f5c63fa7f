"""A hundred random kills, one after another, of runs that then finish: `pytest tests/soak -m soak`."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.checkpoints import tiny
from tests.command import dsctl, run
from tests.flows.test_resume import command, contents, killed

KILLS = 100


@pytest.mark.soak
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_hundred_kills_change_no_byte(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, workers: str) -> None:
    source = tiny(tmp_path_factory, "v3.2")
    began = time.monotonic()
    assert run("convert", source, tmp_path / "whole", "--bf16").returncode == 0
    seconds = time.monotonic() - began
    whole, chance, kills, round_ = contents(tmp_path / "whole"), random.Random(7), 0, 0
    while kills < KILLS // 2:
        target, round_ = tmp_path / f"out-{round_}", round_ + 1
        for _ in range(chance.randint(1, 4)):
            moment = chance.uniform(0.1, 1.1) * seconds
            kills += killed(command(source, target, "--bf16", "--workers", workers), moment) != 0
        dsctl("convert", source, target, "--bf16", "--workers", workers)
        assert contents(target) == whole
