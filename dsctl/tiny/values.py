"""Seeded values for a parameter, in bands, so that a whole tensor is never in memory. Loads torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from statistics import NormalDist
from zlib import crc32

import numpy as np
import torch

from dsctl.codecs.codec import Codec
from dsctl.core.boxes import Box
from dsctl.core.files import write_all
from dsctl.tiny.draws import Draw, Work
from dsctl.work.buffers import DTYPES

BLOCK = 128
BAND_VALUES = 1 << 20
# Values looked up at a time: places and values stay in the cache beside the table.
PIECE_VALUES = 1 << 17
# Equally likely Gaussian values, more than BF16 can distinguish; looking one up is faster than computing it.
LEVELS = 1 << 16
# A word of the generator holds this many levels, the lowest bits first.
LEVELS_PER_WORD = 4

Bits = np.random.BitGenerator


def written(work: Work, files: Sequence[int], seed: int, deviation: float) -> Iterator[int]:
    """Draw, encode and write the values of a parameter and its duplicates; yields the bytes written, band by band.

    Raises:
        OSError: the disk takes no more.
    """
    stated = work.codec.stated(work.draw.shape)
    for band, values in bands(work.draw, seed, deviation):
        nbytes = 0
        found: dict[str, bytes | memoryview] = {**encoded(values, work.codec)}
        for part in stated:
            del found[part]
        # What follows from the shape of the whole parameter is written once.
        for part, data in (found | (stated if band.start[0] == 0 else {})).items():
            first = work.codec.box(part, band, work.draw.shape).start[0]
            for regions in work.regions:
                file, offset, row = regions[part]
                write_all(files[file], data, offset + first * row)
                nbytes += len(data)
        yield nbytes


def bands(draw: Draw, seed: int, deviation: float) -> Iterator[tuple[Box, torch.Tensor]]:
    """The parameter's values in bands of whole block rows: BF16, or float32 if the release keeps float32.

    Vectors are near 1, biases near 0. Matrices are Gaussian; the blocks of quantized ones differ in magnitude by up
    to 2^4, so that every block needs its own scale. A duplicate has the values of its original. Whole numbers are
    below their family's limit, and all different within a row. A band is overwritten by the next one.
    """
    bits = np.random.SFC64([seed, crc32(draw.name.encode())])
    if draw.below:
        yield from _numbers(draw, bits)
        return
    dtype = torch.float32 if draw.dtype == "F32" else torch.bfloat16
    yield from (_gained if draw.gains else _plain)(draw, bits, deviation, dtype)


def _cut(shape: tuple[int, ...]) -> list[Box]:
    """The bands of a parameter; all but the last have a multiple of 128 rows, so that each begins with a whole word."""
    columns = (*shape, 1)[1]
    return list(Box.whole(shape).bands(max(BLOCK, BAND_VALUES // columns // BLOCK * BLOCK)))


def _plain(draw: Draw, bits: Bits, deviation: float, dtype: torch.dtype) -> Iterator[tuple[Box, torch.Tensor]]:
    """Values of one magnitude: the table holds them as they are stored."""
    table, cut = _table(deviation, draw.center, dtype), _cut(draw.shape)
    values, levels = torch.empty(cut[0].size, dtype=dtype), _scratch()
    for band in cut:
        found = values[: band.size]
        _look_up(table, bits, levels, found)
        yield band, found.view(band.shape)


def _gained(draw: Draw, bits: Bits, deviation: float, dtype: torch.dtype) -> Iterator[tuple[Box, torch.Tensor]]:
    """Values of a matrix whose blocks have different magnitudes, rounded once they have their gains."""
    rows, columns = draw.shape
    grid = -(-rows // BLOCK), -(-columns // BLOCK)
    gains = torch.from_numpy(np.random.Generator(bits).uniform(0.25, 4, grid).astype(np.float32))
    table, cut, levels = _table(deviation, draw.center, torch.float32), _cut(draw.shape), _scratch()
    values, exact = torch.empty(cut[0].shape, dtype=dtype), torch.empty(BLOCK, columns)
    for band in cut:
        found = values[: band.shape[0]]
        for begin in range(0, len(found), BLOCK):
            rounded = found[begin : begin + BLOCK]
            block = exact[: len(rounded)]
            _look_up(table, bits, levels, block.view(-1))
            rounded.copy_(block.mul_(gains[(band.start[0] + begin) // BLOCK].repeat_interleave(BLOCK)[:columns]))
        yield band, found


@cache
def _table(deviation: float, center: float, dtype: torch.dtype) -> torch.Tensor:
    """The equally likely values of a parameter, [LEVELS]."""
    return (_gaussian() * torch.tensor(deviation, dtype=torch.float32)).add_(center).to(dtype)


def _scratch() -> torch.Tensor:
    return torch.empty(PIECE_VALUES, dtype=torch.int32)


def _look_up(table: torch.Tensor, bits: Bits, levels: torch.Tensor, out: torch.Tensor) -> None:
    """Fill `out` with values of the table at random levels; `levels` is scratch for a piece, int32.

    The generator's words, taken apart, are its 16-bit integers: `Generator.integers` takes twice as long.
    """
    for piece in torch.split(out, PIECE_VALUES):
        words = bits.random_raw(-(-len(piece) // LEVELS_PER_WORD))
        places = levels[: len(piece)].copy_(torch.from_numpy(words.view(np.uint16)[: len(piece)]))
        torch.index_select(table, 0, places, out=piece)


def _numbers(draw: Draw, bits: Bits) -> Iterator[tuple[Box, torch.Tensor]]:
    """Whole numbers, all different within a row: consecutive ones, with 0 after the last."""
    generator, columns = np.random.Generator(bits), draw.shape[1]
    for band in _cut(draw.shape):
        first = generator.integers(0, draw.below, (band.shape[0], 1), dtype=np.int64)
        yield band, torch.from_numpy((first + np.arange(columns)) % draw.below)


@cache
def _gaussian() -> torch.Tensor:
    """Equally likely values of the standard normal distribution, float32 [LEVELS]."""
    upper = [NormalDist().inv_cdf(0.5 + (level + 0.5) / LEVELS) for level in range(LEVELS // 2)]
    return torch.tensor([*(-value for value in reversed(upper)), *upper], dtype=torch.float32)


def encoded(values: torch.Tensor, codec: Codec) -> dict[str, memoryview]:
    """A band's stored bytes by part."""
    specs = codec.specs(tuple(values.shape))
    stored = {part: torch.empty(spec.shape, dtype=DTYPES[spec.dtype]) for part, spec in specs.items()}
    codec.encode(values, stored)
    return {part: tensor.view(torch.uint8).flatten().numpy().data for part, tensor in stored.items()}
