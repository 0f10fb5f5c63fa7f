"""What tests of uploads share: the names, the state that must come of them, faults of single requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hub.receiving import SIGNATURE, Receiving
from tests.hub.server import Hub

TOKEN = "hf_secretsecret"
NEW, TO = "acme/new", "hf://acme/new"
XET = {"HF_HUB_DISABLE_XET": "0"}
STORED = ("/lfs/", "/part/")


def files(folder: Path) -> dict[str, Path]:
    """The files that belong to a result."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in paths.items() if not {".git", ".cache", ".dsctl"} & set(name.split("/"))}


def whole(received: Receiving, folder: Path, repository: str = NEW, branch: str = "main") -> None:
    """The branch has the folder's files, and the hub's own one, and nothing else."""
    found = {name: (size, digest) for name, (size, digest, _) in received.state(repository, branch).items()}
    expected = {name: (path.stat().st_size, received.hub.digest(path)[0]) for name, path in files(folder).items()}
    if ".gitattributes" not in expected:
        found.pop(".gitattributes")
    assert found == expected


def good(done: Any) -> Any:
    assert done.returncode == 0, done.stderr
    return done


def refused(done: Any, code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.count("error: ") == 1 and "\nhint: " in done.stderr and "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr


def kept_secret(hub: Hub, said: str, *folders: Path) -> None:
    """No secret is in what a command printed and wrote, and storage never got the token."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    for secret in (TOKEN, "xet-token-secret", SIGNATURE):
        assert secret not in said
        assert not [path for path in paths if secret.encode() in path.read_bytes()]
    assert {one.token for one in hub.log if one.host == "storage"} <= {None, "Bearer xet-token-secret"}


def nth(kind: str, word: str, *numbers: int) -> Callable[[int, str, str], str | None]:
    """A fault for these of the writes whose path has a word, counted from 1."""
    seen = [0]

    def fault(number: int, method: str, path: str) -> str | None:
        meant = method != "GET" and (path.startswith(word) if word in STORED else word in path)
        seen[0] += meant
        return kind if meant and seen[0] in numbers else None

    return fault
