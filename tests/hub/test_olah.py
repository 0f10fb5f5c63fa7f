"""Against olah, a hub server written by others: it ignores ranges, lists no LFS digests and serves git repositories."""

from __future__ import annotations

import hashlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub.conftest import REPOSITORY, Run
from tests.support.command import dsctl

GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main")
CONFIG = """
[basic]
host = "127.0.0.1"
port = {port}
repos-path = "{root}/repos"
log-path = "{root}/logs"
mirrors-path = ["{root}/mirrors"]

[accessibility]
offline = true
"""


@pytest.fixture(scope="module")
def olah(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an olah that serves the small checkpoint as `acme/small`."""
    root = tmp_path_factory.mktemp("olah")
    repository = root / "mirrors" / "models" / REPOSITORY
    shutil.copytree(source, repository)
    for line in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "weights")):
        subprocess.run([*GIT, *line], cwd=repository, check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (root / "olah.toml").write_text(CONFIG.format(port=port, root=root))
    line = [Path(sys.executable).with_name("olah-cli"), "-c", root / "olah.toml"]
    with (root / "log").open("wb") as log, subprocess.Popen(line, cwd=root, stdout=log, stderr=log) as server:
        _await(port, server)
        yield f"http://127.0.0.1:{port}"
        server.terminate()


def _await(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("olah does not answer")


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def test_download(olah: str, source: Path, command: Run, tmp_path: Path) -> None:
    assert command("download", REPOSITORY, tmp_path / "copy", HF_ENDPOINT=olah).returncode == 0
    assert digests(tmp_path / "copy") == digests(source)


@pytest.mark.parametrize(
    "arguments",
    [("convert", "--bf16"), ("slice", "--layers", "0-1", "--experts", "4"), ("convert", "--bf16", "--only", "*norm*")],
)
def test_the_same_bytes_as_from_a_folder(
    olah: str, source: Path, command: Run, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    verb, *options = arguments
    assert command(verb, REPOSITORY, tmp_path / "remote", *options, HF_ENDPOINT=olah).returncode == 0
    dsctl(verb, source, tmp_path / "local", *options)
    one, two = digests(tmp_path / "remote"), digests(tmp_path / "local")
    # Both name the source.
    for name in ("dsctl.json", "dsctl.intoto.json"):
        assert one.pop(name) != two.pop(name)
    assert one == two
