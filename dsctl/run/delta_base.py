"""Whether a base is the one that a delta was made from, before anything is written. Loads numpy, no torch."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from dsctl.checkpoint.delta import Delta
from dsctl.checkpoint.delta_form import checksum
from dsctl.checkpoint.signed_files import SignedFile, Stretch, differences, signed_tree, tensors_of
from dsctl.checkpoint.weight_files import WeightFiles
from dsctl.core import digests
from dsctl.core.amounts import plural
from dsctl.core.errors import FormatError, PlanError
from dsctl.core.header import Header, TensorRef, parse
from dsctl.plan.plan import Plan
from dsctl.plan.steps import Step
from dsctl.run.events import EventReport
from dsctl.run.reading import Reading
from dsctl.stores import Store
from dsctl.stores.blocks import Bytes, in_blocks
from dsctl.stores.threads import threads
from dsctl.work.patching import patched

PIECE_BYTES = 1 << 20
_HINT = "name the base that the delta was made from; nothing was written"


def entries(
    store: Store, headers: Iterable[Header], sizes: dict[str, int], workers: int, report: EventReport
) -> dict[str, SignedFile]:
    """The entries of weight files from their bytes, with the digests of all tensors.

    Raises:
        SourceError: one of them cannot be read.
    """
    found = {}
    with threads(workers) as pool, in_blocks(store, workers) as reader:
        reading = Reading(pool, report)
        files = [(header, list(tensors_of(header))) for header in headers]
        results = reading.results(partial(_digest, reader, ref, reading.heed) for _, refs in files for ref in refs)
        for header, refs in files:
            stretches = [Stretch(ref.begin, next(results)) for ref in refs]
            raw = len(header.raw).to_bytes(8, "little") + header.raw
            found[header.file] = signed_tree(raw, sizes[header.file], stretches)
    return found


def _digest(reader: Bytes, ref: TensorRef, heed: Callable[[int], None]) -> bytes:
    whole, buffer = digests.hasher(), memoryview(bytearray(min(PIECE_BYTES, ref.nbytes)))
    for at in range(0, ref.nbytes, PIECE_BYTES):
        piece = buffer[: min(PIECE_BYTES, ref.nbytes - at)]
        reader.read_into(ref.file, ref.begin + at, piece)
        whole.update(piece)
        heed(len(piece))
    return whole.digest()


def refuse_other_base(
    base: WeightFiles, delta: Delta, plan: Plan, store: Store, workers: int, report: EventReport
) -> None:
    """Refuse a base that is not the one of the delta. Every byte of it is read.

    A delta of dsctl has the digests of its base. Others have only checksums of the result: every changed tensor is made
    once and dropped.

    Raises:
        PlanError: naming the tensors that differ. SourceError: it cannot be read. FormatError: a frame is damaged.
    """
    if delta.record is None:
        _refuse_by_results(base, plan, store, workers, report)
        return
    known = delta.record.base
    if missing := sorted(known.keys() - base.headers.keys()):
        raise PlanError(f"{base.store.place}: has no file {missing[0]}: it is not the delta's base", hint=_HINT)
    if strange := sorted(base.headers.keys() - known.keys()):
        raise PlanError(
            f"{base.store.place}: has a file {strange[0]}, which the delta's base does not have", hint=_HINT
        )
    found = entries(base.store, base.headers.values(), base.sizes, workers, report)
    differ = [name for file, entry in found.items() for name in unlike(known[file], entry, base.headers[file])]
    if differ:
        number = f"{plural(len(differ), 'tensor')} differ{'s' * (len(differ) == 1)}"
        what = f"is not the base of the delta: {number}, such as {differ[0]}"
        raise PlanError(f"{base.store.place}: {what}", hint=_HINT, issues=differ)
    if wrong := moved_amiss(base, found, delta, plan):
        what = f"states a different digest for {wrong[0]}, which it does not change"
        raise FormatError(f"{delta.store.place}: {what}", hint="make the delta again; nothing was written")


def unlike(expected: SignedFile, found: SignedFile, header: Header) -> list[str]:
    """The names of tensors whose digests differ; `the header of FILE` if that does."""
    return [
        f"the header of {header.file}" if one == "its header" else one for one in differences(expected, found, header)
    ]


def _refuse_by_results(base: WeightFiles, plan: Plan, store: Store, workers: int, report: EventReport) -> None:
    changed = [step for step in plan.steps if step.change is not None]
    found = results(changed, store, workers, report)
    differ = [step.name for step, one in zip(changed, found, strict=True) if not one.good]
    if differ:
        kind = changed[0].change.kind if changed[0].change else ""
        what = f"does not become the delta's result: the {kind} of {plural(len(differ), 'tensor')} differs, such as"
        raise PlanError(f"{base.store.place}: {what} {differ[0]}", hint=_HINT, issues=differ)


class Result(NamedTuple):
    """Whether a patched tensor has the checksum that the delta states, and the BLAKE3 digest of its bytes."""

    good: bool
    digest: bytes


def results(steps: Iterable[Step], store: Store, workers: int, report: EventReport) -> list[Result]:
    """What would become of patched tensors; their bytes are dropped.

    Raises:
        SourceError: the base cannot be read. FormatError: a frame is damaged.
    """
    with threads(workers) as pool, in_blocks(store, workers) as reader:
        reading = Reading(pool, report)
        return list(reading.results(partial(_result, step, reader, reading.heed) for step in steps))


def moved_amiss(base: WeightFiles, found: Mapping[str, SignedFile], delta: Delta, plan: Plan) -> list[str]:
    """The names of tensors that the delta leaves alone, but for whose result it states another digest."""
    known = result_digests(delta, plan)
    held: dict[tuple[str, int], bytes] = {}
    for file, entry in found.items():
        parts = digests.split(b64decode(entry.tensors))
        held |= {(file, ref.begin): one for ref, one in zip(tensors_of(base.headers[file]), parts, strict=True)}
    amiss = []
    for step in plan.steps:
        source, target = step.reads[0].parts[0], step.writes[0].parts[0]
        stated = known.get((target.file, step.name))
        if step.change is None and stated is not None and held.get((source.file, source.offset), stated) != stated:
            amiss.append(step.name)
    return amiss


def result_digests(delta: Delta, plan: Plan) -> dict[tuple[str, str], bytes]:
    """The digests that the delta states of the result's tensors, by file and name."""
    known: dict[tuple[str, str], bytes] = {}
    for file in plan.files if delta.record else ():
        assert delta.record is not None
        parts = digests.split(b64decode(delta.record.result[file.name].tensors))
        header = parse(file.header[8:], file.name, None)
        known |= {(file.name, ref.name): one for ref, one in zip(tensors_of(header), parts, strict=True)}
    return known


def _result(step: Step, reader: Bytes, heed: Callable[[int], None]) -> Result:
    change, old = step.change, step.reads[0].parts[0]
    assert change is not None
    sum_, whole = checksum(change.kind), digests.hasher()

    def base(at: int, buffer: memoryview) -> None:
        reader.read_into(old.file, old.offset + at, buffer)

    for piece in patched(change, base, reader.read):
        sum_.update(piece)
        whole.update(piece)
        heed(len(piece))
    return Result(sum_.hexdigest() == change.checksum, whole.digest())
