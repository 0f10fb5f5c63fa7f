"""`dsctl delta apply --in-place`: every file is made anew beside the old one and takes its place. No torch.

A file has its old bytes or its new ones, never a mixture, and which of both it has is found by reading it: so the same
command goes on after a kill. Until the end `config.json` is kept aside, so that no loader takes files of two versions
for a checkpoint, and there is no `dsctl.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsctl.checkpoint.delta_form import IN_PLACE
from dsctl.checkpoint.signed_files import SignedFile, Stretch, read_entry, signed_bytes, signed_tree
from dsctl.core import digests
from dsctl.core.amounts import size
from dsctl.core.errors import FormatError, PlanError, ResumeError
from dsctl.core.files import PART, failure, make_folders, read_own, replace_file, sync_folder, write_all
from dsctl.plan.patching import refuse_in_place
from dsctl.plan.plan import Job, OutFile
from dsctl.plan.stretches import written
from dsctl.run.delta_apply import Application
from dsctl.run.delta_base import entries
from dsctl.run.delta_states import NEW, States
from dsctl.run.events import Advanced, Committed, EventReport
from dsctl.run.locks import Lock
from dsctl.run.marks import BEGUN
from dsctl.stores import CONFIG, SIGNED, STATEMENT, WORKING, Store
from dsctl.stores.local import LocalFolder
from dsctl.version import __version__
from dsctl.work.executors.threads import ByteThreads
from dsctl.work.tasks import Context

ASIDE = "delta"


@dataclass
class InPlace:
    """One run on a folder of this machine. `already`: the folder had the delta's result before."""

    application: Application
    workers: int
    report: EventReport
    already: bool = False
    _done: dict[str, SignedFile] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The base's folder.

        Raises:
            PlanError: the base is not a folder on this machine.
        """
        store = self.application.base.store
        if not isinstance(store, LocalFolder) or store.only:
            what = "only a folder on this machine can be changed in place"
            raise PlanError(f"{store.place}: {what}", hint="name a target in the place of --in-place")
        return Path(store.root)

    @property
    def changed(self) -> list[OutFile]:
        """The files that are replaced."""
        base = self.application.base.headers
        patched = {step.writes[0].parts[0].file for step in self.application.plan.steps if step.change}
        same = {name for name, header in base.items() if name not in patched}
        return [
            one for one in self.application.plan.files if one.name not in same or _raw(base[one.name].raw) != one.header
        ]

    def check(self) -> None:
        """Refuse what cannot be done in place, before anything is read.

        Raises:
            PlanError: a file is made from another one, there is no room, or the folder is not on this machine.
            ResumeError: an unfinished run of another kind, or another delta, is in the folder.
        """
        refuse_in_place(self.application.plan)
        self._refuse_links()
        if (self.folder / WORKING / BEGUN).exists():
            raise ResumeError(f"{self.folder}: holds the unfinished work of another run", hint="finish that run first")
        known = self._marked()
        if known not in ("", self.application.delta.identity):
            what = "another delta is applied here, and not finished"
            raise ResumeError(f"{self.folder}: {what}", hint="finish that one first, with the same command")
        need, free = max((one.size for one in self.changed), default=0), shutil.disk_usage(self.folder).free
        if need > free:
            what = f"needs {size(need)} of disk for the largest changed file, but {size(free)} are free"
            raise PlanError(f"{self.folder}: {what}")

    def carry_out(self) -> dict[str, Any]:
        """Replace the files, or go on with that, and return what `dsctl.json` says then.

        Raises:
            PlanError: a file is neither the base's nor the result's; nothing was written. FormatError: the delta is
                damaged. ResumeError: as `check`; or another process works here.
            DsctlError: reading or writing failed; the same command goes on.
        """
        self.check()
        lock = Lock(self.folder / WORKING)
        try:
            # Another run may have worked here before this one had the lock.
            self.check()
            marked, changed = bool(self._marked()), self.changed
            names = {one.name for one in changed}
            looked = States(self.application, names, marked, self.workers, self.report)
            states = looked.found()
            self._done = looked.entries
            self.already = not marked and all(states.get(name) == NEW for name in names)
            self._begin(marked)
            self._replace([one for one in changed if states.get(one.name) != NEW])
            audit = self._finish()
        finally:
            lock.release()
        with contextlib.suppress(OSError):
            (self.folder / WORKING).rmdir()
        return audit

    def _refuse_links(self) -> None:
        """Refuse a folder in which a name of the result leads elsewhere, or is that of a folder."""
        plan = self.application.plan
        own = (f"{WORKING}/{ASIDE}/x", f"{WORKING}/{IN_PLACE}")
        for name in (*own, *(file.name for file in plan.files), *plan.texts):
            for inner in (self.folder / one for one in list(Path(name).parents)[:-1]):
                if inner.is_symlink() or (inner.exists() and not inner.is_dir()):
                    raise PlanError(f"{inner}: is a link or not a folder, but {name} is to be written there")
            if (self.folder / name).is_dir() and not (self.folder / name).is_symlink():
                raise PlanError(f"{self.folder / name}: is a folder, but a file is to be written there")

    def _marked(self) -> str:
        """The identity of the delta that is being applied here; empty if there is none."""
        try:
            said = json.loads(read_own(self.folder / WORKING / IN_PLACE))
            return str(said[ASIDE])
        except FileNotFoundError:
            return ""
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            what = "is not valid"
            hint = "restore the folder from its source: it may hold files of two versions"
            raise ResumeError(f"{self.folder / WORKING / IN_PLACE}: {what}", hint=hint) from None

    def _begin(self, marked: bool) -> None:
        """Mark the folder, and take away what would call a mixture complete."""
        aside = self.folder / WORKING / ASIDE
        try:
            if not marked and aside.exists():
                # Left of a finished run: a config.json in it is not that of this base.
                shutil.rmtree(aside)
        except OSError as error:
            raise failure(aside, error) from None
        make_folders(aside)
        mark = json.dumps({ASIDE: self.application.delta.identity, "dsctl": __version__}).encode()
        replace_file(self.folder / WORKING / IN_PLACE, mark)
        try:
            for name in (SIGNED, STATEMENT):
                (self.folder / name).unlink(missing_ok=True)
            # It may be a link, and then leads nowhere from there.
            if os.path.lexists(self.folder / CONFIG) and not os.path.lexists(aside / CONFIG):
                os.rename(self.folder / CONFIG, aside / CONFIG)
        except OSError as error:
            raise failure(self.folder, error) from None
        sync_folder(self.folder)

    def _replace(self, todo: list[OutFile]) -> None:
        aside = self.folder / WORKING / ASIDE
        jobs: dict[str, list[Job]] = {}
        for job in self.application.plan.jobs:
            jobs.setdefault(job.files[0], []).append(job)
        executor = ByteThreads(Context(self.application.store, str(aside)), self.workers)
        try:
            for file in todo:
                entry = self._make(file, jobs.get(file.name, []), executor, aside)
                self._done[file.name] = entry
                self.report(Committed(file.name, entry))
        finally:
            executor.close()

    def _make(self, file: OutFile, jobs: list[Job], executor: ByteThreads, aside: Path) -> SignedFile:
        """Make a file aside, compare it with the delta's digest, and let it take its place."""
        part, target = aside / (file.name + PART), self.folder / file.name
        try:
            make_folders(part.parent)
            part.unlink(missing_ok=True)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                os.truncate(descriptor, file.size)
                write_all(descriptor, file.header, 0)
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise failure(part, error) from None
        stretches = list(self._performed(jobs, executor))
        entry = signed_tree(file.header, file.size, stretches)
        record = self.application.delta.record
        if record is not None and entry.tree != record.result[file.name].tree:
            what = "would not become the file that the delta was made for: the base or the delta changed meanwhile"
            raise FormatError(f"{target}: {what}", hint="verify both, then run the same command again")
        try:
            make_folders(target.parent)
            shutil.copymode(target, part) if target.exists() else None
            os.replace(part, target)
        except OSError as error:
            raise failure(target, error) from None
        sync_folder(target.parent)
        return entry

    def _performed(self, jobs: list[Job], executor: ByteThreads) -> Iterator[Stretch]:
        known, todo, busy = {job.number: job for job in jobs}, deque(jobs), 0
        while todo or busy:
            while todo and busy < executor.capacity:
                executor.submit(todo.popleft())
                busy += 1
            receipt = executor.next(lambda nbytes: self.report(Advanced(nbytes)))
            busy -= 1
            assert receipt.job is not None
            job = known[receipt.job]
            for one, digest in zip(written(job), digests.split(receipt.digests), strict=True):
                yield Stretch(one.begin, digest)

    def _finish(self) -> dict[str, Any]:
        """Write the other files, `config.json` and `dsctl.json` last."""
        plan, delta, aside = self.application.plan, self.application.delta, self.folder / WORKING / ASIDE
        held = {*plan.carried} | {*self.application.base.sides}
        gone = {*(delta.record.removed if delta.record else ())} & self.application.base.sides.keys()
        gone |= self.application.base.headers.keys() - {file.name for file in plan.files}
        files: dict[str, SignedFile] = {}
        try:
            for name in sorted(gone):
                (self.folder / name).unlink(missing_ok=True)
            for name, data in sorted(plan.texts.items(), key=lambda one: one[0] == CONFIG):
                files[name] = signed_bytes(len(data), replace_file(self.folder / name, data))
            if CONFIG not in plan.texts and os.path.lexists(aside / CONFIG):
                os.rename(aside / CONFIG, self.folder / CONFIG)
                held.add(CONFIG)
        except OSError as error:
            raise failure(self.folder, error) from None
        sync_folder(self.folder)
        store = self.application.base.store
        for name in sorted(held - gone - files.keys()):
            nbytes = os.stat(self.folder / name).st_size
            files[name] = read_entry(store, name, nbytes, SignedFile(nbytes, blake3="0"))
        files |= self._weights(store)
        audit = {
            "dsctl": __version__,
            "fingerprint": plan.fingerprint,
            "source": {"place": plan.source, "files": plan.source_files, "modified": {}, "identity": {}},
            "request": plan.request.json(),
            "audit": plan.counts,
            "dropped": [],
            "notes": [],
            "files": {name: entry.json() for name, entry in sorted(files.items())},
        }
        replace_file(self.folder / SIGNED, (json.dumps(audit, indent=1, ensure_ascii=False) + "\n").encode())
        shutil.rmtree(aside, ignore_errors=True)
        (self.folder / WORKING / IN_PLACE).unlink(missing_ok=True)
        return audit

    def _weights(self, store: Store) -> dict[str, SignedFile]:
        """The entries of the result's weight files; those that a delta without digests left alone are read for them."""
        left = [name for name in (file.name for file in self.application.plan.files) if name not in self._done]
        headers = self.application.base.headers
        found = entries(store, [headers[name] for name in left], self.application.base.sizes, self.workers, self.report)
        return {name: (self._done | found)[name] for name in (file.name for file in self.application.plan.files)}


def _raw(raw: bytes) -> bytes:
    return len(raw).to_bytes(8, "little") + raw
