"""The values of a band of rows: read, decoded if they are quantized, and compared with copies. Loads torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

from dsctl.checkpoint.scales import refuse_bad_box
from dsctl.codecs import grids
from dsctl.codecs.codec import CODES, SCALE, SCALES, BadBlock, Codec, Inexact
from dsctl.codecs.plain import Rounded
from dsctl.core.boxes import Box
from dsctl.core.errors import WorkError
from dsctl.core.header import TensorSpec
from dsctl.plan.steps import Step, moved
from dsctl.stores import Store
from dsctl.work.buffers import JobFiles, bytes_of
from dsctl.work.devices import Device
from dsctl.work.tasks import INFINITE, NAN, Context, add

# No product of two scales up to here and a code overflows float32 or BF16.
HUGE = 2.0**50
# Scales are read in bands of at most this many bytes.
SCALE_BYTES = 8 << 20


class Values:
    """A checkpoint's values for readers: bands of a step, in buffers that the next band uses again."""

    def __init__(self, store: Store) -> None:
        self._files = JobFiles(Context(store, ""), store, {})

    def read(self, step: Step, band: Box) -> torch.Tensor:
        """A band's values: as stored if they are plain, else in the dtype of the step's target.

        Raises:
            SourceError: they cannot be read. BadBlock: a scale is impossible.
        """
        return band_values(step, band, self._files, refuse=False)

    def scales(self, step: Step) -> Iterator[tuple[TensorSpec, torch.Tensor]]:
        """The stored block scales of all regions that a step reads, in bands of rows, each with its tensor's spec."""
        for region in step.reads:
            for part in region.parts:
                if part.name == SCALE:
                    place = region.place(part.name, region.box)
                    row = part.spec.nbytes // max(1, part.spec.shape[0])
                    for band in place.bands(max(1, SCALE_BYTES // max(1, row))):
                        yield part.spec, self._files.read("scales", part, band)


def stored_parts(step: Step, place: int, box: Box, files: JobFiles, refuse: bool = True) -> dict[str, torch.Tensor]:
    """The stored tensors of a box of the region that a step reads at this place.

    Raises:
        FormatError: with `refuse`, if a scale among them is impossible.
    """
    region, stored = step.reads[place], {}
    for part in region.parts:
        inner = region.place(part.name, box)
        found = stored[part.name] = files.read(moved(place if step.how == "move" else 0, part), part, inner)
        if refuse and part.name == SCALE:
            refuse_bad_box(region.ref(step.name, part), inner, bytes_of(found))
    return stored


def band_values(
    step: Step, band: Box, files: JobFiles, counts: dict[str, int] | None = None, refuse: bool = True
) -> torch.Tensor:
    """A band's values, in the dtype of the target if that is plain, else in the source's own or float32.

    The numbers of decoded values that are not finite are added to `counts`; `refuse` is as in `stored_parts`.
    """
    dtype = step.decoded
    if dtype is None:
        part = step.reads[0].parts[0]
        found = files.read(moved(0, part), part, step.reads[0].place(part.name, band))
        refuse_unlike_twins(step, 0, band, [found], files)
        return found
    values = files.buffer("values", TensorSpec(dtype, band.shape))
    for place, region in enumerate(step.reads):
        both = band.intersect(region.box)
        if both is None:
            continue
        stored = stored_parts(step, place, both, files, refuse)
        refuse_unlike_twins(step, place, both, stored.values(), files)
        if step.gathers:
            files.gathered.note(step, both, stored)
        piece = values if both == band else files.buffer("piece", TensorSpec(dtype, both.shape))
        nan = _decode(region.codec, stored, piece, files.device)
        if counts is not None and _may_overflow(stored, nan):
            add(counts, _not_finite(piece))
        if piece is not values:
            cut_out(values, both.relative_to(band.start)).copy_(piece)
    return values


def _may_overflow(stored: Mapping[str, torch.Tensor], nan: bool | None) -> bool:
    """Whether stored tensors hold an E4M3 code that means NaN, or a scale so large that a value may be infinite.

    `nan` is the former if decoding has found it out. Otherwise two maxima over the codes cost a tenth of decoding them:
    one NaN, 0x7f, is the largest code as int8, the other, 0xff, as uint8. Checking every value would cost as much as
    decoding.
    """
    codes = stored.get(CODES)
    if nan is None and codes is not None and codes.dtype == torch.float8_e4m3fn and codes.numel():
        raw = codes.view(torch.uint8).numpy()
        nan = raw.max() == 0xFF or raw.view("int8").max() == 0x7F
    if nan:
        return True
    scales = (stored[part] for part in SCALES if part in stored)
    return any(scale.is_floating_point() and bool((scale.float() > HUGE).any()) for scale in scales)


def _not_finite(values: torch.Tensor) -> dict[str, int]:
    found: dict[str, int] = {}
    for run in torch.split(values.reshape(-1), grids.CHUNK):
        add(found, {NAN: int(run.isnan().sum()), INFINITE: int(run.isinf().sum())})
    return {name: count for name, count in found.items() if count}


def _decode(codec: Codec, stored: dict[str, torch.Tensor], out: torch.Tensor, there: Device | None) -> bool | None:
    """Decode; return whether a code may be NaN, or None if that is unknown."""
    if there is None:
        return codec.decode(stored, out)
    there.decode(codec, stored, out)
    return None


@contextmanager
def placed(step: Step, codec: Codec, box: Box) -> Iterator[None]:
    """Report a bad block of a region with its place in the parameter."""
    try:
        yield
    except BadBlock as error:
        row = error.row + (box.start[0] // codec.block[0] if box.start else 0)
        if isinstance(error, Inexact):
            hint = "--allow-inexact continues, and counts the blocks that lose precision"
            raise WorkError(f"{step.name}: {error.what} in block [{row}, {error.column}]", hint=hint) from None
        if isinstance(error, Rounded):
            hint = "--bf16 rounds such values"
            raise WorkError(f"{step.name}: {error.what} at [{row}, {error.column}]", hint=hint) from None
        hint = f"`dsctl verify SRC --deep` lists every such value; --skip '{step.name}' continues without it"
        raise WorkError(f"{step.name}: {error.what} in block [{row}, {error.column}]", hint=hint) from None


def refuse_unlike_twins(step: Step, place: int, box: Box, tensors: Iterable[torch.Tensor], files: JobFiles) -> None:
    """Refuse copies of a source region with different bytes."""
    for twin in step.twins:
        if twin.of != place:
            continue
        for part, same, known in zip(twin.region.parts, step.reads[place].parts, tensors, strict=True):
            other = files.read("twin", part, twin.region.place(part.name, box))
            if bytes_of(other) != bytes_of(known):
                raise WorkError(f"{step.name}: its copies in {same.file} and {part.file} have different bytes")


def cut_out(values: torch.Tensor, box: Box) -> torch.Tensor:
    """The part of a tensor that a box covers, as a view."""
    if box.shape == tuple(values.shape):
        return values
    return values[tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))]
