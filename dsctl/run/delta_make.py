"""`dsctl delta make`: claim the target, compare both sides, write the delta; `dsctl.json` comes last. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from dsctl.checkpoint.delta_form import SIDES, stored_encoding
from dsctl.checkpoint.delta_record import Record, names_fault, packed_header
from dsctl.checkpoint.signed_files import SignedFile, Stretch, signed_bytes, signed_tree, tensors_of
from dsctl.checkpoint.weight_files import WeightFiles
from dsctl.core import digests
from dsctl.core.digests import Sums
from dsctl.core.errors import PlanError, WorkError
from dsctl.core.files import replace_file
from dsctl.core.header import Header
from dsctl.core.processors import cores
from dsctl.plan.delta_options import DeltaOptions
from dsctl.plan.differing import DeltaFile, Differing, Pair
from dsctl.plan.plan import COUNTED, OutFile, Plan
from dsctl.run.delta_files import DeltaFiles, FileTasks, Found, TensorTask
from dsctl.run.delta_sources import NEW, Sources, side_of
from dsctl.run.delta_target import Chain, Claimed, claimed, finish, forget_changed
from dsctl.run.events import EventReport
from dsctl.run.how import How
from dsctl.run.reading import Reading
from dsctl.stores import INDEX, Store
from dsctl.stores.blocks import Bytes, in_blocks
from dsctl.stores.threads import threads
from dsctl.work.differences import Coding, Difference, difference, digested, whole

CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Order:
    """A delta to make: both sides, the options, the pairs of tensors, and the other files that differ or are gone."""

    sources: Sources
    options: DeltaOptions
    differing: Differing
    sides: dict[str, SignedFile]
    removed: tuple[str, ...]

    @property
    def plan(self) -> Plan:
        """The delta as a run's plan: what it is asked for, its source, and the files that the target will hold."""
        request, described = self.options.request, self.sources.described()
        sides = {name: one.blake3 for name, one in self.sides.items()}
        identity = [request.json(), described, sides, sorted(self.removed)]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        for store in (self.sources.old.store, self.sources.new.store):
            digest.update(f"\n{store.revision}".encode())
        names = [file.name for file in self.differing.files]
        texts = {INDEX: b"", **{f"{SIDES}/{name}": b"" for name in self.sides}}
        return Plan(
            request, self.sources.old.store.place, [], [OutFile(name, b"", 0) for name in names], texts, {}, [], {}, [],
            digest.hexdigest(), described,
        )  # fmt: skip


@dataclass
class MadeDelta:
    """A finished delta: its `dsctl.json`, and by file what was found of each tensor; empty if it was there before."""

    audit: dict[str, Any]
    found: Mapping[str, Found] = field(default_factory=dict)


def order(old: WeightFiles, new: WeightFiles, options: DeltaOptions, differing: Differing) -> Order:
    """Compare the other files of both sides, by size and bytes.

    Raises:
        SourceError: one of them cannot be read. PlanError: a delta cannot have files of these names.
    """
    changed = {
        name: signed_bytes(size, Sums(_digest(new.store, name, size)))
        for name, size in new.sides.items()
        if old.sides.get(name) != size or _digest(old.store, name, size) != _digest(new.store, name, size)
    }
    removed = tuple(name for name in old.sides if name not in new.sides)
    if why := names_fault(old.headers, new.headers, changed, removed):
        raise PlanError(f"{new.store.place}: no delta can lead there: {why}", hint="rename the file")
    return Order(Sources(old, new), options, differing, changed, removed)


def _digest(store: Store, file: str, size: int) -> str:
    whole = digests.hasher()
    for chunk in _chunks(store, file, size):
        whole.update(chunk)
    return whole.digest().hex()


def _chunks(store: Store, file: str, size: int) -> Iterator[bytes]:
    return (store.read(file, at, min(at + CHUNK_BYTES, size)) for at in range(0, size, CHUNK_BYTES))


def make(order: Order, target: Path, how: How, report: EventReport) -> MadeDelta:
    """Make the delta, or continue an interrupted run.

    Raises:
        PlanError, ResumeError: as `check_target`. SourceError, WorkError: reading or writing failed; the same call
            continues.
    """
    with claimed(order.plan, order.sources.store, target, how) as held:
        if held.route is None or held.journal is None:
            return MadeDelta(held.audit or {})
        made = DeltaFiles(target, how.workers or cores(), report)
        with in_blocks(order.sources.store, made.workers) as reader:
            files = [_tasks(order, reader, file) for file in order.differing.files]
            forget_changed(held.route, held.journal, {file.name: file.sources for file in files})
            made.carry_out(files, held.journal)
            left = _left(order, reader, made.workers, report)
        return MadeDelta(_finish(order, held, made, left), made.done)


