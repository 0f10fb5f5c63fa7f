"""The local folder in which the files of a target in an object store are made and wait for their upload."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import deque
from pathlib import Path

from dsctl.plan.plan import Plan
from dsctl.run.marks import BEGUN
from dsctl.stores import SIGNED, WORKING

# Finished files that may wait during an upload; with more of them, the run waits.
WAITING = 2


def staging(url: str) -> Path:
    """The local folder of an unfinished target: in $DSCTL_STAGING, or else in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = Path(os.environ.get("DSCTL_STAGING") or os.path.join(cache, "dsctl", "staging"))
    return root / hashlib.sha256(url.encode()).hexdigest()[:16]


def staging_bytes(plan: Plan) -> int:
    """The most bytes of disk that the folder takes: files being made, and files that wait."""
    left = {file.name: sum(file.name in job.files for job in plan.jobs) for file in plan.files}
    sizes = {file.name: file.size for file in plan.files}
    held: deque[int] = deque()
    most = taken = 0
    for job in plan.jobs:
        taken += sum(step.written_bytes for step in job.steps)
        most = max(most, taken)
        for name in job.files:
            left[name] -= 1
            if not left[name]:
                held.append(sizes[name])
        while len(held) > WAITING + 1:
            taken -= held.popleft()
    return min(plan.bytes_out, most) + sum(plan.carried.values())


def fingerprint_of(folder: Path) -> str:
    """The fingerprint of the plan whose work a staging folder holds, or an empty text."""
    for file in (folder / SIGNED, folder / WORKING / BEGUN):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return str(json.loads(file.read_bytes()).get("fingerprint", ""))
    return ""


def empty(path: Path, size: int) -> None:
    """Free a file's blocks on disk, and keep its size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.truncate(size)
