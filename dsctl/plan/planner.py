"""Request -> Plan: the place of every output byte is known before weights are read. Pure, no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

from msgspec import structs

from dsctl.checkpoint.adapters import Adapter
from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint
from dsctl.checkpoint.drafters import nested
from dsctl.checkpoint.faults import require_whole
from dsctl.checkpoint.odd_scales import ODD
from dsctl.checkpoint.originals import Elsewhere
from dsctl.checkpoint.quantization import fused
from dsctl.checkpoint.ranks import check_repeated
from dsctl.checkpoint.side_files import WHOLE, kept_sums
from dsctl.codecs.codec import Codec, moves_to
from dsctl.codecs.recasts import recast
from dsctl.core.header import TensorSpec
from dsctl.core.params import Family
from dsctl.plan import grafted
from dsctl.plan.blocks import Blocks, twins
from dsctl.plan.files import folders, out_files, place
from dsctl.plan.generic import with_asked
from dsctl.plan.jobs import jobs_of, source_order
from dsctl.plan.kept import gathers, kept_parts, kept_scales, odd_scales
from dsctl.plan.merging import merge_notes, merge_of, merged, replaced, with_own_scales
from dsctl.plan.notes import apart, copied, drafting, partial, renumbered
from dsctl.plan.plan import COUNTED, Dropped, OutFile, Placed, Plan, Want, fingerprint, gathered_most, kind
from dsctl.plan.request import DROPPED, KEEP, ONLY, Request
from dsctl.plan.selection import wanted
from dsctl.plan.spread import settled
from dsctl.plan.steps import Copy, Part, Region, Step, are_all, region_of
from dsctl.plan.target import Target, target_of
from dsctl.plan.texts import SIGNATURES, carried, texts
from dsctl.plan.whole import whole_copies

# Missing tensors of the whole that a note names.
NAMED = 4


def make_plan(
    checkpoint: Checkpoint, request: Request, original: Elsewhere | None = None, adapter: Adapter | None = None
) -> Plan:
    """Plan a conversion; `original` is the source of original scales that `request.original` names, `adapter` the one
    that `request.lora` names.

    Raises:
        FormatError: the checkpoint contradicts itself.
        UsageError, PlanError: the request contradicts itself, or cannot be carried out on this checkpoint.
    """
    assert bool(request.original) == (original is not None)
    assert bool(request.graft) == bool(checkpoint.grafts)
    assert bool(request.lora) == (adapter is not None)
    checkpoint = with_asked(checkpoint, request)
    request = settled(request, checkpoint.families)
    grafted.check(checkpoint, request.allow_missing)
    require_whole(checkpoint, request.allow_missing, request.allow_extra, request.mtp == DROPPED, request.mtp == ONLY)
    check_repeated(checkpoint)
    target = target_of(checkpoint, request, original)
    wants, dropped, sizes = wanted(target)
    placed, remarks = place(target, wants)
    files, offsets = out_files(target, wants, placed)
    blocks = Blocks(target.layout.name, request.recode)
    unread = checkpoint.generic is not None and checkpoint.generic.unread
    steps = _steps(target, wants, placed, offsets, blocks, adapter)
    merge = merge_of(adapter, steps, wants) if adapter else None
    notes = [*request.notes, *target.notes, *sizes, *remarks, *_recoded(target, steps), *_decoded(target, wants)]
    notes += [
        *_gone(target, placed),
        *(f"left out {name}: it signs the files of the source" for name in SIGNATURES if name in checkpoint.files),
        *((*renumbered(step.reads[0].codec for step in steps), *_compacted(wants)) if request.slice else ()),
        *drafting(request, checkpoint.traits.drafter, _sizes(wants, placed)),
        *apart(nested(checkpoint.files)),
        *_read_twice(steps),
        *_gathered(steps),
        *(merge_notes(merge, adapter, steps) if merge and adapter else ()),
        *(copied(request, _codecs(wants), target.layout.name != checkpoint.layout.name) if not unread else ()),
        *partial(request, (one.why for one in dropped), checkpoint.generic is None),
    ]
    _refuse_overlap(steps)
    steps.sort(key=source_order)
    return Plan(
        request=request,
        # A path that is not UTF-8 has no place in JSON: its bytes are spelled out.
        source=checkpoint.store.place.encode(errors="backslashreplace").decode(),
        steps=steps,
        files=files,
        texts=texts(target, wants, placed),
        carried=carried(target, {file.name for file in files}),
        dropped=dropped,
        counts=_counts(steps, dropped, checkpoint),
        notes=notes,
        fingerprint=fingerprint(checkpoint, request, original, adapter),
        source_files={
            file: f"{size} bytes, header sha256 {hashlib.sha256(raw).hexdigest()}"
            for file, size, raw in _source_files(checkpoint, original, adapter)
        },
        roles={want.param.name: want.param.family.group for want in wants},
        jobs=list(jobs_of(steps)),
        folders=folders(target),
        recoded=blocks.recoded,
        released=dict(_released(target, files)) if original is None and adapter is None else {},
        merge=merge,
        grafts=grafted.described(checkpoint.grafts),
    )


def _released(target: Target, files: Iterable[OutFile]) -> Iterator[tuple[str, str]]:
    """The SHA-256 of files that the target restores, if the source's folder keeps those of the original files."""
    side = target.original
    if side is None or not target.restores:
        return
    sums = kept_sums(target.checkpoint)
    for file in files:
        known = side.headers.get(file.name)
        if file.name in sums and known is not None and known.raw == file.header[8:]:
            yield file.name, sums[file.name]