def _tasks(order: Order, reader: Bytes, file: DeltaFile) -> FileTasks:
    def tensors() -> Iterator[TensorTask]:
        return (TensorTask(pair.new.name, partial(_compare, order, reader, pair)) for pair in file.pairs)

    sources = {NEW + file.name, *(pair.old.file for pair in file.pairs if pair.old)}
    return FileTasks(file.name, len(file.pairs), tensors, frozenset(sources))


def _compare(order: Order, reader: Bytes, pair: Pair, out: IO[bytes], heed: Callable[[int], None]) -> Difference:
    coding = Coding(order.options.encoding, order.options.checksum, order.options.level)
    new = side_of(pair.new, reader, NEW)
    old = side_of(pair.old, reader) if pair.old else None
    if pair.whole or old is None:
        return whole(new, old, coding, out, heed)
    return difference(old, new, coding, out, heed)


def _left(order: Order, reader: Bytes, workers: int, report: EventReport) -> list[bytes]:
    """The digests of the tensors that only the old side has."""
    with threads(workers) as pool:
        reading = Reading(pool, report)
        refs = (ref for ref in order.differing.left if ref.nbytes)
        return list(reading.results(partial(digested, side_of(ref, reader), reading.heed) for ref in refs))


def _finish(order: Order, held: Claimed, making: DeltaFiles, left: list[bytes]) -> dict[str, Any]:
    target, new = making.target, order.sources.new
    files = {name: one.entry for name, one in making.done.items() if one.entry is not None}
    for name, known in order.sides.items():
        sums = replace_file(target / SIDES / name, _chunks(new.store, name, known.size))
        files[f"{SIDES}/{name}"] = signed_bytes(known.size, sums)
        if sums.blake3 != known.blake3:
            raise WorkError(f"{new.store.place}/{name}: was changed while it was read", hint="run the command again")
    options = order.options
    encoding = stored_encoding(options.encoding, bool(order.differing.own))
    chain = Chain(options.version_text, options.base_text, encoding, options.checksum)
    return finish(held, files, chain, _weight_map(order, making), _counts(order, making), _record(order, making, left))


def _weight_map(order: Order, making: DeltaFiles) -> dict[str, str]:
    named = {}
    for file in order.differing.files:
        for pair, found in zip(file.pairs, making.done[file.name].differences, strict=True):
            if not found.equal:
                named[pair.new.name] = file.name
    return named


def _record(order: Order, making: DeltaFiles, digests_left: list[bytes]) -> Record:
    options = order.options
    old, new, differing = order.sources.old, order.sources.new, order.differing
    before: dict[tuple[str, str], bytes] = {}
    after: dict[tuple[str, str], bytes] = {}
    equal, wholes = [], []
    for file in differing.files:
        for pair, found in zip(file.pairs, making.done[file.name].differences, strict=True):
            if pair.old is not None and found.old is not None:
                before[pair.old.file, pair.old.name] = found.old
            if found.new is not None:
                after[file.name, pair.new.name] = found.new
            if found.equal:
                equal.append(pair.new.name)
            elif pair.whole:
                wholes.append((file.name, pair.new.name))
    left = (ref for ref in differing.left if ref.nbytes)
    before |= {(ref.file, ref.name): digest for ref, digest in zip(left, digests_left, strict=True)}
    return Record(
        version=options.version_text,
        base_version=options.base_text,
        encoding=options.encoding,
        base=dict(_entries(old.headers.values(), old.sizes, before)),
        result=dict(_entries(new.headers.values(), new.sizes, after)),
        headers={name: packed_header(_header_bytes(new.headers[name])) for name in differing.headers},
        whole=wholes,
        equal=equal,
        sides=order.sides,
        removed=list(order.removed),
    )


def _entries(
    headers: Iterable[Header], sizes: Mapping[str, int], known: Mapping[tuple[str, str], bytes]
) -> Iterator[tuple[str, SignedFile]]:
    for header in headers:
        stretches = [Stretch(ref.begin, known[header.file, ref.name]) for ref in tensors_of(header)]
        yield header.file, signed_tree(_header_bytes(header), sizes[header.file], stretches)


def _header_bytes(header: Header) -> bytes:
    return len(header.raw).to_bytes(8, "little") + header.raw


def _counts(order: Order, making: DeltaFiles) -> dict[str, int]:
    """The counts of the audit: tensors and their elements, and how many of both changed; bytes, and their limit."""
    found = [one for file in making.done.values() for one in file.differences]
    pairs = list(order.differing.pairs)
    return dict.fromkeys(COUNTED, 0) | {
        "parameters": len(found),
        "values": sum(pair.new.spec.values for pair in pairs),
        "dropped": len(order.differing.left),
        "tensors_equal": sum(one.equal for one in found),
        "tensors_changed": sum(not one.equal for one in found),
        "tensors_whole": sum(pair.whole for pair in pairs),
        "values_changed": sum(one.changed for one in found),
        "bytes_new": sum(pair.new.nbytes for pair in pairs),
        "bytes_frames": sum(one.stored for one in found),
        "bytes_limit": round(sum(one.limit for one in found)),
    }
