"""One object store on loopback for these tests; each test has a prefix of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cloud.server import Objects
from tests.support.checkpoints import tiny


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small V3.2 in four files: the server is slow."""
    sizes = {"hidden": 256, "vocab": 256, "intermediate": 256, "moe_intermediate": 256, "layers": 2, "experts": 4}
    return tiny(tmp_path_factory, "v3.2", **sizes)


@pytest.fixture(scope="session")
def server() -> Iterator[Objects]:
    """The server, not yet known to this process."""
    objects = Objects()
    yield objects
    objects.close()


@pytest.fixture
def objects(server: Objects) -> Iterator[Objects]:
    """The server, known to this process."""
    with server.known():
        yield server


@pytest.fixture(autouse=True)
def staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files wait, for this process and those that it starts."""
    monkeypatch.setenv("DSCTL_STAGING", str(tmp_path / "staging"))
    return tmp_path / "staging"


@pytest.fixture
def settings(server: Objects, staging: Path) -> dict[str, str]:
    """Variables with which a command finds the server, and where its files wait."""
    return server.environment | {"DSCTL_STAGING": str(staging)}


@pytest.fixture(scope="session")
def remote(server: Objects, source: Path) -> str:
    """The URL of the small checkpoint."""
    return server.publish(source, "small")
