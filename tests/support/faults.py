"""Faults that a run meets: errors of the disk, slowness, files that shrink, kills."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.layer.sitecustomize import CALLS, disturbed

LAYER = Path(__file__).parent / "layer"


def fault(what: str, call: str, path: str = "", **more: Any) -> dict[str, Any]:
    """A fault on calls of `os.<call>` for files whose path holds `path`.

    `what` is an error's name such as EIO, or wait (`seconds`), shrink (to `size`), kill. `after` calls are spared in
    each process; of the others each is met with `chance`.
    """
    return {"what": what, "call": call, "path": path, **more}


def environment(*faults: dict[str, Any]) -> dict[str, str]:
    """The environment of a process that meets these faults, as do all that it starts."""
    path = os.pathsep.join(filter(None, (str(LAYER), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "DSCTL_TEST_FAULTS": json.dumps(faults)}


@contextmanager
def met(*faults: dict[str, Any]) -> Iterator[None]:
    """Let this process meet these faults."""
    with ExitStack() as stack:
        for name in CALLS:
            stack.enter_context(mock.patch.object(os, name, disturbed(name, list(faults))))
        yield
