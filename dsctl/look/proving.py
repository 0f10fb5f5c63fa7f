"""Prove that a checkpoint's parameters are those of a source: whole, or by a sample of rows of every parameter.

Both sides may be in any form and any layout, ranks included. Every stored copy of a parameter is compared. A sample
takes one run of rows from each stored region of every parameter, at a place that the seed chooses; small ones are read
whole.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import lcm, prod
from typing import NamedTuple

from dsctl import releases
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.faults import require_whole
from dsctl.checkpoint.pieces import Piece, cover
from dsctl.checkpoint.quantization import fused
from dsctl.codecs.codec import moves_to
from dsctl.codecs.plain import FLOATS
from dsctl.core.boxes import Box
from dsctl.core.extras import require_torch
from dsctl.core.params import Param
from dsctl.core.processors import cores
from dsctl.core.progress import Advance
from dsctl.look.compare import THREADS, held_by
from dsctl.look.proof import Proof, Sample
from dsctl.look.verdicts import OTHER, Judged, Tally, settled
from dsctl.stores import Store
from dsctl.stores.hub import HubRepository
from dsctl.verify.findings import Finding

# Work for one thread at a time, as float32 of one side.
SHARE_BYTES = 256 << 20
# Regions of fewer bytes are read whole by a sample too: a request costs more than they do.
SMALL_BYTES = 64 << 10
# Other parameters for which a parameter that they resemble is looked for.
RESEMBLED = 20


class Subject(NamedTuple):
    """A parameter that both sides have: all of its pieces here, one piece for every region there.

    `partners` are the parameters of the source that share a global scale with it, this one included.
    """

    param: Param
    ours: tuple[Piece, ...]
    theirs: tuple[Piece, ...]
    partners: tuple[tuple[Param, tuple[Piece, ...]], ...] = ()

    @property
    def same_form(self) -> bool:
        """Whether the same bits mean the same on both sides."""
        mine, other = self.ours[0].codec, self.theirs[0].codec
        return moves_to(mine, other) or moves_to(other, mine)


class Unit(NamedTuple):
    """Rows of one stored region of a parameter, for one thread."""

    subject: Subject
    piece: int
    rows: Box
    sampled: bool

    @property
    def nbytes(self) -> int:
        """The approximate number of bytes that both sides read."""
        size = max(1, prod(self.subject.param.shape))
        stored = sum(piece.nbytes for piece in self.subject.theirs)
        piece = self.subject.ours[self.piece]
        here = piece.nbytes * self.rows.size // max(1, piece.slot.region.size)
        return here + stored * self.rows.size // size


class Task(NamedTuple):
    """Everything to compare, and the names that cannot be compared."""

    stores: tuple[Store, Store]
    units: tuple[Unit, ...]
    subjects: tuple[Subject, ...]
    rest: Proof

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(unit.nbytes for unit in self.units)


def prepare(here: Checkpoint, there: Checkpoint, name: str = "", sample: Sample | None = None) -> Task:
    """Match a checkpoint with its source by the names of parameters; nothing is read yet.

    `name` is the source's short name; without it, the name of its release or its place is used.

    Raises:
        FormatError: the source contradicts itself, or tensors cannot be matched. PlanError: torch is not installed.
    """
    require_torch("comparing values")
    require_whole(there, allow_missing=True, allow_extra=True)
    mine, other = held_by(here), held_by(there)
    if here.alone:
        other = {one: held for one, held in other.items() if one in mine or _is_needed(held[0])}
    groups = _partners(there, other) if any(_surveys(pieces) for _, pieces in mine.values()) else {}
    subjects, reshaped, unread, partial = [], [], [], []
    for one, (param, pieces) in mine.items():
        if one not in other:
            continue
        source, stored = other[one]
        if param.shape != source.shape:
            reshaped.append((one, f"{list(param.shape)} here, {list(source.shape)} there"))
        elif not pieces or not stored or not _are_comparable(pieces, stored):
            unread.append((one, "dsctl does not read one of its two forms as numbers"))
        elif not _are_covered(pieces, stored):
            unread.append((one, "the source holds only a part of it"))
        else:
            partners = groups.get(one, ((source, cover(stored)),)) if _surveys(pieces) else ()
            subjects.append(Subject(param, pieces, cover(stored), partners))
            if sum(piece.slot.region.size for piece in cover(pieces)) < prod(param.shape):
                partial.append(one)
    units = tuple(unit for number, one in enumerate(subjects) for unit in _units(one, number, sample))
    rest = Proof(
        (here.store.place, there.store.place),
        name or _short(there.store),
        (),
        tuple(one for one in other if one not in mine),
        tuple(one for one in mine if one not in other),
        tuple(reshaped),
        tuple(unread),
        partial=tuple(partial),
        drafter=here.alone,
        sample=sample and sample._replace(of=sum(unit.nbytes for one in subjects for unit in _units(one, 0, None))),
    )
    return Task((here.store, there.store), units, tuple(subjects), rest)


def _is_needed(param: Param) -> bool:
    """Whether a drafter alone must have a parameter: loaders take copies of embedding and head from the target."""
    return param.family.mtp and param.family.twin is None


def _short(store: Store) -> str:
    """The short name of a source: its release, else the last part of its place."""
    if isinstance(store, HubRepository) and (release := releases.known(store.repository)) is not None:
        return release.name
    return store.place.rstrip("/").rpartition("/")[2] or store.place


def _surveys(pieces: tuple[Piece, ...]) -> bool:
    return any(piece.codec.surveys for piece in pieces)


def _partners(
    checkpoint: Checkpoint, held: Mapping[str, tuple[Param, tuple[Piece, ...]]]
) -> dict[str, tuple[tuple[Param, tuple[Piece, ...]], ...]]:
    """The parameters that loaders fuse, which share a global scale, by the name of each."""
    together: dict[str, tuple[tuple[Param, tuple[Piece, ...]], ...]] = {}
    for params in fused(checkpoint.params).values():
        group = tuple((param, cover(held[param.name][1])) for param in params if param.name in held)
        together |= dict.fromkeys((param.name for param, _ in group), group)
    return together


def _are_comparable(ours: tuple[Piece, ...], theirs: tuple[Piece, ...]) -> bool:
    """Whether both sides are numbers, or in the same form."""
    if moves_to(ours[0].codec, theirs[0].codec):
        return True
    return all(piece.codec.plain is None or piece.codec.plain in _NUMBERS for piece in (*ours, *theirs))


def _are_covered(ours: tuple[Piece, ...], theirs: tuple[Piece, ...]) -> bool:
    """Whether the source has every value of these pieces."""
    regions = [piece.slot.region for piece in cover(theirs)]
    for piece in ours:
        both = (piece.slot.region.intersect(region) for region in regions) if piece.slot.region.start else regions
        if sum(box.size for box in both if box is not None) < piece.slot.region.size:
            return False
    return True


_NUMBERS = (*FLOATS, "F64", "I64", "I32", "I16", "I8", "U8", "BOOL")


def _units(subject: Subject, number: int, sample: Sample | None) -> Iterator[Unit]:
    for place, piece in enumerate(subject.ours):
        region = piece.slot.region
        if sample is not None and region.start and piece.nbytes > SMALL_BYTES:
            yield Unit(subject, place, _chosen(region, sample, number, place), True)
            continue
        rows = max(1, SHARE_BYTES // (4 * max(1, prod(region.shape[1:]))))
        step = _row_step(subject, piece)
        for box in region.bands(-(-rows // step) * step):
            yield Unit(subject, place, box, False)


def _chosen(region: Box, sample: Sample, number: int, place: int) -> Box:
    """A run of a region's rows, of the sample's share and at least one, at a random place."""
    rows = region.shape[0]
    count = min(rows, max(1, round(rows * sample.share)))
    # Not for secrets: anyone shall be able to repeat it.
    draw = random.Random(f"{sample.seed} {number} {place}")  # noqa: S311
    first = region.start[0] + draw.randrange(rows - count + 1)
    return Box((first, *region.start[1:]), (first + count, *region.stop[1:]))


def _row_step(subject: Subject, piece: Piece) -> int:
    return lcm(piece.codec.block[0], *{one.codec.block[0] for one in subject.theirs})


def prove(task: Task, advance: Advance = lambda nbytes: None) -> Proof:
    """Read both sides, and judge every parameter.

    Raises:
        SourceError: a file cannot be read. FormatError: a scale of the source is impossible.
    """
    # Loaded late, because it loads torch: refusals should not have to wait for it.
    from dsctl.look.proof_reading import Reader

    order = sorted(task.units, key=lambda unit: _place(unit.subject.ours[unit.piece]))
    reader = Reader(task.stores)
    found: dict[str, Tally] = {}
    rows = read = 0
    pool = ThreadPoolExecutor(min(THREADS, cores()) if not any(one.remote for one in task.stores) else THREADS)
    try:
        for unit, tally in zip(order, pool.map(reader.judged, order), strict=True):
            found.setdefault(unit.subject.param.name, Tally()).add(tally)
            rows, read = rows + (unit.rows.shape[0] if unit.rows.shape else 1), read + unit.nbytes
            advance(unit.nbytes)
    finally:
        reader.stop.set()
        pool.shutdown(cancel_futures=True)
    judged, odd = settled((_judged(one, found[one.param.name]) for one in task.subjects), task.rest.sample is None)
    judged = tuple(_resembling(task, judged, reader.looks_like))
    sample = task.rest.sample
    return replace(
        task.rest, judged=judged, odd=odd, sample=sample and sample._replace(rows=rows, nbytes=min(read, sample.of))
    )


def _place(piece: Piece) -> tuple[str, int]:
    return piece.refs[0].file, piece.refs[0].begin


def _judged(subject: Subject, tally: Tally) -> Judged:
    mine, other, param = subject.ours[0].codec, subject.theirs[0].codec, subject.param
    width = mine.form.group if mine.quantized else (1, 1)
    return Judged(
        param.name,
        param.template,
        param.family.group,
        param.shape,
        (mine.name, other.name),
        subject.same_form,
        width,
        tally,
    )


def _resembling(
    task: Task, judged: tuple[Judged, ...], looks_like: Callable[[Subject, Subject], bool]
) -> Iterator[Judged]:
    """The same; the first few other ones with the parameter of the source that they resemble."""
    subjects = {one.param.name: one for one in task.subjects}
    left = RESEMBLED
    for one in judged:
        if one.kind != OTHER or not left or one.tally.broken:
            yield one
            continue
        left -= 1
        subject = subjects[one.name]
        name = next((other.param.name for other in _similar(subject, task) if looks_like(subject, other)), "")
        yield one._replace(looks_like=name)


def _similar(subject: Subject, task: Task) -> Iterator[Subject]:
    """The parameters that may have been confused with one: of the same family, in its layer or with its expert."""
    param = subject.param
    for other in task.subjects:
        same = other.param.template == param.template and other.param.shape == param.shape
        if same and other.param != param and (other.param.layer == param.layer or other.param.expert == param.expert):
            yield other


def findings(proof: Proof) -> Iterator[Finding]:
    """What a proof finds, as findings of a check."""
    for one in proof.others:
        like = f"; it looks like {one.looks_like} there" if one.looks_like else ""
        yield Finding("other-values", one.name, f"is not {proof.name}'s: {one.where}{like}")
    for name in proof.lost:
        yield Finding("lost-parameter", name, f"is in {proof.name}, but not here")
    for name in proof.added:
        yield Finding("added-parameter", name, f"is here, but not in {proof.name}")
    for name, shapes in proof.reshaped:
        yield Finding("other-values", name, f"is not {proof.name}'s: {shapes}")
    for name, why in proof.unread:
        yield Finding("unread-values", name, f"not compared: {why}")
    for one in proof.odd:
        what = "is as its format rounds, but nearly all others have exactly the bytes that dsctl's encoder gives"
        yield Finding("odd-rounding", one.name, what)
