"""Checkpoints that changed, shared by the tests of deltas."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support import changed
from tests.support.checkpoints import tiny
from tests.support.raw_tensors import places_of

SIZES = {"layers": 2, "experts": 2, "hidden": 256, "vocab": 128, "intermediate": 256, "moe_intermediate": 128}


class States(NamedTuple):
    """Three checkpoints after each other, and the tensors that never change."""

    first: Path
    second: Path
    third: Path
    equal: tuple[str, ...]


@pytest.fixture(scope="session")
def states(tmp_path_factory: pytest.TempPathFactory) -> States:
    """Untidy checkpoints: odd tensors, scales apart from codes, a wrong total_size; other files change, too."""
    folder = tmp_path_factory.mktemp("states")
    first = Path(shutil.copytree(tiny(tmp_path_factory, **SIZES), folder / "first"))
    changed.rearranged(changed.added(first, changed.odd_tensors()))
    equal = tuple(name for name in places_of(first) if "norm" in name or name == "odd.scalar")
    second = changed.make(first, folder / "second", changed.last_bits(0.02), untouched=equal)
    changed.side_files(second)
    third = changed.make(second, folder / "third", changed.last_bits(0.05), seed=1, untouched=equal)
    (third / "chat_template.jinja").unlink()
    return States(first, second, third, equal)
