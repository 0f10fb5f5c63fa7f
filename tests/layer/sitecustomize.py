"""A failing layer between Python and the file system, for whole processes and those that they start: tests/faults.py.

Python imports this module at start where its folder is on the path. The calls of `os` that name no path find it
through the descriptor.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

FAULTS: list[dict[str, Any]] = json.loads(os.environ.get("DSCTL_TEST_FAULTS", "[]"))
_REAL = {name: getattr(os, name) for name in ("pread", "preadv", "pwrite", "fdatasync", "fsync")}
_CHANCE = random.Random(os.getpid() if FAULTS else 0)


def disturb(fault: dict[str, Any], call: str, path: str) -> None:
    """Do what a fault says, if this is its call on its file and its time has come."""
    if fault["call"] != call or fault["path"] not in path or _CHANCE.random() >= fault.get("chance", 1.0):
        return
    fault["after"] = fault.get("after", 0) - 1
    if fault["after"] >= 0:
        return
    what = fault["what"]
    if what == "wait":
        time.sleep(fault["seconds"])
    elif what == "shrink":
        os.truncate(path, fault["size"])
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise OSError(getattr(errno, what), os.strerror(getattr(errno, what)))


def _disturbed(name: str) -> Callable[..., Any]:
    def call(descriptor: int, *arguments: Any, **options: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        for fault in FAULTS:
            disturb(fault, name, path)
        return _REAL[name](descriptor, *arguments, **options)

    return call


if FAULTS:
    for _name in _REAL:
        setattr(os, _name, _disturbed(_name))
