"""Seeded values for a parameter, in bands, so that a whole tensor is never in memory. Loads torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from statistics import NormalDist
from zlib import crc32

import numpy as np
import torch

from dsctl.codecs.codec import Codec
from dsctl.core.boxes import Box
from dsctl.core.params import Param
from dsctl.work.buffers import DTYPES

BLOCK = 128
BAND_VALUES = 1 << 20
# Equally likely Gaussian values, more than BF16 can distinguish; drawing one is 3 times as fast as computing one.
LEVELS = 1 << 16


def bands(param: Param, seed: int, deviation: float) -> Iterator[tuple[Box, torch.Tensor]]:
    """The parameter's values in bands of whole block rows: BF16, or float32 if the release keeps float32.

    Vectors are near 1, biases near 0. Matrices are Gaussian; the blocks of quantized ones differ in magnitude by up
    to 2^4, so that every block needs its own scale. A duplicate has the values of its original. Whole numbers are
    below their family's limit, and all different within a row.
    """
    if param.family.below:
        yield from _numbers(param, seed)
        return
    generator = np.random.Generator(np.random.SFC64([seed, crc32((param.family.twin or param.name).encode())]))
    rows, columns = (*param.shape, 1)[:2]
    grid = -(-rows // BLOCK), -(-columns // BLOCK)
    gains = generator.uniform(0.25, 4, grid) if param.quantizable else np.ones(grid)
    center = float(len(param.shape) == 1 and not param.template.endswith("bias"))
    quantiles = _gaussian() * np.float32(deviation)
    dtype = torch.float32 if param.family.dtype == "F32" else torch.bfloat16
    for band in Box.whole(param.shape).bands(max(BLOCK, BAND_VALUES // columns // BLOCK * BLOCK)):
        values = quantiles[generator.integers(0, LEVELS, band.shape, dtype=np.uint16)]
        for begin in range(0, len(values), BLOCK) if param.quantizable else ():
            gain = gains[(band.start[0] + begin) // BLOCK].astype(np.float32)
            values[begin : begin + BLOCK] *= np.repeat(gain, BLOCK)[:columns]
        yield band, torch.from_numpy(values).add_(center).to(dtype)


def _numbers(param: Param, seed: int) -> Iterator[tuple[Box, torch.Tensor]]:
    """Whole numbers, all different within a row: consecutive ones, with 0 after the last."""
    generator = np.random.Generator(np.random.SFC64([seed, crc32(param.name.encode())]))
    columns = param.shape[1]
    for band in Box.whole(param.shape).bands(max(BLOCK, BAND_VALUES // columns // BLOCK * BLOCK)):
        first = generator.integers(0, param.family.below, (band.shape[0], 1), dtype=np.int64)
        yield band, torch.from_numpy((first + np.arange(columns)) % param.family.below)


@cache
def _gaussian() -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    upper = [NormalDist().inv_cdf(0.5 + (level + 0.5) / LEVELS) for level in range(LEVELS // 2)]
    return np.array([*(-value for value in reversed(upper)), *upper], np.float32)


def encoded(values: torch.Tensor, codec: Codec) -> dict[str, memoryview]:
    """A band's stored bytes by part."""
    specs = codec.specs(tuple(values.shape))
    stored = {part: torch.empty(spec.shape, dtype=DTYPES[spec.dtype]) for part, spec in specs.items()}
    codec.encode(values, stored)
    return {part: tensor.view(torch.uint8).flatten().numpy().data for part, tensor in stored.items()}