def _steps(
    target: Target,
    wants: Sequence[Want],
    placed: Mapping[str, tuple[Placed, ...]],
    offsets: Mapping[tuple[str, str], int],
    blocks: Blocks,
    adapter: Adapter | None = None,
) -> list[Step]:
    steps: list[Step] = []
    for want in (replaced(one, adapter) for one in wants):
        step = _step(want, placed[want.param.name], offsets, target.request.allow_inexact)
        step = blocks.checked(step, want.param.template)
        step = merged(step, want, adapter, blocks)
        steps.append(with_own_scales(_keeping(target, step, want, offsets)))
    blocks.refuse()
    return _surveying(steps, wants)


def _source_files(
    checkpoint: Checkpoint, original: Elsewhere | None, adapter: Adapter | None
) -> Iterator[tuple[str, int, bytes]]:
    """The files with tensors, their sizes and their headers."""
    for file, header in checkpoint.headers.items():
        yield file, header.size + sum(ref.nbytes for ref in header.tensors.values()), header.raw
    for beside in (original, adapter):
        for file, (size, raw) in beside.files.items() if beside else ():
            yield file, size, raw
    for graft in checkpoint.grafts:
        for file in sorted(graft.read):
            name = file.removeprefix(graft.prefix)
            yield file, graft.files[name], graft.headers[name].raw


def _codecs(wants: Iterable[Want]) -> Iterator[tuple[Codec, Codec]]:
    return ((piece.codec, want.codec) for want in wants for piece in want.pieces)


def _recoded(target: Target, steps: Iterable[Step]) -> Iterator[str]:
    if target.layout.shares is not None:
        yield f"{sum(step.measured for step in steps):,} parameters quantized again because of a cut"


def _decoded(target: Target, wants: Sequence[Want]) -> Iterator[str]:
    """Notes on parameters that the layout decodes, and on those that the source's layout decoded for good."""
    found = [target.layout.decoded(want.param.family) for want in wants if want.pieces[0].codec.quantized]
    for dtype in dict.fromkeys(filter(None, found)):
        yield f"layout {target.layout.name} holds {found.count(dtype):,} parameters decoded, as {dtype}"
    before = target.checkpoint.layout
    left = [want for want in wants if before.decoded(want.param.family) and not want.codec.quantized]
    if left and target.request.to == KEEP and not target.layout.decoded(left[0].param.family):
        what = f"{len(left):,} parameters stay {left[0].codec.plain}, as in layout {before.name}"
        yield f"{what}: without {WHOLE} their scales are lost; --to published encodes them with new scales"


def _gone(target: Target, placed: Mapping[str, tuple[Placed, ...]]) -> Iterator[str]:
    """The note on tensors of the whole that the ranks lack, when all of them are merged."""
    if target.whole is None or not target.layout.published or target.request != Request(KEEP):
        return
    there = {part.tensor for places in placed.values() for one in places for part in one.parts}
    if gone := [name for name in target.whole.files if name not in there]:
        named = ", ".join(gone[:NAMED]) + (", ..." if len(gone) > NAMED else "")
        yield f"the whole checkpoint had {len(gone):,} more tensors, which these ranks lack: {named}"


def _compacted(wants: Iterable[Want]) -> Iterator[str]:
    """The note on tables of which a slice has only some rows."""
    rows = [want.param.shape[0] for want in wants if want.param.family.table and len(want.pieces) > 1]
    if rows:
        tables = f"{len(rows):,} n-gram tables hold" if len(rows) > 1 else "1 n-gram table holds"
        yield f"{tables} only the first rows of each of its parts, {max(rows):,} rows: enough to run, not to answer"


def _sizes(wants: Iterable[Want], placed: Mapping[str, tuple[Placed, ...]]) -> Iterator[tuple[Family, int, int]]:
    """The family of each parameter, with numbers of stored tensors and bytes; a joined tensor counts once."""
    seen: set[tuple[str, str]] = set()
    for want in wants:
        parts = {(part.file, part.tensor): part.spec.nbytes for one in placed[want.param.name] for part in one.parts}
        new = parts.keys() - seen
        yield want.param.family, len(new), sum(parts[place] for place in new)
        seen |= new


def _read_twice(steps: Iterable[Step]) -> Iterator[str]:
    twice = [step.read_bytes for step in steps if step.surveyed and step.how == "recode"]
    if twice:
        yield f"{sum(twice):,} bytes are read twice: a global scale needs the largest magnitude before the first value"
    twice = [step.reads[0].parts[1].spec.nbytes for step in steps if step.surveyed and step.how == "recast"]
    if twice:
        yield f"{sum(twice):,} bytes are read twice: a global scale needs the largest of all scales before the first"


