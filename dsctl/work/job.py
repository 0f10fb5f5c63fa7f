"""Perform one job: read each byte once, move or recode, write in place. The only room with torch besides codecs."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from dsctl.codecs import BLOCK_SCALES, KEPT, OTHERS, PEAK, SCALES, BadBlock, Codec, Misaligned, grids
from dsctl.codecs.grids import chunks, peaks
from dsctl.codecs.plain import Plain
from dsctl.core.boxes import Box
from dsctl.core.errors import WorkError, of_the_machine
from dsctl.core.files import write_all
from dsctl.core.header import TensorSpec
from dsctl.plan.planner import Job
from dsctl.plan.steps import Part, Region, Step, moved, share
from dsctl.stores import Store
from dsctl.work.devices import Device, device
from dsctl.work.readahead import Reader, ahead
from dsctl.work.tasks import INFINITE, NAN, WORST, Context, Progress, Receipt, Seal, add

DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16, "U32": torch.uint32,
    "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
# Stays in a core's own cache between being read and being hashed.
CHUNK = 1 << 20
# No product of two scales up to here and a code overflows float32 or BF16.
HUGE = 2.0**50
# The buffers of this process, from one job to the next: fresh memory costs a tenth of a small job.
_SCRATCH: dict[str, torch.Tensor] = {}


def perform(task: Job | Seal, context: Context, progress: Progress) -> Receipt:
    """Do one task. Doing it again writes the same bytes in the same place.

    Raises:
        SourceError: the source cannot be read.
        WorkError: the values cannot be converted, the target cannot be written, or a device's memory is too small.
    """
    if isinstance(task, Seal):
        return _seal(task, context, progress)
    counts: dict[str, int] = {}
    try:
        with ahead(context.store, task.steps) as source, _Files(context, source, _SCRATCH) as files:
            for step in task.steps:
                add(counts, _step(step, files, progress))
    except torch.OutOfMemoryError:
        hint = "fewer --workers or a smaller --max-memory; the same command resumes"
        raise WorkError(f"{context.devices[0]}: out of memory", hint=hint) from None
    except (MemoryError, OSError, RuntimeError, SystemError) as error:
        refused = of_the_machine(error)
        if refused is None:
            raise
        raise refused from None
    return Receipt(task.number, counts)


def release() -> None:
    """Give back the buffers that jobs have left to the next."""
    _SCRATCH.clear()


def _seal(task: Seal, context: Context, progress: Progress) -> Receipt:
    path = Path(context.folder) / task.file
    part = path.with_name(path.name + ".part")
    digest = hashlib.sha256()
    with _explained(str(path)), open(part if part.exists() else path, "rb", buffering=0) as file:
        buffer = bytearray(CHUNK)
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
            progress(0)
    return Receipt(None, {}, task.file, digest.hexdigest())


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "free some space and run the same command again: it resumes" if error.errno == 28 else None
        raise WorkError(f"{path}: {error.strerror or error}", hint=hint) from None


class _Files:
    """The open output files and the buffers of one job; everything written is on the disk when it ends."""

    def __init__(self, context: Context, source: Reader, scratch: dict[str, torch.Tensor]) -> None:
        self.context, self.source, self.scratch = context, source, scratch
        self.open: dict[str, int] = {}
        self.peaks: dict[str, torch.Tensor] = {}
        self.device = device(context.devices[0])

    @property
    def _pinned(self) -> bool:
        """Whether buffers are of memory that a device copies from and to by itself."""
        return self.device is not None and self.device.name != "cpu"

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        for file, descriptor in self.open.items():
            try:
                if kind is None:
                    with _explained(self._part(file)):
                        os.fdatasync(descriptor)
            finally:
                os.close(descriptor)

    def buffer(self, name: str, spec: TensorSpec) -> torch.Tensor:
        """An uninitialised tensor that is reused by the next call of the same name."""
        need = max(spec.nbytes, 1)
        have = self.scratch.get(name)
        if have is None or have.numel() < need or have.is_pinned() != self._pinned:
            # The old one goes before the new one comes.
            self.scratch.pop(name, None)
            have = None
            have = self.scratch[name] = _fresh(need, self._pinned)
        return have[: spec.nbytes].view(DTYPES[spec.dtype]).view(spec.shape)

    def read(self, name: str, part: Part, box: Box) -> torch.Tensor:
        """A box of a stored tensor, contiguous."""
        rows, offset = _rows(part.spec, box)
        buffer = self.buffer(name, TensorSpec(part.spec.dtype, rows.shape))
        self.source.read_into(part.file, part.offset + offset, _bytes(buffer))
        inner = box.relative_to(rows.start)
        if inner.shape == rows.shape:
            return buffer
        return buffer[tuple(slice(a, b) for a, b in zip(inner.start, inner.stop, strict=True))].contiguous()

    def write(self, part: Part, box: Box, values: torch.Tensor) -> None:
        """Put values at a box of a stored tensor, wherever in the file that is."""
        rows, offset = _rows(part.spec, box)
        if rows.shape == box.shape:
            self._put(part.file, part.offset + offset, _bytes(values))
            return
        width = part.spec.nbytes // part.spec.shape[0]
        start = Box(box.start[1:], box.stop[1:])
        for row, line in enumerate(values):
            inner = Part(part.suffix, part.file, part.offset + (box.start[0] + row) * width, _inner(part.spec))
            self.write(inner, start, line)

    def _part(self, file: str) -> str:
        return os.path.join(self.context.folder, file + ".part")

    def _put(self, file: str, offset: int, data: memoryview) -> None:
        path = self._part(file)
        with _explained(path):
            if file not in self.open:
                self.open[file] = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
            write_all(self.open[file], data, offset)


def _fresh(nbytes: int, pinned: bool) -> torch.Tensor:
    """Memory that goes back to the system when it is dropped: the allocator keeps what is freed, and grows by it."""
    if pinned or nbytes < CHUNK:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)
    return torch.frombuffer(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)


def _inner(spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.dtype, spec.shape[1:])


def _rows(spec: TensorSpec, box: Box) -> tuple[Box, int]:
    """The smallest run of whole rows that holds a box, and the offset of its first byte."""
    if not spec.shape:
        return box, 0
    row = spec.nbytes // spec.shape[0] if spec.shape[0] else 0
    whole = Box((box.start[0], *(0,) * (len(spec.shape) - 1)), (box.stop[0], *spec.shape[1:]))
    return whole, box.start[0] * row


def _bytes(tensor: torch.Tensor) -> memoryview:
    flat = tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
    return flat.numpy().data


def _step(step: Step, files: _Files, progress: Progress) -> dict[str, int]:
    for copy in step.copies:
        whole = Box.whole(copy.read.spec.shape)
        files.write(copy.write, whole, files.read("copy", copy.read, whole))
    counts: dict[str, int] = {}
    if step.surveyed and step.name not in files.peaks:
        peak = torch.stack([_peak(one, files) for one in step.surveyed]).amax(0)
        files.peaks |= {one.name: peak for one in step.surveyed}
    for band in _bands(step, files, step.span):
        done = _move(step, band, files) if step.how == "move" else _recode(step, band, files)
        add(counts, done)
        progress(sum(share(band, region) for region in step.regions_read))
    return counts


def _bands(step: Step, files: _Files, span: Box) -> Iterable[Box]:
    return span.bands(step.band_rows(files.context.band_bytes))


@contextmanager
def _placed(step: Step, codec: Codec, box: Box) -> Iterator[None]:
    """Tell a bad block of a region by its place in the parameter."""
    try:
        yield
    except BadBlock as error:
        row = error.row + (box.start[0] // codec.block[0] if box.start else 0)
        hint = f"`dsctl verify SRC --deep` lists every such value; to go on without it: --skip '{step.name}'"
        raise WorkError(f"{step.name}: {error.what} in block [{row}, {error.column}]", hint=hint) from None


def _peak(step: Step, files: _Files) -> torch.Tensor:
    """The largest magnitude of a parameter, float32 [1]."""
    peak, codec = torch.zeros(1), step.writes[0].codec
    for band in _bands(step, files, Box.whole(step.shape)):
        with _placed(step, step.reads[0].codec, band):
            values = _values(step, band, files)
        with _placed(step, codec, band):
            for rows, places in chunks(values.shape[0], values.shape[1], codec.block):
                peak = torch.maximum(peak, peaks(values[rows], codec.block, places.start).amax())
    return peak


def _error(region: Region, values: torch.Tensor, stored: dict[str, torch.Tensor], files: _Files) -> int:
    """How far what was encoded is from the values at worst, in millionths of the largest of them."""
    again = files.buffer("again", TensorSpec("F32", tuple(values.shape)))
    region.codec.decode(stored, again)
    worst = largest = 0.0
    for was, now in zip(*(torch.split(one.reshape(-1), grids.CHUNK) for one in (values, again)), strict=True):
        largest = max(largest, float(was.abs().max()))
        worst = max(worst, float((now - was).abs().max()))
    return round(worst / largest * 1_000_000) if largest else 0


class _Held(NamedTuple):
    """What a band holds of a source region: its box, and its stored tensors in the region's order."""

    source: Region
    box: Box
    tensors: list[torch.Tensor]


