"""A hub on loopback for every test, a cache of its own, and nothing reachable but loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import tiny
from tests.hub.server import Hub

Run = Callable[..., subprocess.CompletedProcess[str]]
REPOSITORY = "acme/small"
# The console script's own entry, with shorter waits between attempts.
MAIN = """
from dsctl.stores import hub_requests
hub_requests.FIRST_WAIT = 0.02
from dsctl.cli import main
main()
"""


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small V3.2 in four files."""
    return tiny(tmp_path_factory, "v3.2")


@pytest.fixture
def hub(source: Path) -> Iterator[Hub]:
    """A hub that holds the small checkpoint as `acme/small`."""
    hub = Hub()
    hub.publish(REPOSITORY, source)
    yield hub
    hub.close()


@pytest.fixture
def environment(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """Environment of a process that knows this hub alone."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return kept | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "NO_PROXY": "*",
    }


@pytest.fixture
def command(environment: dict[str, str]) -> Run:
    """Runs `dsctl` against the hub; further environment variables by keyword."""

    def run(*arguments: Any, **variables: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", MAIN, *map(str, arguments)]
        return subprocess.run(
            line, env=environment | variables, capture_output=True, text=True, timeout=120, check=False
        )

    return run


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        assert not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1", "localhost"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
