"""The folder in which a delta is made: its owner, its journal, and the files that come last. No torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from dsctl.checkpoint.delta_form import BASE, CHECKSUM, COMPRESSION, ENCODING, VERSION, ZSTD
from dsctl.checkpoint.delta_record import RECORD, Record, as_json
from dsctl.checkpoint.signed_files import SignedFile, signed_bytes
from dsctl.core.errors import ResumeError, WorkError
from dsctl.core.files import replace_file, sync_folder
from dsctl.plan.plan import Plan
from dsctl.run.audits import read_audit
from dsctl.run.claim import check_target, claim, held_now, retire
from dsctl.run.how import How
from dsctl.run.identity import folder_of, times, touched
from dsctl.run.journal import Journal
from dsctl.run.locks import Lock
from dsctl.run.marks import Route, read_mark, sign_begun, source_json
from dsctl.run.resuming import changed_since
from dsctl.run.statement import Made
from dsctl.stores import INDEX, SIGNED, STATEMENT, WORKING, Store
from dsctl.version import __version__


class Claimed(NamedTuple):
    """A target that is ours while its block runs: route, journal and lock; or the `dsctl.json` of a complete one."""

    route: Route | None
    journal: Journal | None
    audit: dict[str, Any] | None = None
    lock: Lock | None = None

    def refuse_changed(self) -> None:
        """Stop if a source file has changed since the run began, or another run has taken the target.

        Raises:
            WorkError: naming the file. SourceError: one is missing.
        """
        assert self.route is not None
        assert self.lock is not None
        hint = "run the same command again"
        if not self.lock.held():
            raise WorkError(f"{self.lock.path}: was removed or replaced during this run", hint=hint)
        plan, store = self.route.plan, self.route.store
        if late := sorted(touched(times(plan, store), self.route.held)):
            folder = folder_of(store, late[0])
            place = f"{folder.root if folder else store.place}/{late[0].rpartition('://')[2]}"
            raise WorkError(f"{place}: was changed while it was read", hint=f"{hint}: it reads that file again")


class Chain(NamedTuple):
    """What the index of a delta says: its version and its base's, the stored encoding and the kind of checksum."""

    version: str
    base: str
    encoding: str
    checksum: str


@contextmanager
def claimed(plan: Plan, store: Store, target: Path, how: How) -> Iterator[Claimed]:
    """Claim a folder for a plan, new or to continue, and release it at the end of the block.

    Raises:
        PlanError, ResumeError: as `check_target`; also if another process works there.
    """
    seen = read_mark(target)
    if check_target(plan, store, target, how.force) == "complete" and not (target / WORKING).exists():
        yield Claimed(None, None, read_audit(target))
        return
    lock = Lock(target / WORKING)
    try:
        if how.force and read_mark(target) != seen:
            what = "another run worked here in the meantime"
            raise ResumeError(f"{target}: {what}", hint="check its result, then run the same command again")
        state = check_target(plan, store, target, how.force)
        if state == "complete":
            yield Claimed(None, None, read_audit(target))
            # The run that made it was killed at the very end.
            retire(target)
            return
        route = Route(plan, store, target, held_now(plan, store, read_mark(target) if state == "resume" else None))
        for folder in (target.absolute().parent, target, target / WORKING):
            sync_folder(folder)
        if state == "new":
            claim(route)
        with Journal(target / WORKING) as journal:
            yield Claimed(route, journal, lock=lock)
        retire(target)
        sync_folder(target)
    finally:
        lock.release()


def forget_changed(route: Route, journal: Journal, sources: Mapping[str, Collection[str]]) -> None:
    """Drop the finished files of an earlier run of which a source file has changed since; `sources` are those of each.

    Raises:
        WorkError: the journal cannot be written.
    """
    mark = read_mark(route.target)
    changed = changed_since(route.held, mark, route.plan)
    if changed:
        journal.keep([one for one in journal.records if changed.isdisjoint(sources.get(one.get("file", ""), ()))])
    if mark and mark.held != route.held:
        sign_begun(route)


def finish(
    held: Claimed,
    files: dict[str, SignedFile],
    chain: Chain,
    weight_map: Mapping[str, str],
    counts: dict[str, int],
    record: Record | None,
) -> dict[str, Any]:
    """Write the index, the statement and `dsctl.json`, whose presence means complete; gives what it says.

    Raises:
        WorkError: the folder cannot be written, or a source has changed since the run began.
    """
    route = held.route
    assert route is not None
    target, plan = route.target, route.plan
    said = {
        VERSION: chain.version,
        BASE: chain.base,
        ENCODING: chain.encoding,
        COMPRESSION: ZSTD,
        CHECKSUM: chain.checksum,
    }
    index = text({"metadata": said, "weight_map": dict(sorted(weight_map.items()))})
    files[INDEX] = signed_bytes(len(index), replace_file(target / INDEX, index))
    made = Made(plan, route.store, route.held, files, counts).statement()
    files[STATEMENT] = signed_bytes(len(made), replace_file(target / STATEMENT, made))
    audit = {
        "dsctl": __version__,
        "fingerprint": plan.fingerprint,
        "source": source_json(plan, route.held) | {"files": plan.source_files},
        "request": plan.request.json(),
        "audit": counts,
        "dropped": [],
        "notes": plan.notes,
        **({RECORD: as_json(record)} if record else {}),
        "files": {name: entry.json() for name, entry in sorted(files.items())},
    }
    held.refuse_changed()
    replace_file(target / SIGNED, text(audit))
    return audit


def text(value: Any) -> bytes:
    """A JSON file as dsctl writes it."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
