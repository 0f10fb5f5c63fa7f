"""Random faults of reading, one run after another on the same folders, each told in a line; then a run that finishes.

Those of writing are in test_errors.py, kills at other moments in test_kills.py.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.flows.test_resume import command, contents
from tests.support.checkpoints import tiny
from tests.support.command import dsctl
from tests.support.faults import environment, fault

FAULTS = int(os.environ.get("DSCTL_SOAK_FAULTS", "100"))
# What befalls which call, and the exit codes that may follow; a killed worker is 41, a killed driver the signal.
KINDS = (
    ("EIO", "preadv", ".safetensors", (10,)),
    ("EIO", "pread", "", (10,)),
    ("kill", "preadv", ".safetensors", (41, -signal.SIGKILL)),
)


@pytest.mark.soak
def test_random_faults_of_reading_change_no_byte(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    source, chance = tiny(tmp_path_factory, "v3.2"), random.Random(int(os.environ.get("DSCTL_TEST_SEED", "11")))
    dsctl("convert", source, tmp_path / "whole", "--bf16", "--workers", "1")
    whole, met, finished, round_ = contents(tmp_path / "whole"), Counter[str](), 0, 0
    while met.total() < FAULTS:
        target, round_ = tmp_path / f"out-{round_}", round_ + 1
        for _ in range(chance.randint(1, 6)):
            what, call, path, codes = chance.choice(KINDS)
            one = fault(what, call, path, after=chance.randint(0, 60), chance=chance.choice((1.0, 0.3)))
            arguments = command(source, target, "--bf16", "--workers", chance.choice("112"))
            done = subprocess.run(arguments, env=environment(one), capture_output=True, text=True, check=False)
            if done.returncode == 0:
                finished += 1
                break
            assert done.returncode in codes, (one, done.returncode, done.stderr)
            told = done.stderr.count("error: ") == 1 or done.returncode == -signal.SIGKILL
            assert told and "Traceback" not in done.stderr and "internal" not in done.stderr, (one, done.stderr)
            assert not (target / "dsctl.json").exists() or what == "EIO", one
            met[f"{what} {call}"] += 1
        dsctl("convert", source, target, "--bf16", "--workers", "1")
        assert contents(target) == whole, (round_, one)
    print(  # noqa: T201  what the soak met
        f"{met.total()} faults in {round_} folders: {dict(met)}; {finished} runs outran theirs"
    )
