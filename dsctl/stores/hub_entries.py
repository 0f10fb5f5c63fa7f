"""Entries of a hub's listing, and requested byte ranges. Plain values."""

from __future__ import annotations

from typing import NamedTuple


class HubRange(NamedTuple):
    """A requested file of one commit: its listed size and digest, and the address that a person would open."""

    url: str
    begin: int
    size: int
    commit: str
    where: str


class HubFile(NamedTuple):
    """A file in the hub's listing: its size, and the SHA-256 of an LFS file or the SHA-1 of a git blob."""

    name: str
    size: int
    sha256: str | None
    blob: str | None


class WantedFile(NamedTuple):
    """A file of a commit, the requested branch or tag, and the address of its bytes."""

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
    """Whether the hub answers: its address, the reason if it does not, and whether a token is set."""

    endpoint: str
    reached: bool
    why: str
    token: bool
