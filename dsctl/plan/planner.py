"""Request -> Plan: every output byte is named before any weight is read. Pure, no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod
from typing import Any, NamedTuple

from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint
from dsctl.checkpoint.pieces import Piece, cover
from dsctl.checkpoint.quantization import fused
from dsctl.checkpoint.ranks import check_repeated
from dsctl.codecs.plain import Plain
from dsctl.core.errors import PlanError
from dsctl.core.header import TensorSpec
from dsctl.core.params import Family, Param
from dsctl.layouts import Layout, Slot
from dsctl.plan.blocks import Blocks, Recoded, covers, torn, twins
from dsctl.plan.formats import Target, Want
from dsctl.plan.request import Request
from dsctl.plan.steps import Copy, Part, Region, Step, region_of
from dsctl.plan.texts import Placed, PlacedPart

JOB_BYTES = 256 << 20
BAND_BYTES = 24 << 20
MISSING = "missing in the source"
ELSEWHERE = "in other ranks"
NOWHERE = "no place in layout "
# What every audit counts.
COUNTED = (
    "parameters", "values", "dequantized", "quantized", "requantized", "cast", "moved", "dropped", "unexplained",
)  # fmt: skip


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
    """Steps in source order, output files, and everything else the target folder will hold.

    `folders` are those of ranks, each of which is to be complete in itself; `recoded` is what a cut has encoded anew.
    """

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
    folders: tuple[str, ...] = ()
    recoded: list[Recoded] = field(default_factory=list)

    @property
    def bytes_in(self) -> int:
        return sum(step.read_bytes for step in self.steps) + sum(self.carried.values())

    @property
    def bytes_out(self) -> int:
        rest = sum(map(len, self.texts.values())) + sum(self.carried.values())
        rest += len(self.folders) * sum(self.carried[name] for name in self.repeated)
        return sum(file.size for file in self.files) + rest

    @property
    def repeated(self) -> list[str]:
        """The carried files that every one of `folders` gets too: all but what tells of the source as a whole."""
        return [name for name in self.carried if self.folders and not name.endswith(".dsctl")]

    def peak_bytes(self, band_bytes: int) -> int:
        """The most that a worker's buffers take, in bytes, with bands of `band_bytes` of float32."""
        held: dict[str, int] = {}
        for step in {_shape(step): step for step in self.steps}.values():
            for name, nbytes in step.buffers(band_bytes).items():
                held[name] = max(held.get(name, 0), nbytes)
        return sum(held.values())


def _shape(step: Step) -> Hashable:
    """What a step's buffers follow from, the same for parameters that are stored alike."""
    regions = tuple((one.box, one.codec, one.container, len(one.parts)) for one in (*step.reads, *step.writes))
    stored = step.reads[0].parts[0].spec.dtype
    besides = bool(step.kept), len(step.copies), len(step.twins), step.measured
    return step.how, step.shape, step.decoded, stored, regions, besides


