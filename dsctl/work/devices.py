"""Codec arithmetic on a GPU, overlapped with copies: stretches of a band's rows alternate between two streams.

While one stretch of rows is computed, the next is copied to the device and the previous one back, both through pinned
memory. The bytes equal those of one call on the processor, because a codec's blocks are never cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from threading import get_ident
from typing import Any

import torch

from dsctl.codecs.codec import PEAK, BadBlock, Codec
from dsctl.core.boxes import Box
from dsctl.work.tasks import add

Tensors = Mapping[str, torch.Tensor]
# Stretches of a band: more of them overlap better, fewer of them start fewer kernels.
STRETCHES = 4


class Device:
    """A device by torch's name; `cpu` does the same without streams, for tests to compare with."""

    def __init__(self, name: str) -> None:
        self.name = name
        stream: Any = torch.cuda.Stream
        self._streams = [stream(name) for _ in range(2)] if name.startswith("cuda") else []

    def decode(self, codec: Codec, stored: Tensors, out: torch.Tensor) -> None:
        """As `codec.decode`, for tensors in this machine's memory.

        Raises:
            BadBlock: a scale is impossible.
        """

        def one(rows: Box) -> None:
            there = {part: self._sent(_part(codec, part, tensor, rows, out)) for part, tensor in stored.items()}
            values = torch.empty(rows.shape, dtype=out.dtype, device=self.name)
            codec.decode(there, values)
            _rows(out, rows).copy_(values, non_blocking=True)

        self._each(codec, tuple(out.shape), one)

    def encode(self, codec: Codec, values: torch.Tensor, stored: Tensors, known: Tensors) -> dict[str, int]:
        """As `codec.encode`, for tensors in this machine's memory; `known` are kept tensors and peaks.

        Raises:
            BadBlock: a value cannot be stored.
        """
        counts: dict[str, int] = {}

        def one(rows: Box) -> None:
            specs = codec.specs(rows.shape)
            there = {
                part: torch.empty(specs[part].shape, dtype=tensor.dtype, device=self.name)
                for part, tensor in stored.items()
            }
            besides = {name: self._sent(_known(codec, name, tensor, rows, values)) for name, tensor in known.items()}
            add(counts, codec.encode(self._sent(_rows(values, rows)), there | besides))
            for part, tensor in stored.items():
                if part not in codec.stated(tuple(values.shape)):
                    _part(codec, part, tensor, rows, values).copy_(there[part], non_blocking=True)

        whole = codec.surveys and PEAK not in known
        self._each(codec, tuple(values.shape), one, 1 if whole else STRETCHES)
        return counts

    def _sent(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.name, non_blocking=True)

    def _each(
        self, codec: Codec, shape: tuple[int, ...], work: Callable[[Box], None], stretches: int = STRETCHES
    ) -> None:
        """Do all stretches of a shape's rows, alternating between the streams, and wait for them."""
        for number, rows in enumerate(_stretches(shape, codec.block[0], stretches)):
            with self._stream(number), _placed(codec, rows):
                work(rows)
        for stream in self._streams:
            stream.synchronize()

    def _stream(self, number: int) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self._streams[number % 2]) if self._streams else nullcontext()


def device(name: str) -> Device | None:
    """The device of this name, created once per thread; None for the processor."""
    return None if name == "cpu" else _device(name, get_ident())


@cache
def _device(name: str, thread: int) -> Device:
    return Device(name)


def _stretches(shape: tuple[int, ...], block: int, number: int) -> Iterator[Box]:
    whole = Box.whole(shape)
    if len(shape) < 2 or number == 1:
        return iter((whole,))
    return iter(whole.bands(max(1, -(-shape[0] // (block * number))) * block))


@contextmanager
def _placed(codec: Codec, rows: Box) -> Iterator[None]:
    """Convert the place of a bad block from the stretch to the band."""
    try:
        yield
    except BadBlock as error:
        first = rows.start[0] // codec.block[0] if rows.start else 0
        raise BadBlock(error.what, error.row + first, error.column) from None


def _rows(tensor: torch.Tensor, rows: Box) -> torch.Tensor:
    return tensor[rows.start[0] : rows.stop[0]] if rows.start else tensor


def _part(codec: Codec, part: str, tensor: torch.Tensor, rows: Box, values: torch.Tensor) -> torch.Tensor:
    """The part of a stored tensor that belongs to some rows."""
    shape = tuple(values.shape)
    if rows.shape == shape:
        return tensor
    place = codec.box(part, rows, shape)
    return tensor[tuple(slice(a, b) for a, b in zip(place.start, place.stop, strict=True))]


def _known(codec: Codec, name: str, tensor: torch.Tensor, rows: Box, values: torch.Tensor) -> torch.Tensor:
    return tensor if name == PEAK else _part(codec, name.rpartition(":")[2], tensor, rows, values)