def _gathered(steps: Iterable[Step]) -> Iterator[str]:
    if most := gathered_most(steps):
        yield f"{ODD}: at most {most:,} bytes, if no scale follows from its group's values"


def _step(want: Want, placed: tuple[Placed, ...], offsets: Mapping[tuple[str, str], int], lossy: bool) -> Step:
    writes = tuple([_written(want.codec, place, offsets) for place in placed])
    pieces = want.pieces
    if len(pieces) > 1 and not want.codec.surveys:
        pieces = tuple(p for p in pieces if any(p.slot.region.intersect(write.box) for write in writes))
    reads = tuple(map(region_of, pieces))
    how = "move" if all(moves_to(read.codec, want.codec) for read in reads) else "recode"
    uncut = len(reads) == 1 and are_all(reads[0].box, writes)
    way = recast(reads[0].codec, want.codec, lossy) if how == "recode" and uncut else None
    copies = tuple(twins(want.param.name, want.held, pieces))
    param, how = want.param, "recast" if way else how
    return Step(param.name, param.family.shape, how, reads, writes, None, (), (), copies, False, way)


def _written(codec: Codec, place: Placed, offsets: Mapping[tuple[str, str], int]) -> Region:
    """The region of a slot and the places of its stored tensors; of stacked tensors, only the slot's own rows."""
    slot, parts = place.slot, []
    for part in place.parts:
        if part.stated is None:
            offset, spec = offsets[part.file, part.tensor], part.spec.in_bytes
            if slot.stack is not None:
                spec = TensorSpec(part.spec.dtype, part.spec.shape[1:]).in_bytes
                offset += slot.stack[0] * spec.nbytes
            parts.append(Part(part.name, part.file, offset, spec))
    return Region(slot.region, codec, tuple(parts), slot.container, slot.at)


def _keeping(target: Target, step: Step, want: Want, offsets: Mapping[tuple[str, str], int]) -> Step:
    """The step with the scales to keep, and with the kept scales to encode with."""
    if step.how == "move":
        return step
    kept = kept_parts(target, want, step.reads) if target.saves else ()
    copies = [Copy(part, Part("", ORIGINAL, offsets[ORIGINAL, name], part.spec)) for name, part in kept]
    copies += whole_copies(target, want, step.reads, offsets)
    known, odd = (None, None) if step.how == "recast" else (kept_scales(target, want), odd_scales(target, want))
    gathered = gathers(target, step)
    if not (copies or known or odd or gathered):
        return step
    return structs.replace(step, kept=known, odd=odd, copies=tuple(copies), gathers=gathered)


def _surveying(steps: list[Step], wants: Sequence[Want]) -> list[Step]:
    """The same steps; those whose codec needs it list the parameters that share their largest magnitude."""
    steps = list(_alike(steps, wants))
    found = {step.name: step for step in steps if step.how != "move" and step.writes[0].codec.surveys}
    if not found:
        return steps
    partners: dict[str, tuple[Step, ...]] = {
        want.param.name: (found[want.param.name],) for want in wants if want.param.name in found
    }
    for params in fused(want.param for want in wants if want.param.name in found).values():
        together = tuple(found[param.name] for param in params)
        partners |= dict.fromkeys((param.name for param in params), together)
    return [structs.replace(step, surveyed=partners.get(step.name, ())) for step in steps]


def _alike(steps: list[Step], wants: Sequence[Want]) -> Iterator[Step]:
    """The same steps; all steps that share a survey are recast, or all are recoded."""
    recast_ = {step.name for step in steps if step.way is not None and step.way.surveys}
    apart = {
        param.name
        for params in (fused(want.param for want in wants).values() if recast_ else ())
        if 0 < len(recast_.intersection(param.name for param in params)) < len(params)
        for param in params
    }
    for step in steps:
        alone = step.name in apart and step.name in recast_
        yield structs.replace(step, how="recode", way=None) if alone else step


def _refuse_overlap(steps: list[Step]) -> None:
    places = [
        (part.file, part.offset)
        for step in steps
        for region in step.writes
        if region.container == region.box.shape and region.box.size
        for part in region.parts
    ]
    assert len(set(places)) == len(places), "two parameters share output bytes"


def _counts(steps: list[Step], dropped: list[Dropped], checkpoint: Checkpoint) -> dict[str, int]:
    """The part of the audit that is known before the work: the number of parameters by kind of work."""
    counts = dict.fromkeys(COUNTED, 0)
    for step in steps:
        done = kind(step)
        counts[done] = counts.get(done, 0) + 1
        counts["values"] += prod(step.shape)
    counts["dropped"] = len(dropped)
    counts["parameters"] = len(checkpoint.params) or len(steps) + len(dropped)
    extra = len(checkpoint.survey.extra) if checkpoint.params else 0
    counts["unexplained"] = counts["parameters"] + extra - len(steps) - len(dropped)
    return counts