def make_plan(checkpoint: Checkpoint, request: Request) -> Plan:
    """Plan a conversion.

    Raises:
        FormatError: the checkpoint contradicts itself.
        PlanError: the request cannot be carried out on it.
    """
    checkpoint.require_whole(request.allow_missing, request.allow_extra, request.mtp == "drop")
    check_repeated(checkpoint)
    out = Target(checkpoint, request)
    wants, dropped = _wanted(checkpoint, request, out)
    placed = out.place(wants)
    files, offsets = out.files(placed)
    blocks = Blocks(out.layout.name, request.recode)
    steps = _surveying(_steps(wants, placed, offsets, out, blocks), wants, out.notes)
    _refuse_overlap(steps)
    steps.sort(key=_source_order)
    plan = Plan(
        request=request,
        # A path that is not UTF-8 has no place in JSON: its bytes are spelled out.
        source=checkpoint.store.place.encode(errors="backslashreplace").decode(),
        steps=steps,
        files=files,
        texts=out.texts(placed),
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
    plan.folders = out.folders
    plan.recoded = blocks.recoded
    return plan


def _wanted(checkpoint: Checkpoint, request: Request, out: Target) -> tuple[list[Want], list[Dropped]]:
    _refuse_unknown(checkpoint, request)
    kept, wants, dropped, incomplete = [], [], [], []
    survey, shares = checkpoint.survey, checkpoint.layout.shares
    elsewhere = shares is not None and len(shares.present) < shares.ranks.world and not request.allow_missing
    for param in (*checkpoint.params, *map(_unknown, survey.extra)):
        pieces = survey.pieces.get(param.name) or _extra_piece(checkpoint, param)
        why = _why_dropped(param, bool(pieces) or elsewhere, request)
        if why:
            dropped.append(Dropped(param.name, why, prod(param.shape)))
        else:
            kept.append((param, pieces))
    out.check_cuts([(param, out.codec(param, pieces[0])) for param, pieces in kept if pieces])
    for param, pieces in kept:
        slots = out.layout.slots(param)
        if not slots:
            dropped.append(Dropped(param.name, _why_nowhere(param, out.layout), prod(param.shape)))
            continue
        chosen = cover(pieces)
        if not covers(chosen, param.shape, slots):
            incomplete.append(param.name)
            continue
        wants.append(Want(param, chosen, out.codec(param, pieces[0]), pieces, slots))
    if incomplete:
        raise torn(checkpoint, incomplete)
    if not wants:
        asked = [f"--{name}" for name in ("only", "skip", "layers", "experts") if getattr(request, name)]
        raise PlanError("no parameter is left", hint=f"check {' and '.join(asked)}" if asked else None)
    return wants, dropped


def _refuse_unknown(checkpoint: Checkpoint, request: Request) -> None:
    """Refuse layers and experts by numbers that the checkpoint does not have.

    Raises:
        PlanError: naming the first of them.
    """
    for what, asked, there in (
        ("layer", request.layers, {param.layer for param in checkpoint.params} if request.layers else set()),
        ("expert", request.experts, {param.expert for param in checkpoint.params} if request.experts else set()),
    ):
        unknown = sorted(set(asked) - there)
        known = there - {None}
        if unknown and not known:
            raise PlanError(f"{checkpoint.store.place}: {what}s are not known without a config of a known architecture")
        if unknown:
            raise PlanError(f"no {what} {unknown[0]}: there are {len(known)}, numbered from 0")


def _unknown(ref: Any) -> Param:
    return Param(ref.name, Family(ref.name, ref.spec.shape, "other", dtype=ref.spec.dtype), None, None)


def _extra_piece(checkpoint: Checkpoint, param: Param) -> tuple[Piece, ...]:
    if param.role != "other":
        return ()
    slot = checkpoint.layout.slots(param)[0]
    return (Piece(slot, Plain(param.family.dtype), (checkpoint.catalogue[slot.shard][param.name],)),)


def _why_dropped(param: Param, there: bool, request: Request) -> str | None:
    if request.mtp == "drop" and param.family.mtp:
        return "MTP layer"
    if not there:
        return MISSING
    if request.only and not any(fnmatchcase(param.name, glob) for glob in request.only):
        return "not in --only"
    if any(fnmatchcase(param.name, glob) for glob in request.skip):
        return "in --skip"
    if request.layers and param.layer not in request.layers:
        return "not in --layers"
    if request.experts and param.expert is not None and param.expert not in request.experts:
        return "not in --experts"
    return None


def _why_nowhere(param: Param, layout: Layout) -> str:
    """Why a layout has no slot for a parameter."""
    held = layout.shares is not None and any(True for _ in layout.shares.boxes(param))
    return NOWHERE + layout.name if held else ELSEWHERE


def _steps(
    wants: Iterable[Want],
    placed: Mapping[str, tuple[Placed, ...]],
    offsets: Mapping[tuple[str, str], int],
    out: Target,
    blocks: Blocks,
) -> list[Step]:
    steps: list[Step] = []
    for want in wants:
        step = blocks.checked(_step(want, placed[want.param.name], offsets), want.param.template)
        steps.append(_keeping(step, want, offsets, out))
    blocks.refuse()
    if out.layout.shares is not None:
        out.notes.append(f"{sum(step.measured for step in steps):,} parameters recoded because of a cut")
    return steps


def _step(want: Want, placed: tuple[Placed, ...], offsets: Mapping[tuple[str, str], int]) -> Step:
    writes = tuple(
        Region(
            place.slot.region,
            want.codec,
            tuple(_part(p, place.slot, offsets) for p in place.parts if p.stated is None),
            place.slot.container,
            place.slot.at,
        )
        for place in placed
    )
    pieces = want.pieces
    if len(pieces) > 1 and not want.codec.surveys:
        pieces = tuple(p for p in pieces if any(p.slot.region.intersect(write.box) for write in writes))
    reads = tuple(map(region_of, pieces))
    how = "move" if all(read.codec.moves_to(want.codec) for read in reads) else "recode"
    copies = tuple(twins(want.param.name, want.held, pieces))
    return Step(want.param.name, want.param.shape, how, reads, writes, twins=copies)


def _part(part: PlacedPart, slot: Slot, offsets: Mapping[tuple[str, str], int]) -> Part:
    """A stored tensor's place; of stacked ones that of the slot's own."""
    offset = offsets[part.file, part.tensor]
    if slot.stack is None:
        return Part(part.suffix, part.file, offset, part.spec)
    spec = TensorSpec(part.spec.dtype, part.spec.shape[1:])
    return Part(part.suffix, part.file, offset + slot.stack[0] * spec.nbytes, spec)


def _keeping(step: Step, want: Want, offsets: Mapping[tuple[str, str], int], out: Target) -> Step:
    """The step with the scales that it keeps, and those that it was kept."""
    if step.how == "move":
        return step
    kept = out.kept_parts(want, step.reads)
    copies = tuple(Copy(part, Part("", ORIGINAL, offsets[ORIGINAL, name], part.spec)) for name, part in kept)
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


def _refuse_overlap(steps: list[Step]) -> None:
    places = [
        (part.file, part.offset)
        for step in steps
        for region in step.writes
        if region.container == region.box.shape and region.box.size
        for part in region.parts
    ]
    assert len(set(places)) == len(places), "two parameters share output bytes"


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
    counts = dict.fromkeys(COUNTED, 0)
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


def files_read(job: Job) -> set[str]:
    """The files that a job reads."""
    return {part.file for step in job.steps for part in step.parts_read}
