"""Which files of a folder are the base's and which are already the delta's result, found by reading them. No torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from dsctl.checkpoint.delta_form import checksum
from dsctl.checkpoint.signed_files import SignedFile
from dsctl.core.amounts import plural
from dsctl.core.errors import FormatError, PlanError
from dsctl.plan.steps import Step
from dsctl.run.delta_apply import Application
from dsctl.run.delta_base import entries, moved_amiss, result_digests, results, unlike
from dsctl.run.delta_damage import refuse_damaged
from dsctl.run.events import EventReport
from dsctl.stores import Store

OLD, NEW = "old", "new"
CHUNK_BYTES = 8 << 20


@dataclass
class States:
    """Whether each file has its old or its new bytes. `changed` are the files that the delta changes; `marked`: a run
    in place has begun, so that files of both may be there. `entries` are the present ones of the result's files."""

    application: Application
    changed: Collection[str]
    marked: bool
    workers: int
    report: EventReport
    entries: dict[str, SignedFile] = field(default_factory=dict)
    _present: dict[str, SignedFile] = field(default_factory=dict)

    def found(self) -> dict[str, str]:
        """The state of each file, `OLD` or `NEW`. What old files would become is made once and dropped.

        Raises:
            PlanError: a file has neither, or nobody marked a folder that holds both. FormatError: the delta is damaged,
                or does not lead to the result that it states. SourceError: one of both cannot be read.
        """
        refuse_damaged(self.application.delta, self.workers, self.report)
        if self.application.delta.record is None:
            return self._by_sums()
        states = self._by_digests()
        self._refuse_bad_result(states)
        return states

    def _by_digests(self) -> dict[str, str]:
        base, record = self.application.base, self.application.delta.record
        assert record is not None
        found = entries(base.store, base.headers.values(), base.sizes, self.workers, self.report)
        self._present = found
        self.entries = {name: entry for name, entry in found.items() if name in record.result}
        states, differ = {}, []
        for name, entry in found.items():
            old, new = record.base.get(name), record.result.get(name)
            if old is not None and entry.tree == old.tree:
                states[name] = NEW if new is not None and old.tree == new.tree else OLD
            elif new is not None and entry.tree == new.tree:
                states[name] = NEW
            else:
                differ += unlike(old or new or entry, entry, base.headers[name]) or [name]
        absent = [name for name in record.base if name not in found and name in record.result]
        differ += absent
        if not self.marked:
            differ += [name for name in record.base if name not in found and name not in absent]
            self._refuse_mixed(states)
        self._refuse(differ)
        return states

    def _refuse_bad_result(self, states: dict[str, str]) -> None:
        """Refuse a delta that does not lead to the result that it states."""
        plan, delta = self.application.plan, self.application.delta
        known = result_digests(delta, plan)
        steps = [step for step in plan.steps if step.change is not None and states.get(_file(step)) != NEW]
        made = results(steps, self.application.store, self.workers, self.report)
        wrong = moved_amiss(self.application.base, self._present, delta, plan)
        wrong += [
            step.name
            for step, one in zip(steps, made, strict=True)
            if known.get((_file(step), step.name), one.digest) != one.digest
        ]
        if wrong:
            what = f"{plural(len(wrong), 'tensor')} would not have the digest that the delta states, such as {wrong[0]}"
            raise FormatError(f"{delta.store.place}: {what}", hint="make the delta again; nothing was written")

    def _refuse_mixed(self, states: dict[str, str]) -> None:
        """Refuse a folder that nobody marked, and that holds files of both versions."""
        mixed = {state for name, state in states.items() if name in self.changed}
        if len(mixed) > 1:
            new = min(name for name in self.changed if states.get(name) == NEW)
            what = f"holds files of two versions: {new} is already the delta's result, others are not"
            hint = "restore the base, then run the command again"
            raise PlanError(f"{self.application.base.store.place}: {what}", hint=hint)

    def _by_sums(self) -> dict[str, str]:
        """The same for a delta without digests of its base, by the checksums of the results."""
        plan, store = self.application.plan, self.application.store
        steps = [step for step in plan.steps if step.change is not None]
        becomes = results(steps, store, self.workers, self.report)
        states: dict[str, str] = {}
        differ = []
        for step, found in zip(steps, becomes, strict=True):
            change, part = step.change, step.reads[0].parts[0]
            assert change is not None
            state = OLD if found.good else ""
            if not found.good and _sum(store, part.file, part.offset, part.spec.nbytes, change.kind) == change.checksum:
                state = NEW
            if not state or states.setdefault(_file(step), state) != state:
                differ.append(step.name)
        self._refuse(differ)
        if not self.marked:
            self._refuse_mixed(states)
        return states

    def _refuse(self, differ: list[str]) -> None:
        if differ:
            what = f"is neither the base of the delta nor its result: {plural(len(differ), 'tensor')} not as in"
            hint = "name the base that the delta was made from; nothing was written"
            place = self.application.base.store.place
            raise PlanError(f"{place}: {what} either, such as {differ[0]}", hint=hint, issues=differ)


def _file(step: Step) -> str:
    return step.writes[0].parts[0].file


def _sum(store: Store, file: str, begin: int, nbytes: int, kind: str) -> str:
    whole = checksum(kind)
    for at in range(0, nbytes, CHUNK_BYTES):
        whole.update(store.read(file, begin + at, begin + min(at + CHUNK_BYTES, nbytes)))
    return whole.hexdigest()
