"""The open output files of one job, and buffers that the next band uses again. Loads torch."""

from __future__ import annotations

import mmap
import os

import torch

from dsctl.core.boxes import Box
from dsctl.core.files import PART, failure, write_all
from dsctl.core.header import TensorSpec
from dsctl.plan.steps import Part
from dsctl.work.devices import device
from dsctl.work.gathering import Gathered
from dsctl.work.readahead import Reader
from dsctl.work.tasks import Context

DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16, "U32": torch.uint32,
    "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
# Small enough to stay in a core's own cache between reading and hashing.
CHUNK = 1 << 20


class JobFiles:
    """The open output files and the buffers of one job; all output is on the disk when it ends."""

    def __init__(self, context: Context, source: Reader, scratch: dict[str, torch.Tensor]) -> None:
        self.context, self.source, self.scratch = context, source, scratch
        self.open: dict[str, int] = {}
        self.peaks: dict[str, torch.Tensor] = {}
        self.largest: dict[str, int] = {}
        self.device = device(context.devices[0])
        self.gathered = Gathered(context.folder)

    @property
    def _pinned(self) -> bool:
        """Whether buffers are in pinned memory, which a device can copy without the processor."""
        return self.device is not None and self.device.name != "cpu"

    def __enter__(self) -> JobFiles:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        for file, descriptor in self.open.items():
            try:
                if kind is None:
                    os.fdatasync(descriptor)
            except OSError as error:
                raise failure(self._part(file), error) from None
            finally:
                os.close(descriptor)

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
        self.source.read_into(part.file, part.offset + offset, bytes_of(buffer))
        inner = box.relative_to(rows.start)
        if inner.shape == rows.shape:
            return buffer
        return buffer[tuple(slice(a, b) for a, b in zip(inner.start, inner.stop, strict=True))].contiguous()

    def write(self, part: Part, box: Box, values: torch.Tensor) -> None:
        """Write values to a box of a stored tensor."""
        rows, offset = _rows(part.spec, box)
        if rows.shape == box.shape:
            self._put(part.file, part.offset + offset, bytes_of(values))
            return
        width = part.spec.nbytes // part.spec.shape[0]
        start = Box(box.start[1:], box.stop[1:])
        for row, line in enumerate(values):
            inner = Part(part.name, part.file, part.offset + (box.start[0] + row) * width, _inner(part.spec))
            self.write(inner, start, line)

    def _part(self, file: str) -> str:
        return os.path.join(self.context.folder, file + PART)

    def _put(self, file: str, offset: int, data: memoryview) -> None:
        path = self._part(file)
        try:
            if file not in self.open:
                self.open[file] = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
            write_all(self.open[file], data, offset)
        except OSError as error:
            raise failure(path, error) from None


def _fresh(nbytes: int, pinned: bool) -> torch.Tensor:
    """Memory that returns to the system when it is dropped; the allocator would keep freed memory and grow."""
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


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor of any dtype and shape, in the order of a file."""
    flat = tensor.contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
    return flat.numpy().data
