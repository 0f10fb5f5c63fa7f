"""A hub on loopback for every test, a cache of its own, and nothing reachable but loopback."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.receiving import Receiving
from tests.hub.server import Hub
from tests.hub.uploads import TO, TOKEN
from tests.support.checkpoints import smaller, tiny
from tests.support.command import Done, dsctl
from tests.support.forks import Launcher, Running

Run = Callable[..., Done]
Started = Callable[..., Running]
REPOSITORY = "acme/small"


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small V3.2 in four files, each larger than what is read ahead of a header."""
    return tiny(tmp_path_factory, "v3.2", hidden=256, vocab=512, intermediate=256, moe_intermediate=256)


@pytest.fixture
def hub(source: Path) -> Iterator[Hub]:
    """A hub that holds the small checkpoint as `acme/small`."""
    hub = Hub()
    hub.publish(REPOSITORY, source)
    yield hub
    hub.close()


@pytest.fixture
def received(hub: Hub, tmp_path: Path) -> Receiving:
    """The side of the hub that takes uploads."""
    return Receiving(hub, tmp_path / "received")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that dsctl made, with everything that does not belong to the result beside it."""
    folder = tmp_path_factory.mktemp("made") / "small-bf16"
    dsctl("convert", smaller(tmp_path_factory, "v3.2", layers=2, experts=4), folder, "--bf16")
    for name in (".cache/huggingface/download/x.metadata", ".git/HEAD"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(made, tmp_path / "small-bf16"))


@pytest.fixture
def upload(hub: Hub, received: Receiving, command: Run, tmp_path: Path) -> Run:
    """Runs `dsctl upload` with a token; what it prints and writes does not have the token."""
    hub.token = TOKEN

    def run(folder: Path, *more: Any, target: str = TO, **variables: str) -> Any:
        done = command("upload", folder, target, *more, HF_TOKEN=TOKEN, **variables)
        for secret in (TOKEN, "xet-token-secret", "X-Amz-Signature"):
            assert secret not in done.stdout + done.stderr
            paths = (path for path in (tmp_path / "hf").rglob("*") if path.is_file())
            assert not [path for path in paths if secret.encode() in path.read_bytes()]
        assert {one.token for one in hub.log if one.host == "storage"} <= {None, "Bearer xet-token-secret"}
        return done

    return run


def unsettled() -> dict[str, str]:
    """The environment without settings of hubs."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}


@pytest.fixture
def settings(hub: Hub, tmp_path: Path) -> dict[str, str]:
    """Settings of a process that knows this hub alone."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "HF_HUB_ETAG_TIMEOUT": "2",
        "NO_PROXY": "*",
    }


@pytest.fixture
def environment(settings: dict[str, str]) -> dict[str, str]:
    """The whole environment of such a process."""
    return unsettled() | settings


@pytest.fixture
def command(launcher: Launcher, settings: dict[str, str]) -> Run:
    """Runs `dsctl` against the hub; further environment variables by keyword."""

    def run(*arguments: Any, **variables: str) -> Done:
        done = launcher.run(*arguments, environment=settings | variables)
        return Done(done.code, done.out, done.err)

    return run


@pytest.fixture
def started(launcher: Launcher, settings: dict[str, str]) -> Started:
    """Starts `dsctl` against the hub, as `command` runs it."""

    def start(*arguments: Any, **variables: str) -> Running:
        return launcher.start(*arguments, environment=settings | variables)

    return start


@pytest.fixture(autouse=True)
def _loopback_only(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        assert not isinstance(address, tuple) or address[0] in ("127.0.0.1", "::1", "localhost"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
