"""Small checkpoints for tests, made once per test run and shared: tests read them and write elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsctl.tiny import make
from dsctl.tiny.blueprint import TinyRecipe


def tiny(factory: pytest.TempPathFactory, release: str = "v3.2", **sizes: Any) -> Path:
    """A checkpoint of a release as `dsctl tiny` makes it; `sizes` are the fields of a `Recipe`."""
    recipe = TinyRecipe(**sizes)
    if (release, recipe) not in _MADE:
        folder = factory.mktemp("tiny") / release
        make(release, folder, recipe)
        _MADE[release, recipe] = folder
    return _MADE[release, recipe]


_MADE: dict[tuple[str, TinyRecipe], Path] = {}
