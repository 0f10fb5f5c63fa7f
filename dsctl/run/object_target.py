"""A target in an object store: its objects, their owner, and whether a run is new, can resume or is complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsctl.checkpoint.reading import strict_json
from dsctl.checkpoint.signed_files import SignedFile
from dsctl.core.errors import FormatError, PlanError, ResumeError, SourceError, WorkError
from dsctl.plan.plan import Plan
from dsctl.run.audits import valid_audit
from dsctl.run.claim import of_another, refuse_unlike
from dsctl.run.identity import identity
from dsctl.run.marks import BEGUN, begun_json, mark_of, outputs
from dsctl.stores import SIGNED, WORKING, Store, separate
from dsctl.stores.objects import listed, shown
from dsctl.stores.uploads import Uploads

_BEGUN = f"{WORKING}/{BEGUN}"


@dataclass(slots=True)
class ObjectTarget:
    """A plan's target at a URL, a `RemoteTarget`. `there` are its objects with their sizes, as last listed.

    With `force`, the work of an earlier run of dsctl may be started over. A file that was sent is safe.
    """

    url: str
    plan: Plan
    force: bool
    uploads: Uploads
    there: dict[str, int] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Its printed name."""
        return shown(self.url)

    @property
    def sha256(self) -> bool:
        return False

    @property
    def batch_files(self) -> int:
        return 1

    @property
    def restores(self) -> bool:
        return False

    @property
    def seen(self) -> object:
        return self.there

    @property
    def removed(self) -> int:
        return len(self.there) if self.force else 0

    @property
    def commits(self) -> None:
        return None

    @property
    def facts(self) -> dict[str, Any]:
        return {}

    @property
    def _names(self) -> set[str]:
        """The files that the plan makes, except the audit."""
        return outputs(self.plan) - {SIGNED}

    def check(self, store: Store) -> str:
        """The state of the target for this plan: new, resume or complete. Nothing is changed.

        Raises:
            PlanError: the target is the source, inside it or around it, or holds objects that dsctl did not make.
            ResumeError: it holds the work of a different request, begun or complete.
            UsageError, WorkError: it cannot be a target, or cannot be reached.
        """
        try:
            self.there = {one.name: one.size for one in listed(self.url)}
        except SourceError as error:
            raise WorkError(error.message, hint=error.hint) from None
        if not separate(store, self.url):
            raise PlanError(f"{self.place}: source and target must be separate, neither inside the other")
        for complete, name in ((True, SIGNED), (False, _BEGUN)):
            found = self._json(name)
            if found is None:
                continue
            if self.force:
                self._refuse_others(found)
                return "new"
            place, mark = self.place, mark_of(found, complete)
            if mark is None:
                raise ResumeError(f"{place}/{name}: is not valid", hint="start over with --force, or choose a new path")
            if mark.fingerprint != self.plan.fingerprint:
                raise of_another(self.plan, store, place, mark)
            refuse_unlike(self.plan, store, place, mark)
            return "complete" if complete else "resume"
        if self.there:
            hint = "choose a new path"
            raise PlanError(f"{self.place}: is not empty and was not made by dsctl", hint=hint)
        return "new"

    def _refuse_others(self, made: dict[str, Any]) -> None:
        """Refuse to start over beside objects that neither the marked run nor this one makes.

        Raises:
            PlanError: with their names.
        """
        files = made.get("files")
        theirs = set(map(str, files)) if isinstance(files, (dict, list)) else set()
        others = sorted(self.there.keys() - theirs - self._names - {SIGNED})
        if others:
            what = f"holds {len(others):,} files that dsctl did not make, such as {others[0]}"
            raise PlanError(f"{self.place}: {what}", hint="move them, or choose a new path", issues=others)

    def begin(self, store: Store, state: str) -> None:
        if state == "new":
            self._clear()
        self.uploads.abort()
        mark = begun_json(self.plan, store, identity(self.plan, store)) | {"files": sorted(self._names)}
        self.uploads.put(_BEGUN, json.dumps(mark, indent=1).encode())

    def holds(self, note: Mapping[str, Any]) -> bool:
        return bool(self.there.get(note["file"]) == note["size"])

    def is_ahead(self, folder: Path) -> bool:
        return False

    def restore(self, store: Store, folder: Path) -> Iterable[dict[str, Any]]:
        return ()

    def prepare(self, files: Mapping[str, Path]) -> None:
        pass

    def send(self, name: str, path: Path, sha256: str, report: Callable[[int], None]) -> None:
        report(self.uploads.send(name, path))

    def save(self, files: Mapping[str, SignedFile], folder: Path) -> str:
        return ""

    def finish(self, folder: Path) -> str:
        self.uploads.send(SIGNED, folder / SIGNED)
        self.uploads.remove(_BEGUN)
        return ""

    def stop(self) -> None:
        self.uploads.stop()

    def _clear(self) -> None:
        """Remove the objects of an earlier run, the mark of completeness first.

        Raises:
            WorkError: an object cannot be removed.
        """
        for name in sorted(self.there, key=lambda name: name != SIGNED):
            self.uploads.remove(name)
        self.there = {}

    def audit(self) -> dict[str, Any]:
        """The audit of a complete target whose objects still have the recorded sizes.

        Raises:
            ResumeError: an object is missing or has a different size.
        """
        hint = "start over with --force"
        try:
            audit = valid_audit(self._json(SIGNED))
        except (TypeError, ValueError) as error:
            raise ResumeError(f"{self.place}/{SIGNED}: is not valid: {error}", hint=hint) from None
        for name, file in audit["files"].items():
            if self.there.get(name) != file["size"]:
                raise ResumeError(f"{self.place}/{name}: was finished, but is now missing or changed", hint=hint)
        return audit

    def _json(self, name: str) -> dict[str, Any] | None:
        """A JSON object at the target; None if it does not exist, empty if it is not JSON."""
        raw = self.uploads.read(name)
        try:
            return None if raw is None else dict(strict_json(raw, name))
        except (ValueError, TypeError, RecursionError, FormatError):
            return {}
