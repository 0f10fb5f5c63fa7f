"""Request -> Plan: every output byte is named before any weight is read. Pure, no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import lcm, prod
from typing import Any, NamedTuple

from dsctl.boxes import Box
from dsctl.checkpoint import ORIGINAL, Checkpoint, Piece
from dsctl.codecs import Codec, Misaligned
from dsctl.codecs.plain import Plain
from dsctl.errors import PlanError
from dsctl.header import TensorSpec
from dsctl.models import Family, Param
from dsctl.quantization import fused
from dsctl.request import Request
from dsctl.target import Placed, Target, Want

JOB_BYTES = 256 << 20
BAND_BYTES = 24 << 20
MISSING = "missing in the source"


class Part(NamedTuple):
    """One stored tensor of a region: the codec's suffix, the file, the offset of its bytes, and what it is."""

    suffix: str
    file: str
    offset: int
    spec: TensorSpec


class Region(NamedTuple):
    """A region of a parameter and its stored tensors. `container` and `at` place it, in the parameter's elements."""

    box: Box
    codec: Codec
    parts: tuple[Part, ...]
    container: tuple[int, ...]
    at: tuple[int, ...]

    def place(self, suffix: str, box: Box) -> Box:
        """Where a sub-box of the parameter lies in one of the stored tensors.

        Raises:
            Misaligned: the sub-box cuts what the codec stores as one.
        """
        inner = box.relative_to(self.box.start).moved(self.at)
        return self.codec.box(suffix, inner, self.container)


class Copy(NamedTuple):
    """Bytes that also go elsewhere untouched: a kept scale."""

    read: Part
    write: Part


