"""What ranks hold computes what the whole model computes: processes of torch.distributed, each with its own folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.peers.forward import Rank, forward, held
from tests.support.checkpoints import tiny
from tests.support.command import dsctl

WORLD = 4
SPREADS = (
    "--tp 4",
    "--tp 4 --ep 2",
    "--tp 4 --layout deepseek",
    "--tp 4 --layout fused",
    "--tp 4 --ep 4 --layout vllm",
)


def test_logits_of_four_processes_are_those_of_one(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    source = tiny(
        tmp_path_factory,
        "v3",
        layers=3,
        experts=8,
        hidden=128,
        heads=8,
        vocab=256,
        intermediate=256,
        bf16=True,
        mtp=False,
    )
    folders = [tmp_path / str(number) for number in range(len(SPREADS))]
    for folder, words in zip(folders, SPREADS, strict=True):
        dsctl("shard", source, folder, *words.split())
    command = [
        sys.executable,
        "-m",
        "tests.peers.forward",
        str(tmp_path / "logits"),
        str(WORLD),
        str(tmp_path / "store"),
    ]
    subprocess.run([*command, *map(str, folders)], check=True, timeout=120, cwd=Path(__file__).parents[2])
    whole = forward(*held(str(source), 0), Rank())
    assert whole.std() > 1e-3
    for words, logits in zip(SPREADS, torch.load(tmp_path / "logits"), strict=True):
        torch.testing.assert_close(logits, whole, rtol=1e-9, atol=1e-9, msg=words)
