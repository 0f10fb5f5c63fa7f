"""A target on a hub: its commits, their owner, and whether a run is new, can resume or is complete.

The first commit has the mark, `.dsctl-run/request.json`. Each further one has finished files and the record of the work
on them (`dsctl.run.recorded_work`). The last one has all other files and `dsctl.json`, and removes `.dsctl-run`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import Any

from dsctl.checkpoint.reading import strict_json
from dsctl.checkpoint.signed_files import SignedFile
from dsctl.core.amounts import plural
from dsctl.core.errors import FormatError, PlanError, ResumeError
from dsctl.core.files import PART, read_own
from dsctl.plan.jobs import apart
from dsctl.plan.model_card import README, SOURCE_README
from dsctl.plan.plan import Plan
from dsctl.plan.texts import WEIGHTS
from dsctl.run.audits import valid_audit
from dsctl.run.claim import of_another, refuse_unlike
from dsctl.run.how import How
from dsctl.run.identity import HeldFile, identity, unlike
from dsctl.run.marks import BEGUN, Mark, Route, begun_json, mark_of, outputs, sign_begun, work_of
from dsctl.run.outbox import Outbox
from dsctl.run.recorded_work import RecordedWork, Restored, journal_of, numbers, segment_names
from dsctl.run.staging import empty
from dsctl.stores import ATTRIBUTES, SIGNED, STATEMENT, Store, separate
from dsctl.stores.hub import ENDPOINT, UNFINISHED
from dsctl.stores.objects import shown
from dsctl.stores.repositories import (
    Commit,
    Content,
    Head,
    RepositoryState,
    RepositoryWriter,
    Sent,
)

_BEGUN = f"{UNFINISHED}/{BEGUN}"
_BATCH = 50
# More than any record of dsctl has.
_MOST_READ = 64 << 20


def for_hub(plan: Plan) -> Plan:
    """A plan whose README.md is a model card, with the source's own beside it, and whose jobs end with weight files."""
    carried = {name: nbytes for name, nbytes in plan.carried.items() if name != ATTRIBUTES}
    renamed = {README: SOURCE_README} if README in carried else {}
    if renamed and SOURCE_README in carried:
        # The source has a card of dsctl itself, and the text that it replaced.
        del carried[README]
        renamed = {}
    return replace(plan, jobs=list(apart(plan.jobs)), carried=carried, renamed=renamed)


