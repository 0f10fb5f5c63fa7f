"""`dsctl delta fold`: several deltas of a chain as one. Loads numpy, no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from dsctl.checkpoint.delta import Changed, Delta, open_delta
from dsctl.checkpoint.delta_change import Change
from dsctl.checkpoint.delta_form import OVERWRITE, OVERWRITE_MOST, SHUFFLED, SIDES, stored_encoding
from dsctl.checkpoint.delta_record import Record
from dsctl.checkpoint.signed_files import signed_bytes
from dsctl.checkpoint.weight_files import identified
from dsctl.core.errors import PlanError, UsageError
from dsctl.core.files import replace_file
from dsctl.core.frames import SPARSE, Frame
from dsctl.core.processors import cores
from dsctl.plan.plan import COUNTED, OutFile, Plan
from dsctl.plan.request import KEEP, Request
from dsctl.run.delta_damage import refuse_damaged
from dsctl.run.delta_files import DeltaFiles, FileTasks, TensorTask
from dsctl.run.delta_target import Chain, claimed, finish, forget_changed
from dsctl.run.events import EventReport
from dsctl.run.how import How
from dsctl.stores import INDEX, Store
from dsctl.stores.blocks import Bytes, in_blocks
from dsctl.stores.joined import Joined
from dsctl.work.differences import Difference
from dsctl.work.folding import Folded, fold

_ONE_BY_ONE = "apply them one after the other"


@dataclass(frozen=True)
class Folding:
    """The deltas of a chain, in order, and by file and name the changes of a tensor, with its delta's place."""

    deltas: tuple[Delta, ...]
    level: int

    @cached_property
    def keys(self) -> dict[str, dict[str, list[tuple[int, Changed]]]]:
        """The changes of each tensor in the order of the deltas, by its file and name.

        Deltas of other writers may have a tensor in files of different names: the last of them gives the name.
        """
        shared = any(delta.record is None for delta in self.deltas)
        home = {name: file for delta in self.deltas for file, name in delta.tensors} if shared else {}
        found: dict[str, dict[str, list[tuple[int, Changed]]]] = {}
        for place, delta in enumerate(self.deltas):
            for (file, name), changed in delta.tensors.items():
                found.setdefault(home.get(name, file), {}).setdefault(name, []).append((place, changed))
        return {file: dict(sorted(names.items())) for file, names in sorted(found.items())}

    @property
    def store(self) -> Store:
        """All deltas as one store."""
        stores = [delta.store for delta in self.deltas]
        return reduce(lambda joined, one: Joined(joined, one[1], _prefix(one[0])), enumerate(stores[1:], 1), stores[0])

    @property
    def records(self) -> list[Record] | None:
        """The records of all deltas, or None if one has none."""
        found = [delta.record for delta in self.deltas if delta.record is not None]
        return found if len(found) == len(self.deltas) else None

    def sides(self) -> tuple[dict[str, int], list[str]]:
        """The other files of the result by the place of their delta, and those that it does not have."""
        sides: dict[str, int] = {}
        removed: dict[str, None] = {}
        for place, record in enumerate(self.records or ()):
            for name in record.removed:
                sides.pop(name, None)
                removed[name] = None
            for name in record.sides:
                sides[name] = place
                removed.pop(name, None)
        return sides, list(removed)

    def plan(self) -> Plan:
        """The folded delta as a run's plan."""
        identity = " ".join(delta.identity for delta in self.deltas)
        request = Request(KEEP, delta=f"fold {hashlib.sha256(identity.encode()).hexdigest()} level {self.level}")
        digest = hashlib.sha256(json.dumps([request.json(), identity], sort_keys=True).encode())
        described = {
            _prefix(place) + file: identified(header, delta.sizes[file])
            for place, delta in enumerate(self.deltas)
            for file, header in delta.headers.items()
        }
        texts = {INDEX: b"", **{f"{SIDES}/{name}": b"" for name in self.sides()[0]}}
        files = [OutFile(name, b"", 0) for name in self.keys]
        place = self.deltas[0].store.place
        return Plan(request, place, [], files, texts, {}, [], {}, [], digest.hexdigest(), described)


