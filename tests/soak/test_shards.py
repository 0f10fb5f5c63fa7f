"""Every size, format and release of shard and merge, and real kills on the way."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsctl.codecs import CODECS
from tests.flows.test_shard import EVEN, contents, source_of, there_and_back
from tests.support.checkpoints import tiny
from tests.support.command import dsctl, run

pytestmark = pytest.mark.soak
SIZES = ("--tp 1", "--tp 2", "--tp 4", "--tp 8", "--ep 2", "--ep 4", "--ep 8", "--tp 4 --ep 2", "--tp 8 --ep 8")


@pytest.mark.parametrize("words", SIZES)
@pytest.mark.parametrize("kind", ["v3", "v3.1", "v3.2", "v3.2-bf16"])
def test_every_size_is_there_and_back(
    kind: str, words: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    there_and_back(source_of(kind, tmp_path_factory), tmp_path, *words.split())


@pytest.mark.parametrize("to", sorted(CODECS))
def test_every_format_is_cut_between_its_groups(
    to: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    dsctl("convert", tiny(tmp_path_factory, "v3.2", **EVEN), tmp_path / "whole", "--to", to)
    there_and_back(tmp_path / "whole", tmp_path, "--tp", 4, "--ep", 2)


@pytest.mark.parametrize("words", [["--tp", "8"], ["--tp", "4", "--bf16"], ["--layout", "deepseek", "--tp", "4"]])
def test_a_killed_run_resumes_to_the_same_bytes(
    words: list[str], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    even = tiny(tmp_path_factory, "v3.2", **EVEN)
    began = time.monotonic()
    assert run("shard", even, tmp_path / "direct", *words, "--workers", 1).returncode == 0
    took = time.monotonic() - began
    command = [sys.executable, "-m", "dsctl", "shard", str(even), str(tmp_path / "out"), *words, "--workers", "1"]
    for share in (0.5, 0.6, 0.7, 0.8, 0.9):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(share * took)
        process.kill()
        process.wait()
    dsctl("shard", even, tmp_path / "out", *words)
    assert contents(tmp_path / "out") == contents(tmp_path / "direct")
