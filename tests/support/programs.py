"""Other programs' readers and writers of deltas, if DSCTL_DELTA_ORACLES names their scripts (docs/contributing.md)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def needed() -> Path:
    """The folder of the scripts; a test that needs it is skipped without one."""
    folder = os.environ.get("DSCTL_DELTA_ORACLES")
    if not folder:
        pytest.skip("DSCTL_DELTA_ORACLES names no folder of other programs' readers and writers")
    return Path(folder)


def refusal(script: str, *words: object) -> str:
    """What a script says if it fails; nothing if it ends well."""
    command = [sys.executable, str(needed() / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.stderr.strip() or "no word" if done.returncode else ""


def run(script: str, *words: object) -> None:
    """Run a script that has to end well."""
    assert not refusal(script, *words)