def _move(step: Step, band: Box, files: _Files) -> dict[str, int]:
    held = []
    for place, source in enumerate(step.reads):
        both = band.intersect(source.box)
        if both is not None:
            tensors = [files.read(moved(place, part), part, source.place(part.suffix, both)) for part in source.parts]
            held.append(_Held(source, both, tensors))
            _compare(step, place, both, tensors, files)
    for region in step.writes:
        wanted = band.intersect(region.box)
        if wanted is not None:
            for number, part in enumerate(region.parts):
                values = _joined(step.name, held, number, region, wanted, files)
                files.write(part, region.place(part.suffix, wanted), values)
    return {}


def _compare(step: Step, place: int, box: Box, tensors: Iterable[torch.Tensor], files: _Files) -> None:
    """Refuse copies of a source region that are not the same bytes."""
    for twin in step.twins:
        if twin.of != place:
            continue
        for part, same, known in zip(twin.region.parts, step.reads[place].parts, tensors, strict=True):
            other = files.read("twin", part, twin.region.place(part.suffix, box))
            if _bytes(other) != _bytes(known):
                raise WorkError(f"{step.name}: {same.file} and {part.file} hold different bytes of it")


def _joined(name: str, held: list[_Held], number: int, region: Region, wanted: Box, files: _Files) -> torch.Tensor:
    """One stored tensor's part of a written region, put together from what the band holds of the sources."""
    part = region.parts[number]
    target = region.place(part.suffix, wanted)
    whole: torch.Tensor | None = None
    filled: list[Box] = []
    for source, box, tensors in held:
        both = box.intersect(wanted)
        if both is None:
            continue
        suffix = source.parts[number].suffix
        origin = source.place(suffix, box).start
        values = _cut(tensors[number], source.place(suffix, both).relative_to(origin))
        at = region.place(part.suffix, both).relative_to(target.start)
        if at.shape == target.shape and whole is None and both == wanted:
            return values
        if whole is None:
            whole = files.buffer("joined", TensorSpec(part.spec.dtype, target.shape))
        place = _cut(whole, at)
        if any(at.intersect(other) for other in filled) and _bytes(place) != _bytes(values):
            raise WorkError(f"{name}: its parts disagree on {part.suffix}, which all of them hold")
        place.copy_(values)
        filled.append(at)
    assert whole is not None, "a written region has no source"
    return whole


