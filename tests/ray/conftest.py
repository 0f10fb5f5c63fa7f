"""A cluster of three nodes for each test, whose disks are slow: there is time to kill one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from tests.ray.cluster import Nodes
from tests.support.checkpoints import tiny
from tests.support.faults import environment, fault


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small V3.2 in many files, so that there are many jobs."""
    return tiny(tmp_path_factory, "v3.2", shards=24)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """Three nodes of two processors each."""
    with mock.patch.dict(os.environ, environment(fault("wait", "pwrite", ".part", seconds=0.02))):
        nodes = Nodes(3)
        yield nodes
        nodes.close()
