"""How fast a processor's core and a GPU compute a plan's work, measured on its own codecs and shapes. Loads torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod

import torch

from dsctl.codecs.codec import PEAK, Codec
from dsctl.core.header import TensorSpec
from dsctl.plan.steps import Step
from dsctl.work.buffers import DTYPES
from dsctl.work.devices import Device, device

Tensors = dict[str, torch.Tensor]
# Seconds that each measurement takes, at least.
LEAST = 0.25
# Values of the band that is computed again and again.
VALUES = 2 << 20


def computed(steps: Iterable[Step]) -> Step | None:
    """The step that stands for the work of a plan: the one with most bytes that a device could compute, if any."""
    return max((step for step in steps if step.how == "recode" and len(step.shape) == 2), key=_cost, default=None)


def _cost(step: Step) -> int:
    return prod(step.shape)


def rates(step: Step, names: Iterable[str], threads: int) -> dict[str, float]:
    """Values per second of one core, under `cpu`, and of each named device with some threads that share it."""
    source, target = step.reads[0].codec, step.writes[0].codec
    rows = max(source.block[0], target.block[0], VALUES // step.shape[1] // 128 * 128)
    shape = min(rows, step.shape[0]), step.shape[1]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = {"cpu": prod(shape) / _seconds(_work(step, shape, None))}
        for name in names:
            found[name] = _together(step, shape, name, threads)
    finally:
        torch.set_num_threads(before)
    return found


def _together(step: Step, shape: tuple[int, int], name: str, threads: int) -> float:
    """Values per second of threads that share a device."""
    with ThreadPoolExecutor(threads) as pool:
        seconds = list(pool.map(lambda _: _seconds(_work(step, shape, device(name))), range(threads)))
    return threads * prod(shape) / max(seconds)


def _seconds(work: Callable[[], object]) -> float:
    """The seconds of one call, after one that warms up."""
    work()
    began, calls = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < LEAST:
        work()
        calls += 1
    return spent / calls


def _work(step: Step, shape: tuple[int, int], there: Device | None) -> Callable[[], object]:
    """Decode and encode a band of this shape, as the step does."""
    source, target = step.reads[0].codec, step.writes[0].codec
    pinned = there is not None and there.name.startswith("cuda")
    random = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    dtype = step.decoded or step.reads[0].parts[0].spec.dtype
    values = _empty(TensorSpec(dtype, shape), pinned)
    values.copy_(random)
    stored, out = _stored(source, shape, pinned), _stored(target, shape, pinned)
    if source.quantized:
        source.encode(random, stored | _peak(source, random))
    known = _peak(target, values)

    decode = partial(there.decode, source) if there else source.decode

    def work() -> None:
        if source.quantized:
            decode(stored, values)
        if target.quantized:
            _encode(target, values, out, known, there)

    return work


def _encode(codec: Codec, values: torch.Tensor, out: Tensors, known: Tensors, there: Device | None) -> None:
    if there is None:
        codec.encode(values, out | known)
    else:
        there.encode(codec, values, out, known)


def _peak(codec: Codec, values: torch.Tensor) -> dict[str, torch.Tensor]:
    return {PEAK: values.abs().amax().float().view(1)} if codec.surveys else {}


def _stored(codec: Codec, shape: tuple[int, int], pinned: bool) -> dict[str, torch.Tensor]:
    return {part: _empty(spec.in_bytes, pinned) for part, spec in codec.specs(shape).items()}


def _empty(spec: TensorSpec, pinned: bool) -> torch.Tensor:
    return torch.empty(spec.shape, dtype=DTYPES[spec.dtype], pin_memory=pinned)
