"""Both kinds of targets at a URL, as a delivery sees them: a folder in an object store, a repository on a hub."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from dsctl.checkpoint.signed_files import SignedFile
from dsctl.plan.plan import Plan
from dsctl.run.how import How
from dsctl.run.object_target import ObjectTarget
from dsctl.run.repository_target import RepositoryTarget
from dsctl.stores import Store
from dsctl.stores.repositories import is_target
from dsctl.stores.uploads import Uploads


class RemoteTarget(Protocol):
    """A plan's target at a URL. A file that was sent is safe there once it was saved."""

    @property
    def plan(self) -> Plan:
        """The plan as this target needs it."""

    @property
    def place(self) -> str:
        """The printed name."""

    @property
    def sha256(self) -> bool:
        """Whether every file needs its SHA-256."""

    @property
    def batch_files(self) -> int:
        """The number of sent files that are saved together."""

    @property
    def restores(self) -> bool:
        """Whether it keeps a record of finished work, from which `restore` makes a staging folder."""

    @property
    def seen(self) -> object:
        """What `check` found there; equal as long as nothing has changed."""

    @property
    def removed(self) -> int:
        """The number of files of the target that a new run removes first."""

    @property
    def commits(self) -> int | None:
        """The commits that a run makes beside those of saved files; None if the target has none."""

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of a repository, as JSON; empty for other targets."""

    def check(self, store: Store) -> str:
        """The state of the target for the plan: new, resume or complete. Nothing is changed.

        Raises:
            PlanError: the target overlaps the source, or holds files that dsctl did not make.
            ResumeError: it holds the work of a different request or source, begun or complete.
            UsageError, WorkError: it cannot be a target, or cannot be reached.
        """

    def audit(self) -> dict[str, Any]:
        """The audit of a complete target whose files still are the recorded ones.

        Raises:
            ResumeError: a file is missing or different.
        """

    def begin(self, store: Store, state: str) -> None:
        """Mark the target as begun; a new one is made, and emptied of what an earlier run left.

        Raises:
            SourceError: the source cannot be read. WorkError: the target cannot be written.
        """

    def holds(self, note: Mapping[str, Any]) -> bool:
        """Whether the target still has a file as an earlier run saved it: its name, size and digests."""

    def is_ahead(self, folder: Path) -> bool:
        """Whether the target has files of a run on a different machine that a staging folder does not know."""

    def restore(self, store: Store, folder: Path) -> Iterable[dict[str, Any]]:
        """Put the work of a run on a different machine into an empty staging folder, as far as the target has it.

        Returns the notes of the files that are safe at the target.
        """

    def prepare(self, files: Mapping[str, Path]) -> None:
        """Learn what is needed to send these files."""

    def send(self, name: str, path: Path, sha256: str, report: Callable[[int], None]) -> None:
        """Send a finished file; `report` is called with numbers of bytes that were sent.

        Raises:
            WorkError: it cannot be sent, or the run has ended.
        """

    def save(self, files: Mapping[str, SignedFile], folder: Path) -> str:
        """Make sent files, and the record of finished work in the folder, safe; the commit's name if there is one.

        Raises:
            WorkError: it failed. ResumeError: somebody else changed the target.
        """

    def finish(self, folder: Path) -> str:
        """Make all sent files and `dsctl.json` safe, and remove the mark; the commit's name if there is one.

        Raises:
            WorkError: it failed. ResumeError: somebody else changed the target.
        """

    def stop(self) -> None:
        """End all running calls soon, and start no further one."""


def remote_target(url: str, plan: Plan, how: How) -> RemoteTarget:
    """The target at a URL.

    Raises:
        UsageError: the URL is not that of a target. SourceError: the hub's settings cannot be used.
    """
    if is_target(url):
        return RepositoryTarget.at(url, plan, how)
    return ObjectTarget(url, plan, how.force, Uploads(url))