class Step(NamedTuple):
    """What is read once and what is written from it, for one parameter. `how` is move or recode.

    `surveyed` are the parameters, this one among them, that are read before for their largest magnitude.
    """

    name: str
    shape: tuple[int, ...]
    how: str
    reads: tuple[Region, ...]
    writes: tuple[Region, ...]
    kept: Region | None = None
    copies: tuple[Copy, ...] = ()
    surveyed: tuple[Step, ...] = ()

    @property
    def read_bytes(self) -> int:
        return sum(part.spec.nbytes for region in self.reads for part in region.parts)

    @property
    def written_bytes(self) -> int:
        copied = sum(copy.write.spec.nbytes for copy in self.copies)
        return copied + sum(
            region.codec.specs(region.box.shape)[part.suffix].nbytes for region in self.writes for part in region.parts
        )

    def band_rows(self, band_bytes: int) -> int:
        """Rows per band: a multiple of every codec's block, at most about `band_bytes` of float32."""
        if len(self.shape) < 2:
            return max(1, band_bytes // 4)
        step = lcm(*(region.codec.block[0] for region in (*self.reads, *self.writes)))
        row_bytes = max(1, 4 * prod(self.shape[1:]))
        return max(step, band_bytes // row_bytes // step * step)

    def peak_bytes(self, band_bytes: int) -> int:
        """Memory of one band at its worst: what is read, its values and what is written."""
        rows = min(self.band_rows(band_bytes), self.shape[0]) if self.shape else 1
        values = rows * prod(self.shape[1:])
        return values * (2 if self.how == "move" else 7)


class OutFile(NamedTuple):
    """One output file: its name, its header, its size, and the bytes of it that are known already, by offset."""

    name: str
    header: bytes
    size: int
    literals: tuple[tuple[int, bytes], ...] = ()


class Dropped(NamedTuple):
    """A parameter that the output will not have, and why."""

    name: str
    why: str
    values: int


class Job(NamedTuple):
    """A run of steps handed to one worker."""

    number: int
    steps: tuple[Step, ...]
    files: tuple[str, ...]


@dataclass(slots=True)
class Plan:
    """Steps in source order, output files, and everything else the target folder will hold."""

    request: Request
    source: str
    steps: list[Step]
    files: list[OutFile]
    texts: dict[str, bytes]
    carried: dict[str, int]
    dropped: list[Dropped]
    counts: dict[str, int]
    notes: list[str]
    fingerprint: str
    source_files: dict[str, str]
    roles: dict[str, str] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)

    @property
    def bytes_in(self) -> int:
        return sum(step.read_bytes for step in self.steps) + sum(self.carried.values())

    @property
    def bytes_out(self) -> int:
        rest = sum(map(len, self.texts.values())) + sum(self.carried.values())
        return sum(file.size for file in self.files) + rest

    def peak_bytes(self, band_bytes: int) -> int:
        """The most that a worker's buffers take, in bytes, with bands of `band_bytes` of float32."""
        return max((step.peak_bytes(band_bytes) for step in self.steps), default=0)


def make_plan(checkpoint: Checkpoint, request: Request) -> Plan:
    """Plan a conversion.

    Raises:
        FormatError: the checkpoint contradicts itself.
        PlanError: the request cannot be carried out on it.
    """
    checkpoint.require_whole(request.allow_missing, request.allow_extra)
    out = Target(checkpoint, request)
    wants, dropped = _wanted(checkpoint, request, out)
    placed = out.place(wants)
    files, offsets = out.files(placed)
    steps = _surveying([_step(want, placed[want.param.name], offsets, out) for want in wants], wants, out.notes)
    _refuse_overlap(steps)
    steps.sort(key=_source_order)
    plan = Plan(
        request=request,
        source=checkpoint.store.place,
        steps=steps,
        files=files,
        texts=out.texts(placed, dropped),
        carried=out.carried,
        dropped=dropped,
        counts=_counts(steps, dropped, checkpoint),
        notes=out.notes,
        fingerprint=fingerprint(checkpoint, request),
        source_files={
            file: f"{header.size + sum(ref.nbytes for ref in header.tensors.values())} bytes, header sha256 "
            + hashlib.sha256(header.raw).hexdigest()
            for file, header in checkpoint.headers.items()
        },
    )
    plan.roles = {want.param.name: want.param.family.group for want in wants}
    plan.jobs = list(_jobs(steps))
    return plan


def _wanted(checkpoint: Checkpoint, request: Request, out: Target) -> tuple[list[Want], list[Dropped]]:
    wants, dropped = [], []
    survey = checkpoint.survey
    for param in (*checkpoint.params, *map(_unknown, survey.extra)):
        pieces = survey.pieces.get(param.name) or _extra_piece(checkpoint, param)
        why = _why_dropped(param, bool(pieces), request)
        if why:
            dropped.append(Dropped(param.name, why, prod(param.shape)))
            continue
        wants.append(Want(param, pieces, out.codec(param, pieces[0])))
    if not wants:
        raise PlanError("nothing is left to convert", hint="check the globs of --only and --skip")
    return wants, dropped


def _unknown(ref: Any) -> Param:
    return Param(ref.name, Family(ref.name, ref.spec.shape, "other", dtype=ref.spec.dtype), None, None)


def _extra_piece(checkpoint: Checkpoint, param: Param) -> tuple[Piece, ...]:
    if param.role != "other":
        return ()
    slot = checkpoint.layout.slots(param)[0]
    return (Piece(slot, Plain(param.family.dtype), (checkpoint.catalogue[slot.shard][param.name],)),)


def _why_dropped(param: Param, there: bool, request: Request) -> str | None:
    if not there:
        return MISSING
    if request.mtp == "drop" and param.family.mtp:
        return "MTP layer"
    if request.only and not any(fnmatchcase(param.name, glob) for glob in request.only):
        return "not in --only"
    if any(fnmatchcase(param.name, glob) for glob in request.skip):
        return "in --skip"
    if request.layers and param.layer not in request.layers:
        return "not in --layers"
    if request.experts and param.expert is not None and param.expert not in request.experts:
        return "not in --experts"
    return None


def _step(want: Want, placed: tuple[Placed, ...], offsets: Mapping[tuple[str, str], int], out: Target) -> Step:
    reads = tuple(region_of(piece) for piece in want.pieces)
    writes = tuple(
        Region(
            place.slot.region,
            want.codec,
            tuple(Part(p.suffix, p.file, offsets[p.file, p.tensor], p.spec) for p in place.parts if p.stated is None),
            place.slot.container,
            place.slot.at,
        )
        for place in placed
    )
    how = "move" if all(read.codec.moves_to(want.codec) for read in reads) else "recode"
    step = Step(want.param.name, want.param.shape, how, reads, writes)
    _refuse_cuts(step)
    if how == "move":
        return step
    copies = tuple(
        Copy(part, Part("", ORIGINAL, offsets[ORIGINAL, name], part.spec)) for name, part in out.kept_parts(want, reads)
    )
    return step._replace(kept=out.kept(want), copies=copies)


def _surveying(steps: list[Step], wants: list[Want], notes: list[str]) -> list[Step]:
    """The same steps; those that need it know which parameters share their largest magnitude."""
    found = {step.name: step for step in steps if step.how == "recode" and step.writes[0].codec.surveys}
    if not found:
        return steps
    partners: dict[str, tuple[Step, ...]] = {
        want.param.name: (found[want.param.name],) for want in wants if want.param.name in found
    }
    for params in fused(want.param for want in wants if want.param.name in found).values():
        together = tuple(found[param.name] for param in params)
        partners |= dict.fromkeys((param.name for param in params), together)
    twice = sum(step.read_bytes for step in found.values())
    notes.append(f"{twice:,} bytes are read twice: a global scale needs the largest magnitude before the first value")
    return [step._replace(surveyed=partners.get(step.name, ())) for step in steps]


def region_of(piece: Piece) -> Region:
    """The region of a parameter that a checkpoint's piece holds, without what the shape says."""
    stated = piece.codec.stated(piece.slot.container)
    parts = tuple(
        Part(suffix, ref.file, ref.begin, ref.spec)
        for suffix, ref in zip(piece.codec.suffixes, piece.refs, strict=True)
        if suffix not in stated
    )
    return Region(piece.slot.region, piece.codec, parts, piece.slot.container, piece.slot.at)


def _refuse_cuts(step: Step) -> None:
    for region in (*step.reads, *step.writes):
        for part in region.parts:
            try:
                region.place(part.suffix, region.box)
            except Misaligned as error:
                raise PlanError(f"{step.name}: {error}") from None


def _refuse_overlap(steps: list[Step]) -> None:
    spans = sorted(
        (part.file, part.offset, part.offset + part.spec.nbytes, region.container == region.box.shape)
        for step in steps
        for region in step.writes
        for part in region.parts
    )
    for one, two in zip(spans, spans[1:], strict=False):
        assert one[0] != two[0] or one[2] <= two[1] or not (one[3] and two[3]), "two parameters share output bytes"


def _source_order(step: Step) -> tuple[str, int]:
    first = step.reads[0].parts[0]
    return first.file, first.offset


def _jobs(steps: Iterable[Step]) -> Iterator[Job]:
    run: list[Step] = []
    size = number = 0
    for step in steps:
        cost = max(step.read_bytes, step.written_bytes)
        full = run and (size + cost > JOB_BYTES or run[-1].reads[0].parts[0].file != step.reads[0].parts[0].file)
        if full:
            yield _job(number, run)
            run, size, number = [], 0, number + 1
        run.append(step)
        size += cost
    if run:
        yield _job(number, run)


def _job(number: int, steps: list[Step]) -> Job:
    files: dict[str, None] = {}
    for step in steps:
        for region in step.writes:
            files |= dict.fromkeys(part.file for part in region.parts)
        files |= dict.fromkeys(copy.write.file for copy in step.copies)
    return Job(number, tuple(steps), tuple(files))


def _counts(steps: list[Step], dropped: list[Dropped], checkpoint: Checkpoint) -> dict[str, int]:
    """The part of the audit that is known before the work: parameters by what happens to them."""
    counts = dict.fromkeys(
        ("parameters", "values", "dequantized", "quantized", "requantized", "cast", "moved", "dropped", "unexplained"),
        0,
    )
    for step in steps:
        counts[kind(step)] += 1
        counts["values"] += prod(step.shape)
    counts["dropped"] = len(dropped)
    counts["parameters"] = len(checkpoint.params) or len(steps) + len(dropped)
    extra = len(checkpoint.survey.extra) if checkpoint.params else 0
    counts["unexplained"] = counts["parameters"] + extra - len(steps) - len(dropped)
    return counts


def kind(step: Step) -> str:
    """What happens to a parameter, in one word of the audit."""
    if step.how == "move":
        return "moved"
    before = step.reads[0].codec.config() is not None
    after = step.writes[0].codec.config() is not None
    return {(True, False): "dequantized", (False, True): "quantized", (True, True): "requantized"}.get(
        (before, after), "cast"
    )


def fingerprint(checkpoint: Checkpoint, request: Request) -> str:
    """A digest of the request, the source's headers, config and file sizes: what a resumed run must share."""
    digest = hashlib.sha256(json.dumps(request.json(), sort_keys=True).encode())
    digest.update(checkpoint.store.revision.encode())
    for file, size in sorted(checkpoint.files.items()):
        digest.update(f"\n{file}\0{size}".encode())
        if file in checkpoint.headers:
            digest.update(checkpoint.headers[file].raw)
    digest.update(json.dumps(checkpoint.config, sort_keys=True).encode())
    return digest.hexdigest()
