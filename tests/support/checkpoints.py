"""Small checkpoints for tests, made once per test run and shared: tests read them and write elsewhere."""

from __future__ import annotations

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
        folder = factory.mktemp("tiny") / release
        make(release, folder, recipe)
        _MADE[release, recipe] = folder
    return _MADE[release, recipe]


def smaller(factory: pytest.TempPathFactory, release: str = "v3.2", **more: Any) -> Path:
    """The same of the sizes in `SMALLER`, for tests that need no larger ones; `more` are other fields of the recipe."""
    return tiny(factory, release, **SMALLER, **more)


_MADE: dict[tuple[str, TinyRecipe], Path] = {}
