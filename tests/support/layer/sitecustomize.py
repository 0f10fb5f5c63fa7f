"""A failing layer between Python and the file system: see tests/support/faults.py.

Python imports this module at its start where its folder is on the path, so that a process and all that it starts meet
the faults that DSCTL_TEST_FAULTS lists. The calls of `os` that name no path find it through the descriptor.
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

CALLS = ("pread", "preadv", "pwrite", "fdatasync", "fsync")
_CHANCE = random.Random(os.getpid())


def disturbed(name: str, faults: list[dict[str, Any]]) -> Callable[..., Any]:
    """A call of `os` that meets these faults."""
    real = getattr(os, name)

    def call(descriptor: int, *arguments: Any, **options: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        for fault in faults:
            if fault["call"] == name and fault["path"] in path and _CHANCE.random() < fault.get("chance", 1.0):
                fault["after"] = fault.get("after", 0) - 1
                if fault["after"] < 0:
                    _meet(fault, path)
        return real(descriptor, *arguments, **options)

    return call


def _meet(fault: dict[str, Any], path: str) -> None:
    if fault["what"] == "wait":
        time.sleep(fault["seconds"])
    elif fault["what"] == "shrink":
        os.truncate(path, fault["size"])
    elif fault["what"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        number = getattr(errno, fault["what"])
        raise OSError(number, os.strerror(number))


if os.environ.get("DSCTL_TEST_FAULTS"):
    _FAULTS = json.loads(os.environ["DSCTL_TEST_FAULTS"])
    for _name in CALLS:
        setattr(os, _name, disturbed(_name, _FAULTS))
