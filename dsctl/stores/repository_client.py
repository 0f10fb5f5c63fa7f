"""The part of `dsctl.stores.repositories` that uses huggingface_hub, so it loads late."""

from __future__ import annotations

from collections.abc import Sequence

from dsctl.stores.repositories import Commit, Head, RepositoryState, RepositoryWriter, Sent, Sorting, Unsorted, Upload


def look(writer: RepositoryWriter) -> RepositoryState:
    raise NotImplementedError


def create(writer: RepositoryWriter, private: bool) -> Head:
    raise NotImplementedError


def check_card(writer: RepositoryWriter, text: str) -> list[str]:
    raise NotImplementedError


def read(writer: RepositoryWriter, name: str, head: Head) -> bytes | None:
    raise NotImplementedError


def sort(writer: RepositoryWriter, files: Sequence[Unsorted]) -> dict[str, Sorting]:
    raise NotImplementedError


def send(writer: RepositoryWriter, upload: Upload) -> Sent:
    raise NotImplementedError


def commit(writer: RepositoryWriter, commit: Commit, parent: Head) -> Head:
    raise NotImplementedError
