"""Small checkpoints for tests, made once per test run and shared: tests read them and write elsewhere."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from dsctl.tiny import make
from dsctl.tiny.blueprint import TinyRecipe

# Less than half of what `dsctl tiny` makes, with matrices of several blocks in both directions, whole and partial.
SMALLER = {"hidden": 256, "vocab": 512, "intermediate": 512}


def tiny(factory: pytest.TempPathFactory, release: str = "v3.2", **sizes: Any) -> Path:
    """A checkpoint of a release as `dsctl tiny` makes it; `sizes` are the fields of a `Recipe`."""
    recipe = TinyRecipe(**sizes)
    if (release, recipe) not in _MADE:
        _MADE[release, recipe] = _shared(factory, release, recipe)
    return _MADE[release, recipe]


def _shared(factory: pytest.TempPathFactory, release: str, recipe: TinyRecipe) -> Path:
    """The checkpoint that a worker of this test run has made already, or one that is made now."""
    ours = factory.getbasetemp()
    # The folder above a worker's is that of one run of pytest; above that of a process alone are other runs.
    place = ours.parent if ours.name == f"popen-{os.environ.get('PYTEST_XDIST_WORKER')}" else ours
    name = hashlib.sha256(repr((release, recipe)).encode()).hexdigest()[:16]
    shared = place / "tiny" / name
    if not shared.is_dir():
        made = factory.mktemp("tiny")
        make(release, made / release, recipe)
        shared.parent.mkdir(exist_ok=True)
        # The other worker may have been faster, with the same bytes.
        with contextlib.suppress(OSError):
            made.rename(shared)
    return shared / release


def smaller(factory: pytest.TempPathFactory, release: str = "v3.2", **more: Any) -> Path:
    """The same of the sizes in `SMALLER`, for tests that need no larger ones; `more` are other fields of the recipe."""
    return tiny(factory, release, **SMALLER, **more)


_MADE: dict[tuple[str, TinyRecipe], Path] = {}