def _prefix(place: int) -> str:
    """Before the names of a delta's files in the joined store; those of the first have none."""
    return f"delta{place}://" if place else ""


def folding(stores: Sequence[Store], level: int = SPARSE) -> Folding:
    """Open the deltas of a chain.

    Raises:
        UsageError: fewer than two. PlanError: they are not a chain, or cannot be folded without their base.
        SourceError, FormatError: one cannot be read.
    """
    if len(stores) < 2:
        raise UsageError("delta fold: needs at least two deltas and a target")
    deltas = tuple(map(open_delta, stores))
    for one, other in pairwise(deltas):
        _refuse_gap(one, other)
    for kind, values in (("encodings", {d.encoding for d in deltas}), ("checksums", {d.checksum for d in deltas})):
        if len(values) > 1:
            raise PlanError(
                f"delta fold: the deltas have different {kind}: {', '.join(sorted(values))}", hint=_ONE_BY_ONE
            )
    for delta in deltas[1:]:
        if delta.record is not None and delta.record.headers:
            what = f"changes the layout of {next(iter(delta.record.headers))}"
            raise PlanError(
                f"{delta.store.place}: {what}; only the first delta of a fold can do that", hint=_ONE_BY_ONE
            )
    if deltas[0].encoding == SHUFFLED and any(one.whole for delta in deltas[:-1] for one in delta.tensors.values()):
        what = "shuffled deltas after a tensor that is stored whole cannot be folded"
        raise PlanError(f"delta fold: {what}", hint=_ONE_BY_ONE)
    own = next((delta for delta in deltas if not delta.shared), None)
    if own is not None and any(delta.record is None for delta in deltas):
        what = f"{own.store.place} needs what its dsctl.json says of both sides, and another delta has no such record"
        raise PlanError(f"delta fold: {what}", hint=_ONE_BY_ONE)
    return Folding(deltas, level)


def _refuse_gap(one: Delta, other: Delta) -> None:
    """Refuse deltas that do not follow each other: by version, and by the digests of what lies between them."""
    where = f"{other.store.place}: does not follow {one.store.place}"
    if other.base_version != one.version:
        what = f"it is for version {other.base_version}, that one leads to {one.version}"
        raise PlanError(f"{where}: {what}", hint="name the deltas in the order in which they are applied")
    if one.record is not None and other.record is not None:
        result = {file: entry.tree for file, entry in one.record.result.items()}
        base = {file: entry.tree for file, entry in other.record.base.items()}
        if differ := sorted(file for file in result.keys() | base.keys() if result.get(file) != base.get(file)):
            what = f"{differ[0]} is not the same between them"
            raise PlanError(f"{where}: {what}", hint="name the deltas in the order in which they are applied")


def fold_to(folding: Folding, target: Path, how: How, report: EventReport) -> dict[str, Any]:
    """Fold the deltas into a new one, or continue that; gives what its `dsctl.json` says.

    Raises:
        PlanError, ResumeError: as `check_target`. FormatError: a frame is damaged.
        SourceError, WorkError: reading or writing failed; the same call continues.
    """
    for delta in folding.deltas:
        refuse_damaged(delta, how.workers or cores(), report)
    with claimed(folding.plan(), folding.store, target, how) as held:
        if held.route is None or held.journal is None:
            return held.audit or {}
        made = DeltaFiles(target, how.workers or cores(), report)
        tasks = [_tasks(folding, file) for file in folding.keys]
        forget_changed(held.route, held.journal, {file.name: file.sources for file in tasks})
        with ExitStack() as stack:
            readers = [stack.enter_context(in_blocks(delta.store, made.workers)) for delta in folding.deltas]
            made.carry_out([_tasks(folding, file, readers) for file in folding.keys], held.journal)
        files = {name: one.entry for name, one in made.done.items() if one.entry is not None}
        for name, place in folding.sides()[0].items():
            delta = folding.deltas[place]
            data = delta.store.read(f"{SIDES}/{name}", 0, delta.sizes[f"{SIDES}/{name}"])
            files[f"{SIDES}/{name}"] = signed_bytes(len(data), replace_file(target / SIDES / name, data))
        first, last = folding.deltas[0], folding.deltas[-1]
        own = not all(delta.shared for delta in folding.deltas)
        chain = Chain(last.version, first.base_version, stored_encoding(last.encoding, own), last.checksum)
        return finish(held, files, chain, _weight_map(folding, made), _counts(made), _record(folding, made))


