"""The open output files of one job, the digests of what is written, and buffers used again. Loads torch."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import NamedTuple

import torch

from dsctl.core.boxes import Box
from dsctl.core.digests import PIECE_BYTES, Hasher, digest, hasher
from dsctl.core.files import PART, failure, write_all
from dsctl.core.header import TensorSpec
from dsctl.plan.steps import Part
from dsctl.plan.stretches import Written
from dsctl.work.devices import device
from dsctl.work.gathering import Gathered
from dsctl.work.readahead import Reader
from dsctl.work.tasks import DIGEST, READ, WRITE, Context

DTYPES: dict[str, torch.dtype] = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16, "I16": torch.int16, "U32": torch.uint32,
    "I32": torch.int32, "U64": torch.uint64, "I64": torch.int64, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
# Smaller buffers come from the allocator.
SMALL = 1 << 20


class _Stretch(NamedTuple):
    """The end of a stretch of output bytes, and its digest so far."""

    end: int
    hasher: Hasher


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
        self.seconds = dict.fromkeys((READ, DIGEST, WRITE), 0.0)
        self._written = tuple(written)
        self._stretches = {(one.file, one.begin): _Stretch(one.end, hasher()) for one in self._written}
        # Each stretch under the file and the place of its next byte.
        self._next = dict(self._stretches)
        self.open: dict[str, int] = {}
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
        for file, descriptor in self.open.items():
            try:
                if kind is None:
                    began = perf_counter()
                    os.fdatasync(descriptor)
                    self._spent(WRITE, began)
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
        began = perf_counter()
        self.source.read_into(part.file, part.offset + offset, bytes_of(buffer))
        self._spent(READ, began)
        self._heed()
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

    def digests(self) -> bytes:
        """The digests of all stretches, one after the other."""
        assert not self._next, "a stretch was not written to its end"
        return b"".join(self._stretches[one.file, one.begin].hasher.digest() for one in self._written)

    def _part(self, file: str) -> str:
        return os.path.join(self.context.folder, file + PART)

    def _put(self, file: str, offset: int, data: memoryview) -> None:
        path = self._part(file)
        try:
            if file not in self.open:
                self.open[file] = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
            for at in range(0, len(data), PIECE_BYTES):
                piece, began = data[at : at + PIECE_BYTES], perf_counter()
                self._digest(file, offset + at, piece)
                began = self._spent(DIGEST, began)
                write_all(self.open[file], piece, offset + at)
                self._spent(WRITE, began)
        except OSError as error:
            raise failure(path, error) from None

    def _spent(self, what: str, began: float) -> float:
        """Add the time since `began` to an account; the time now."""
        now = perf_counter()
        self.seconds[what] += now - began
        return now

    def _digest(self, file: str, offset: int, piece: memoryview) -> None:
        """Add bytes to the digest of the stretch that goes on at this place."""
        one = self._next.pop((file, offset), None)
        if one is None:
            # Each band writes a scale of the whole matrix again.
            same = self._stretches[file, offset].hasher.digest() == digest(piece)
            assert same, f"{file}: other bytes are written at {offset} again"
            return
        one.hasher.update(piece)
        if offset + len(piece) < one.end:
            self._next[file, offset + len(piece)] = one


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
