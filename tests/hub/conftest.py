"""A hub on loopback for every test, a cache of its own, and nothing reachable but loopback."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.hub.receiving import Receiving
from tests.hub.server import Hub
from tests.hub.uploads import TO, TOKEN, kept_secret
from tests.support.checkpoints import tiny
from tests.support.command import Done, call, dsctl
from tests.support.forks import Launcher, Running

Run = Callable[..., Done]
Started = Callable[..., Running]
Within = Callable[..., AbstractContextManager[None]]
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


def smallest(factory: pytest.TempPathFactory) -> Path:
    """The smallest V3.2 for tests that need four weight files and no more."""
    return tiny(factory, "v3.2", hidden=128, vocab=256, intermediate=128, moe_intermediate=128, layers=2, experts=2)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that dsctl made, with everything that does not belong to the result beside it."""
    folder = tmp_path_factory.mktemp("made") / "small-bf16"
    dsctl("convert", smallest(tmp_path_factory), folder, "--bf16")
    for name in (".cache/huggingface/download/x.metadata", ".git/HEAD"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return Path(shutil.copytree(made, tmp_path / "small-bf16"))


@pytest.fixture
def within(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Within:
    """Lets this process know this hub alone, and a token: a process for each command takes longer than the command."""
    hub.token = TOKEN

    @contextmanager
    def settled(xet: bool = False) -> Iterator[None]:
        from huggingface_hub import close_session, constants
        from huggingface_hub.utils._xet import abort_xet_session

        from dsctl.stores import repository_xet

        with monkeypatch.context() as patched:
            for name, value in (("HF_ENDPOINT", hub.endpoint), ("HF_TOKEN", TOKEN), ("NO_PROXY", "*")):
                patched.setenv(name, value)
            patched.setattr(constants, "ENDPOINT", hub.endpoint)
            patched.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
            patched.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 2)
            patched.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses.json"))
            patched.setattr("dsctl.stores.hub_faults.FIRST_WAIT", 0.02)
            try:
                yield
            finally:
                close_session()
                abort_xet_session()
                repository_xet._known.clear()

    return settled


@pytest.fixture
def upload(hub: Hub, received: Receiving, within: Within) -> Run:
    """Runs `dsctl upload` with a token, which it prints and sends nowhere else."""

    def run(folder: Path, *more: Any, target: str = TO, xet: bool = False) -> Any:
        with within(xet):
            done = call("upload", folder, target, *more)
        hub.settle()
        kept_secret(hub, done.stdout + done.stderr)
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
