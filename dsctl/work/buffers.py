"""What one job reads and writes, and buffers used again. Loads torch."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from time import perf_counter

import torch

from dsctl.core.boxes import Box
from dsctl.core.header import TensorSpec
from dsctl.plan.steps import Part
from dsctl.plan.stretches import Written
from dsctl.work.devices import device
from dsctl.work.gathering import Gathered
from dsctl.work.output_files import OutputFiles
from dsctl.work.readahead import Reader
from dsctl.work.tasks import READ, Context

DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16, "U32": torch.uint32,
    "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
# Smaller buffers come from the allocator.
SMALL = 1 << 20


class JobFiles:
    """The open output files and the buffers of one job; all output is on the disk when it ends.

    `written` are the stretches that the job writes, each from its first byte to its last. `heed` is called after
    each read, and raises if the job is no longer wanted.
    """

    def __init__(
        self,
        context: Context,
        source: Reader,
        scratch: dict[str, torch.Tensor],
        written: Iterable[Written] = (),
        heed: Callable[[], None] = lambda: None,
    ) -> None:
        self.context, self.source, self.scratch, self._heed = context, source, scratch, heed
        self.output = OutputFiles(context.folder, written)
        self.seconds = self.output.seconds
        self.peaks: dict[str, torch.Tensor] = {}
        self.largest: dict[str, int] = {}
        # The step whose right factor is in its buffer.
        self.factor = ""
        self.device = device(context.devices[0])
        self.gathered = Gathered(context.folder)

    @property
    def _pinned(self) -> bool:
        """Whether buffers are in pinned memory, which a device can copy without the processor."""
        return self.device is not None and self.device.name.startswith("cuda")

    def __enter__(self) -> JobFiles:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self.output.close(durable=kind is None)

    def buffer(self, name: str, spec: TensorSpec) -> torch.Tensor:
        """An uninitialised tensor that is reused by the next call of the same name."""
        spec = spec.in_bytes
        need = max(spec.nbytes, 1)
        have = self.scratch.get(name)
        if have is None or have.numel() < need or have.is_pinned() != self._pinned:
            # Free the old one before the new one is allocated.
            self.scratch.pop(name, None)
            have = None
            have = self.scratch[name] = _fresh(need, self._pinned)
        return have[: spec.nbytes].view(DTYPES[spec.dtype]).view(spec.shape)

    def read(self, name: str, part: Part, box: Box) -> torch.Tensor:
        """A box of a stored tensor, contiguous."""
        rows, offset = _rows(part.spec, box)
        buffer = self.buffer(name, TensorSpec(part.spec.dtype, rows.shape))
        began = perf_counter()
        self.source.read_into(part.file, part.offset + offset, bytes_of(buffer))
        self.output.spent(READ, began)
        self._heed()
        inner = box.relative_to(rows.start)
        if inner.shape == rows.shape:
            return buffer
        return buffer[tuple(slice(a, b) for a, b in zip(inner.start, inner.stop, strict=True))].contiguous()

    def write(self, part: Part, box: Box, values: torch.Tensor) -> None:
        """Write values to a box of a stored tensor."""
        rows, offset = _rows(part.spec, box)
        if rows.shape == box.shape:
            self.output.put(part.file, part.offset + offset, bytes_of(values))
            return
        width = part.spec.nbytes // part.spec.shape[0]
        start = Box(box.start[1:], box.stop[1:])
        for row, line in enumerate(values):
            inner = Part(part.name, part.file, part.offset + (box.start[0] + row) * width, _inner(part.spec))
            self.write(inner, start, line)

    def digests(self) -> bytes:
        """The digests of all stretches, one after the other."""
        return self.output.digests()


def _fresh(nbytes: int, pinned: bool) -> torch.Tensor:
    """Memory that returns to the system when it is dropped; the allocator would keep freed memory and grow."""
    if pinned or nbytes < SMALL:
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


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor of any dtype and shape, in the order of a file."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
    return flat.numpy().data