@dataclass(slots=True)
class RepositoryTarget:
    """A plan's target in a repository. With `force`, weights of others and the work of an earlier run are removed."""

    plan: Plan
    force: bool
    private: bool
    writer: RepositoryWriter
    removed: int = 0
    _state: RepositoryState = field(default_factory=lambda: RepositoryState(None, None))
    _mark: Mark | None = None
    _work: RecordedWork = field(init=False)
    _held: dict[str, HeldFile] = field(default_factory=dict)
    _begun: bytes = b""
    _outbox: Outbox = field(init=False)

    def __post_init__(self) -> None:
        self._work, self._outbox = RecordedWork(self.plan), Outbox(self.writer)

    @classmethod
    def at(cls, url: str, plan: Plan, how: How) -> RepositoryTarget:
        """The target that `hf://org/name[@branch]` names; raises as `RepositoryWriter.at`."""
        writer = RepositoryWriter.at(url)
        return cls(replace(for_hub(plan), card=writer.place), how.force, not how.public, writer)

    @property
    def place(self) -> str:
        return self.writer.place

    @property
    def sha256(self) -> bool:
        return True

    @property
    def batch_files(self) -> int:
        return _BATCH

    @property
    def restores(self) -> bool:
        return True

    @property
    def seen(self) -> object:
        return self._state

    @property
    def commits(self) -> int:
        return 1 if self._mark else 2

    @property
    def facts(self) -> dict[str, Any]:
        name, state = self.writer.name, self._state
        endpoint = shown(os.environ.get(ENDPOINT) or "https://huggingface.co").rstrip("/")
        return {
            "repository": name.repository,
            "branch": name.branch,
            "address": f"{endpoint}/{name.repository}/tree/{name.branch}",
            "exists": state.exists,
            "private": state.private if state.exists else self.private,
            "commit": state.head.commit if state.head else None,
        }

    @property
    def _head(self) -> Head:
        assert self._state.head is not None
        return self._state.head

    def check(self, store: Store) -> str:
        if not separate(store, self.place):
            raise PlanError(f"{self.place}: is the source; a repository cannot be source and target")
        self._state, self.removed, self._mark = self.writer.look(), 0, None
        head = self._state.head
        if head is None:
            return "new"
        found = {name: self._json(name) for name in (SIGNED, _BEGUN) if name in head.files}
        if self.force:
            self.removed = len(self._removed(found))
            return "new"
        for name, said in found.items():
            complete = name == SIGNED
            mark = self._mark = mark_of(said, complete)
            if mark is None:
                hint = "start over with --force, or choose a new repository"
                raise ResumeError(f"{self.place}/{name}: is not valid", hint=hint)
            if mark.fingerprint != self.plan.fingerprint:
                raise of_another(self.plan, store, self.place, mark)
            if not complete and mark.work != work_of(self.plan):
                what = (
                    f"was begun by dsctl {mark.version or 'of an earlier version'}, which divides the work differently"
                )
                hint = "finish it with that version, or start over with --force"
                raise ResumeError(f"{self.place}: {what}", hint=hint)
            refuse_unlike(self.plan, store, self.place, mark)
            return "complete" if complete else "resume"
        self._refuse_others(head)
        return "new"

    def _refuse_others(self, head: Head) -> None:
        """Refuse a repository that dsctl did not begin.

        Raises:
            PlanError: with the names of its files.
        """
        if others := sorted(head.files.keys() - {ATTRIBUTES}):
            what = f"holds {plural(len(others), 'file')} that dsctl did not make, such as {others[0]}"
            hint = "choose a new repository; --force removes its weights and writes over its other files"
            raise PlanError(f"{self.place}: {what}", hint=hint, issues=others)

    def _removed(self, found: Mapping[str, dict[str, Any]]) -> list[str]:
        """The files that a new run removes from the repository: of an earlier run, weights, and their index."""
        if self._state.head is None:
            return []
        marks = [mark for name, said in found.items() if (mark := mark_of(said, name == SIGNED))]
        theirs = {SIGNED, STATEMENT, *(file for mark in marks for file in mark.files)}
        return [
            name
            for name in sorted(self._state.head.files.keys() - {ATTRIBUTES})
            if name in theirs or name.startswith(f"{UNFINISHED}/") or name.endswith((*WEIGHTS, ".index.json"))
        ]

    def begin(self, store: Store, state: str) -> None:
        self._held = identity(self.plan, store)
        mark = begun_json(self.plan, store, self._held) | {"work": work_of(self.plan)}
        self._begun = json.dumps(mark | {"files": sorted(outputs(self.plan))}, indent=1).encode()
        if state != "new":
            self._learn()
            return
        if self._state.head is None:
            head = self.writer.create(self.private)
            self._state = RepositoryState(self._state.private if self._state.exists else self.private, head)
            if not self.force:
                # A new branch begins at the first commit of main.
                self._refuse_others(head)
        found = {name: self._json(name) for name in (SIGNED, _BEGUN) if name in self._head.files}
        removes = self._removed(found) if self.force else []
        text = f"Begin: {plural(len(outputs(self.plan)), 'file')} by dsctl"
        more = f"Removes {plural(len(removes), 'file')}. Earlier commits keep them." if removes else ""
        self._commit([Content(_BEGUN, self._begun)], removes, text, more)
        self._mark = mark_of(json.loads(self._begun), complete=False)

    def _learn(self) -> None:
        """Read which work the repository has a record of."""
        for number in numbers(self._head.files):
            lines = self._read(segment_names(number)[0])
            self._work.learn(number, lines, self.place)

    def holds(self, note: Mapping[str, Any]) -> bool:
        listed = self._head.files.get(str(note["file"]))
        if listed is None or listed.size != note["size"]:
            return False
        if listed.sha256 is None:
            # A regular file, which is small: the hub lists only git's digest of it.
            return sha256_of(self._read(listed.name)).hexdigest() == note.get("sha256")
        return listed.sha256 == note.get("sha256")

    def is_ahead(self, folder: Path) -> bool:
        if (folder / SIGNED).exists():
            return False
        here = {record.get("file") for record in journal_of(folder)}
        return any(name not in here for kind, name in self._work.known if kind == "file")

    def restore(self, store: Store, folder: Path) -> Iterable[dict[str, Any]]:
        mark = self._mark
        if mark is None or not mark.held or not numbers(self._head.files):
            return []
        # The times of files of a different machine say nothing: all samples are compared.
        refuse_unlike(self.plan, store, self.place, mark._replace(place=f"{mark.place} of an earlier run"))
        restored = Restored(self.plan, folder, self.place, self.holds)
        for number in numbers(self._head.files):
            journal, rest = segment_names(number)
            restored.take(self._read(journal), self._read(rest) if rest in self._head.files else b"")
        notes = restored.finish()
        sign_begun(Route(self.plan, store, folder, self._held))
        for note in notes:
            (folder / (note["file"] + PART)).unlink(missing_ok=True)
            empty(folder / note["file"], note["size"])
        return notes

    def prepare(self, files: Mapping[str, Path]) -> None:
        self._outbox.sort(files)

    def send(self, name: str, path: Path, sha256: str, report: Callable[[int], None]) -> None:
        self._outbox.send(name, path, sha256, report)

    def save(self, files: Mapping[str, SignedFile], folder: Path) -> str:
        records = journal_of(folder)
        finished = [record for record in records if "file" in record]
        safe = {record["file"] for record in finished if record["file"] in files or self.holds(record)}
        removes: list[str] = []
        if self._work.stale(records):
            removes = [name for name in self._head.files if name.startswith(f"{UNFINISHED}/") and name != _BEGUN]
            self._work.known.clear()
        small: dict[str, bytes] = {}
        for segment in self._work.segments(folder, records, safe):
            small |= {segment.journal: segment.lines} | ({segment.rest: segment.data} if segment.data else {})
        if self._mark and (set(unlike(self._held, self._mark.held)) or self._held.keys() != self._mark.held.keys()):
            small[_BEGUN] = self._begun
            self._mark = mark_of(json.loads(self._begun), complete=False)
        text = f"Add {plural(len(files), 'file')}: {len(safe):,} of {len(self.plan.files):,} with tensors are there"
        return self._commit([*self._outbox.take(), *self._outbox.small(folder.parent, small)], removes, text)

    def finish(self, folder: Path) -> str:
        self.writer.check_card((folder / README).read_text())
        self.send(SIGNED, folder / SIGNED, sha256_of(read_own(folder / SIGNED)).hexdigest(), lambda nbytes: None)
        removes = [name for name in self._head.files if name.startswith(f"{UNFINISHED}/")]
        return self._commit(self._outbox.take(), removes, f"Finish: {plural(len(outputs(self.plan)), 'file')} by dsctl")

    def audit(self) -> dict[str, Any]:
        hint = "start over with --force"
        try:
            audit = valid_audit(self._json(SIGNED))
        except (TypeError, ValueError) as error:
            raise ResumeError(f"{self.place}/{SIGNED}: is not valid: {error}", hint=hint) from None
        for name, file in audit["files"].items():
            listed = self._head.files.get(name)
            same = listed is not None and listed.size == file["size"]
            if not same or (listed and listed.sha256 and listed.sha256 != file.get("sha256")):
                raise ResumeError(f"{self.place}/{name}: was finished, but is now missing or changed", hint=hint)
        return audit

    def stop(self) -> None:
        self.writer.stop()

    def _commit(self, adds: list[Sent | Content], removes: list[str], text: str, more: str = "") -> str:
        head = self.writer.commit(Commit(adds, removes, text, more), self._head)
        self._state = self._state._replace(head=head)
        return head.commit

    def _read(self, name: str) -> bytes:
        """The bytes of a file of the repository.

        Raises:
            ResumeError: it is far too long for a file that dsctl reads.
        """
        if self._head.files[name].size > _MOST_READ:
            raise ResumeError(f"{self.place}/{name}: is too long", hint="start over with --force")
        return self.writer.read(name, self._head) or b""

    def _json(self, name: str) -> dict[str, Any]:
        """A JSON object of the repository; empty if it is not JSON."""
        try:
            return dict(strict_json(self._read(name), name))
        except (ValueError, TypeError, RecursionError, FormatError, ResumeError):
            return {}
