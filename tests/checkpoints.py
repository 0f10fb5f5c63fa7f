"""Small checkpoints for tests, made once per test run and shared: tests read them and write elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dsctl.tiny import Recipe, make


def tiny(factory: pytest.TempPathFactory, release: str = "v3.2", **sizes: Any) -> Path:
    """A checkpoint of a release as `dsctl tiny` makes it; `sizes` are the fields of a `Recipe`."""
    return _made(factory, release, Recipe(**sizes))


@cache
def _made(factory: pytest.TempPathFactory, release: str, recipe: Recipe) -> Path:
    folder = factory.mktemp("tiny") / release
    make(release, folder, recipe)
    return folder