def _tasks(folding: Folding, file: str, readers: Sequence[Bytes] = ()) -> FileTasks:
    names = folding.keys[file]

    def tensors() -> Iterator[TensorTask]:
        return (TensorTask(name, partial(_fold, folding, readers, changes)) for name, changes in names.items())

    sources = {_prefix(place) + changed.ref.file for changes in names.values() for place, changed in changes}
    return FileTasks(file, len(names), tensors, frozenset(sources))


def _fold(
    folding: Folding,
    readers: Sequence[Bytes],
    changes: Sequence[tuple[int, Changed]],
    out: IO[bytes],
    heed: Callable[[int], None],
) -> Difference:
    alone = tuple(_alone(folding.deltas[place], readers[place], changed) for place, changed in changes)
    return fold(Folded(alone, tuple(readers[place].read for place, _ in changes)), folding.level, out, heed)


def _alone(delta: Delta, reader: Bytes, changed: Changed) -> Change:
    """A change of a tensor whose size only its frame tells; an overwriting frame does not."""
    ref = changed.ref
    nbytes = OVERWRITE_MOST - 1
    if changed.whole or delta.encoding != OVERWRITE:

        def read(begin: int, end: int) -> bytes:
            return reader.read(ref.file, ref.begin + begin, ref.begin + end)

        nbytes = Frame(read, ref.nbytes, f"{delta.store.place}/{ref.file}: {ref.name}", None).nbytes
    return Change(
        ref.name, ref.file, ref.begin, ref.nbytes, nbytes, 1, delta.encoding, delta.checksum, changed.checksum,
        changed.whole,
    )  # fmt: skip


def _found(folding: Folding, made: DeltaFiles) -> Iterator[tuple[str, str, Difference]]:
    for file, names in folding.keys.items():
        for name, one in zip(names, made.done[file].differences, strict=True):
            yield file, name, one


def _weight_map(folding: Folding, made: DeltaFiles) -> dict[str, str]:
    return {name: file for file, name, one in _found(folding, made) if not one.equal}


def _record(folding: Folding, made: DeltaFiles) -> Record | None:
    records = folding.records
    if records is None:
        return None
    first, last = records[0], records[-1]
    changed = {(file, name) for file, name, one in _found(folding, made) if not one.equal}
    zero = [name for _, name, one in _found(folding, made) if one.equal]
    whole = {pair for record in records for pair in record.whole} & changed
    names = {name for _, name in changed}
    equal = [name for name in first.equal if name not in names]
    sides, removed = folding.sides()
    return Record(
        version=last.version,
        base_version=first.base_version,
        encoding=last.encoding,
        base=first.base,
        result=last.result,
        headers=first.headers,
        whole=sorted(whole),
        equal=[*equal, *(name for name in zero if name not in equal)],
        sides={name: records[place].sides[name] for name, place in sides.items()},
        removed=removed,
    )


def _counts(made: DeltaFiles) -> dict[str, int]:
    found = [one for file in made.done.values() for one in file.differences]
    return dict.fromkeys(COUNTED, 0) | {
        "parameters": len(found),
        "tensors_changed": sum(not one.equal for one in found),
        "tensors_equal": sum(one.equal for one in found),
        "bytes_frames": sum(one.stored for one in found),
    }
