"""Run `dsctl` as a user does: in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any


def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
    """The finished process, with its text."""
    command = [sys.executable, "-m", "dsctl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def dsctl(*arguments: Any) -> str:
    """Its stdout; a failure fails the test with what was said."""
    done = run(*arguments)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def dsctl_fails(*arguments: Any) -> int:
    """Its exit code, which must be of a refusal told in words: one error line, no traceback, nothing on stdout."""
    done = run(*arguments)
    assert done.returncode != 0, done.stdout
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr, done.stderr
    assert not done.stdout
    return done.returncode