def _cut(values: torch.Tensor, box: Box) -> torch.Tensor:
    if box.shape == tuple(values.shape):
        return values
    return values[tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))]


def _recode(step: Step, band: Box, files: _Files) -> dict[str, int]:
    counts: dict[str, int] = {}
    with _placed(step, step.reads[0].codec, band):
        values = _values(step, band, files, counts)
    for region in step.writes:
        wanted = band.intersect(region.box)
        if wanted is None:
            continue
        cut = _cut(values, wanted.relative_to(band.start))
        stored = {
            suffix: files.buffer(f"out{suffix}", spec) for suffix, spec in region.codec.specs(wanted.shape).items()
        }
        direct = isinstance(region.codec, Plain) and values.dtype == DTYPES[region.codec.dtype]
        if direct:
            stored = {"": cut}
        else:
            kept = _kept(step, region.codec, wanted, files) | ({PEAK: files.peaks[step.name]} if step.surveyed else {})
            with _placed(step, region.codec, wanted):
                if files.device is None:
                    done = region.codec.encode(cut, stored | kept)
                else:
                    done = files.device.encode(region.codec, cut, stored, kept)
                add(counts, done)
            if step.measured:
                add(counts, {WORST: _error(region, cut, stored, files)})
        for part in region.parts:
            files.write(part, region.place(part.suffix, wanted), stored[part.suffix])
    return counts


