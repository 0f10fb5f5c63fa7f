"""What a hub's listing says of a file, and what is asked for of a file. Plain values."""

from __future__ import annotations

from typing import NamedTuple


class HubRange(NamedTuple):
    """Bytes of one file of one commit: what the listing says it holds, and where a person would look for it."""

    url: str
    begin: int
    size: int
    commit: str
    where: str


class HubFile(NamedTuple):
    """What the hub's listing says of a file: its size, and the sha256 of an LFS file or the SHA-1 of a git blob."""

    name: str
    size: int
    sha256: str | None
    blob: str | None


class WantedFile(NamedTuple):
    """A file of a commit, the branch or tag that was asked for, and where to find its bytes."""

    repository: str
    named: str
    file: str
    endpoint: str
    bytes: HubRange

    @property
    def commit(self) -> str:
        return self.bytes.commit


class OpenedCommit(NamedTuple):
    """A revision of a repository: the commit that it stands for, the hub's address, and every file by name."""

    commit: str
    endpoint: str
    listing: tuple[HubFile, ...]


class Reached(NamedTuple):
    """Whether the hub answers: its address, why it does not, and whether a token is at hand."""

    endpoint: str
    reached: bool
    why: str
    token: bool
