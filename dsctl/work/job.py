"""Perform one job: read each byte once, move or recode it, digest it and write it in place. Loads torch."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from time import perf_counter, thread_time
from typing import NamedTuple

import torch

from dsctl.codecs import fp4, grids, group_scales
from dsctl.codecs.codec import CODES, GLOBAL_SCALE, KEPT, OTHERS, PEAK, SCALE, VALUES, Codec, Misaligned
from dsctl.codecs.grids import chunks, peaks
from dsctl.core.boxes import Box
from dsctl.core.errors import WorkError, of_the_machine
from dsctl.core.header import TensorSpec
from dsctl.core.progress import Advance
from dsctl.plan.plan import Job
from dsctl.plan.steps import Region, Step, held_as, moved, share
from dsctl.plan.stretches import written
from dsctl.work.buffers import DTYPES, JobFiles, bytes_of
from dsctl.work.gathering import odd_scales
from dsctl.work.merging import Arrival, merge
from dsctl.work.readahead import ahead
from dsctl.work.sealing import seal
from dsctl.work.tasks import COMPUTE, PROCESSOR, WORST, Context, Receipt, Seal, add
from dsctl.work.values import band_values, cut_out, placed, refuse_unlike_twins, stored_parts


class _Scratch(threading.local):
    """The buffers of this thread, from one job to the next: fresh memory costs a tenth of a small job."""

    def __init__(self) -> None:
        self.buffers: dict[str, torch.Tensor] = {}


_SCRATCH = _Scratch()


def perform(task: Job | Seal, context: Context, progress: Advance) -> Receipt:
    """Do one task. Repeating it writes the same bytes to the same place.

    `progress` is called with the bytes that are done, and often with 0; it raises if the task is no longer wanted.

    Raises:
        SourceError: the source cannot be read.
        WorkError: the values cannot be converted, the target cannot be written, or a device's memory is too small.
    """
    if isinstance(task, Seal):
        return seal(task, context, progress)
    counts: dict[str, int] = {}
    began, worked = perf_counter(), thread_time()
    try:
        with (
            ahead(context.store, task.steps) as source,
            JobFiles(context, source, _SCRATCH.buffers, written(task), lambda: progress(0)) as files,
        ):
            for step in task.steps:
                add(counts, _step(step, files, progress))
            if any(step.gathers for step in task.steps):
                files.gathered.write(task.number)
    except torch.OutOfMemoryError:
        hint = "use fewer --workers or a smaller --max-memory; the same command resumes"
        raise WorkError(f"{context.devices[0]}: out of memory", hint=hint) from None
    except (MemoryError, OSError, RuntimeError, SystemError) as error:
        refused = of_the_machine(error)
        if refused is None:
            raise
        raise refused from None
    seconds = files.seconds | {PROCESSOR: thread_time() - worked}
    seconds[COMPUTE] = perf_counter() - began - sum(files.seconds.values())
    return Receipt(task.number, counts, digests=files.digests(), seconds=seconds)


def _step(step: Step, files: JobFiles, progress: Advance) -> dict[str, int]:
    for copy in step.copies:
        whole = Box.whole(copy.read.spec.shape)
        files.write(copy.write, whole, files.read("copy", copy.read, whole))
    counts: dict[str, int] = {}
    if step.surveyed and step.way is not None and step.name not in files.largest:
        files.largest |= dict.fromkeys((one.name for one in step.surveyed), _largest_scale(step.surveyed, files))
    elif step.surveyed and step.way is None and step.name not in files.peaks:
        files.peaks |= _peaks(step.surveyed, files)
    for band in _bands(step, files, step.span):
        done = {"move": _move, "recast": _recast, "recode": _recode}[step.how](step, band, files)
        add(counts, done)
        progress(sum(share(band, region) for region in step.regions_read))
    if step.gathers:
        add(counts, files.gathered.end(step, files))
    return counts


def _bands(step: Step, files: JobFiles, span: Box) -> Iterable[Box]:
    return span.bands(step.band_rows(files.context.band_bytes))


def _peaks(steps: Iterable[Step], files: JobFiles) -> dict[str, torch.Tensor]:
    """The largest magnitude of some parameters together; that of each if their kept global scales reach it."""
    found = {step.name: _peak(step, files) for step in steps}
    if all(_reached(step, found[step.name], files) for step in steps):
        return found
    return dict.fromkeys(found, torch.stack(list(found.values())).amax(0))


def _reached(step: Step, peak: torch.Tensor, files: JobFiles) -> bool:
    part = next((part for part in step.kept.parts if part.name == GLOBAL_SCALE), None) if step.kept else None
    if part is None:
        return False
    whole = files.read(f"kept:{part.name}", part, Box.whole(part.spec.shape))
    return fp4.reaches(step.writes[0].codec, whole, peak)


def _peak(step: Step, files: JobFiles) -> torch.Tensor:
    """The largest magnitude of a parameter, float32 [1]."""
    peak, codec = torch.zeros(1), step.writes[0].codec
    for band in _bands(step, files, Box.whole(step.shape)):
        with placed(step, step.reads[0].codec, band):
            values = band_values(step, band, files)
        if step.low_rank is not None:
            values = merge(step, band, values, files).after
        with placed(step, codec, band):
            for rows, places in chunks(values.shape[0], values.shape[1], codec.block):
                peak = torch.maximum(peak, peaks(values[rows], codec.block, places.start).amax())
    return peak


def _largest_scale(steps: Iterable[Step], files: JobFiles) -> int:
    """The largest scale (E8M0) of some parameters; without groups of zeros if the scales are far apart."""
    found = [_bounds(step, files, False) for step in steps]
    if max(top for _, top in found) - min(low for low, _ in found) > group_scales.LARGEST - group_scales.SMALLEST:
        found = [_bounds(step, files, True) for step in steps]
    return max(top for _, top in found)


def _bounds(step: Step, files: JobFiles, filled: bool) -> tuple[int, int]:
    """The least and the largest scale of a parameter; with `filled`, only of groups that are not all zeros."""
    (source,), low, top = step.reads, 255, 0
    for band in _bands(step, files, Box.whole(step.shape)):
        parts = [part for part in source.parts if filled or part.name == SCALE]
        held = {part.name: files.read(moved(0, part), part, source.place(part.name, band)) for part in parts}
        least, most = group_scales.bounds(held[SCALE], held.get(CODES))
        low, top = min(low, least), max(top, most)
    return low, top


def _error(region: Region, values: torch.Tensor, stored: dict[str, torch.Tensor], files: JobFiles) -> int:
    """The largest error of the encoded values, in millionths of the largest value."""
    again = files.buffer("again", TensorSpec("F32", tuple(values.shape)))
    region.codec.decode(stored, again)
    worst = largest = 0.0
    for was, now in zip(*(torch.split(one.reshape(-1), grids.CHUNK) for one in (values, again)), strict=True):
        largest = max(largest, float(was.abs().max()))
        worst = max(worst, float((now - was).abs().max()))
    return round(worst / largest * 1_000_000) if largest else 0


class _BandPart(NamedTuple):
    """A band's part of a source region: its box, and its stored tensors in the region's order."""

    source: Region
    box: Box
    tensors: list[torch.Tensor]


def _move(step: Step, band: Box, files: JobFiles) -> dict[str, int]:
    held = []
    for place, source in enumerate(step.reads):
        both = band.intersect(source.box)
        if both is not None:
            tensors = list(stored_parts(step, place, both, files).values())
            held.append(_BandPart(source, both, tensors))
            refuse_unlike_twins(step, place, both, tensors, files)
    for region in step.writes:
        wanted = band.intersect(region.box)
        if wanted is not None:
            for number, part in enumerate(region.parts):
                values = _joined(step.name, held, number, region, wanted, files)
                files.write(part, region.place(part.name, wanted), values)
    return {}


def _joined(
    name: str, held: list[_BandPart], number: int, region: Region, wanted: Box, files: JobFiles
) -> torch.Tensor:
    """One stored tensor's part of a written region, joined from the band's parts of the sources."""
    part = region.parts[number]
    target = region.place(part.name, wanted)
    whole: torch.Tensor | None = None
    filled: list[Box] = []
    for source, box, tensors in held:
        both = box.intersect(wanted)
        if both is None:
            continue
        known = source.parts[number].name
        origin = source.place(known, box).start
        values = cut_out(tensors[number], source.place(known, both).relative_to(origin)).view(DTYPES[part.spec.dtype])
        at = region.place(part.name, both).relative_to(target.start)
        if at.shape == target.shape and whole is None and both == wanted:
            return values
        if whole is None:
            whole = files.buffer("joined", TensorSpec(part.spec.dtype, target.shape))
        place = cut_out(whole, at)
        if any(at.intersect(other) for other in filled) and bytes_of(place) != bytes_of(values):
            raise WorkError(f"{name}: its parts hold different values of the same {part.name}")
        place.copy_(values)
        filled.append(at)
    assert whole is not None, "a written region has no source"
    return whole


def _recast(step: Step, band: Box, files: JobFiles) -> dict[str, int]:
    way = step.way
    assert way is not None
    stored = stored_parts(step, 0, band, files)
    refuse_unlike_twins(step, 0, band, stored.values(), files)
    if step.gathers:
        files.gathered.note(step, band, stored)
    out = {part: files.buffer(f"out:{held_as(part)}", spec) for part, spec in way.target.specs(band.shape).items()}
    with placed(step, way.target, band):
        counts = way.write(stored, out, files.largest[step.name] if way.surveys else None)
    for region in step.writes:
        for part in region.parts:
            files.write(part, region.place(part.name, band), out[part.name])
    return counts


def _recode(step: Step, band: Box, files: JobFiles) -> dict[str, int]:
    counts: dict[str, int] = {}
    with placed(step, step.reads[0].codec, band):
        values = band_values(step, band, files, counts)
    merged = merge(step, band, values, files) if step.low_rank is not None else None
    values, arrival = merged.after if merged else values, Arrival(step, files, [])
    for region in step.writes:
        wanted = band.intersect(region.box)
        if wanted is None:
            continue
        inner = wanted.relative_to(band.start)
        cut, kept = cut_out(values, inner), {}
        stored = {
            part: files.buffer(f"out:{held_as(part)}", spec) for part, spec in region.codec.specs(wanted.shape).items()
        }
        direct = region.codec.plain is not None and values.dtype == DTYPES[region.codec.plain]
        if direct:
            stored = {VALUES: cut}
        else:
            kept = _kept(step, region.codec, wanted, files) | ({PEAK: files.peaks[step.name]} if step.surveyed else {})
            with placed(step, region.codec, wanted):
                if files.device is None:
                    done = region.codec.encode(cut, stored | kept)
                else:
                    done = files.device.encode(region.codec, cut, stored, kept)
                add(counts, done)
            if step.measured:
                add(counts, {WORST: _error(region, cut, stored, files)})
        if merged is not None:
            add(counts, arrival.count(region, wanted, merged.cut(inner), stored, kept))
        for part in region.parts:
            files.write(part, region.place(part.name, wanted), stored[part.name])
    return counts


def _kept(step: Step, codec: Codec, box: Box, files: JobFiles) -> dict[str, torch.Tensor]:
    if step.odd is not None:
        return {KEPT + SCALE: odd_scales(step.odd, codec, step.shape, box, files)}
    if step.kept is None:
        return {}
    mark = KEPT if step.kept.codec == codec else OTHERS
    try:
        return {
            mark + part.name: files.read(f"kept:{part.name}", part, step.kept.place(part.name, box))
            for part in step.kept.parts
        }
    except Misaligned:
        return {}