def _decode(codec: Codec, stored: dict[str, torch.Tensor], out: torch.Tensor, there: Device | None) -> None:
    if there is None:
        codec.decode(stored, out)
    else:
        there.decode(codec, stored, out)


def _kept(step: Step, codec: Codec, box: Box, files: _Files) -> dict[str, torch.Tensor]:
    if step.kept is None:
        return {}
    mark = KEPT if step.kept.codec == codec else OTHERS
    try:
        return {
            mark + part.suffix: files.read(f"kept{part.suffix}", part, step.kept.place(part.suffix, box))
            for part in step.kept.parts
        }
    except Misaligned:
        return {}


class Values:
    """A checkpoint's values, for what only reads: bands of a step, in buffers that the next band uses again."""

    def __init__(self, store: Store) -> None:
        self._files = _Files(Context(store, ""), store, {})

    def read(self, step: Step, band: Box) -> torch.Tensor:
        """A band's values: as stored where they are plain, else in the dtype that the step's target has.

        Raises:
            SourceError: they cannot be read. BadBlock: a scale cannot be one.
        """
        return _values(step, band, self._files)

    def scales(self, step: Step) -> Iterator[tuple[TensorSpec, torch.Tensor]]:
        """The stored block scales of everything that a step reads, each with what it is stored as."""
        for region in step.reads:
            for part in region.parts:
                if part.suffix in BLOCK_SCALES:
                    yield part.spec, self._files.read("scales", part, region.place(part.suffix, region.box))


def _values(step: Step, band: Box, files: _Files, counts: dict[str, int] | None = None) -> torch.Tensor:
    """A band's values, in the dtype of the target where that is plain, else in the source's own or float32.

    `counts` is told how many decoded ones are not finite.
    """
    dtype = step.decoded
    if dtype is None:
        found = files.read("in", step.reads[0].parts[0], step.reads[0].place("", band))
        _compare(step, 0, band, [found], files)
        return found
    values = files.buffer("values", TensorSpec(dtype, band.shape))
    for place, region in enumerate(step.reads):
        both = band.intersect(region.box)
        if both is None:
            continue
        stored = {
            part.suffix: files.read(f"in{part.suffix}", part, region.place(part.suffix, both)) for part in region.parts
        }
        _compare(step, place, both, stored.values(), files)
        piece = values if both == band else files.buffer("piece", TensorSpec(dtype, both.shape))
        _decode(region.codec, stored, piece, files.device)
        if counts is not None and _may_overflow(stored):
            add(counts, _not_finite(piece))
        if piece is not values:
            _cut(values, both.relative_to(band.start)).copy_(piece)
    return values


def _may_overflow(stored: Mapping[str, torch.Tensor]) -> bool:
    """Whether stored tensors hold an E4M3 code that is no number, or a scale so huge that a value may be infinite.

    Two maxima over the codes cost a tenth of decoding them: as int8 the one NaN, 0x7f, is the largest, as uint8 the
    other, 0xff. A look at every value would cost as much as the decoding.
    """
    codes = stored.get("")
    if codes is not None and codes.dtype == torch.float8_e4m3fn and codes.numel():
        raw = codes.view(torch.uint8).numpy()
        if raw.max() == 0xFF or raw.view("int8").max() == 0x7F:
            return True
    scales = (stored[suffix] for suffix in SCALES if suffix in stored)
    return any(scale.is_floating_point() and bool((scale.float() > HUGE).any()) for scale in scales)


def _not_finite(values: torch.Tensor) -> dict[str, int]:
    found: dict[str, int] = {}
    for run in torch.split(values.reshape(-1), grids.CHUNK):
        add(found, {NAN: int(run.isnan().sum()), INFINITE: int(run.isinf().sum())})
    return {name: count for name, count in found.items() if count}
