"""Values that share scales: groups of `group` = (rows, columns), where 0 columns means the whole row. Pure.

A grid has one scale per group: [ceil(rows / group rows), ceil(columns / group columns)]. Groups of one row must divide
the columns; blocks of several rows may be cut short at the edges. Torch is imported when called.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dsctl.boxes import Box
from dsctl.codecs import BadBlock, Misaligned

if TYPE_CHECKING:
    import torch

Group = tuple[int, int]
# Values quantized at a time: few enough for the cache, enough to outweigh the cost of torch's calls.
CHUNK = 1 << 18
# Runs of fewer values than this torch is slow with in 16 bits: for maxima, and for quotients and products.
FEW_TO_SEARCH = 128
FEW_TO_DIVIDE = 32


def grid(shape: tuple[int, ...], group: Group) -> tuple[int, int]:
    """How many groups cover a matrix, partial ones counted."""
    rows, columns = shape
    width = group[1] or max(columns, 1)
    return -(-rows // group[0]), -(-columns // width)


def divides(shape: tuple[int, ...], group: Group) -> bool:
    """Whether this is a matrix that groups can cover: blocks may be cut short at its edges, groups of one row not."""
    return len(shape) == 2 and (group[0] > 1 or not group[1] or shape[1] % group[1] == 0)


def grid_box(box: Box, group: Group, shape: tuple[int, ...]) -> Box:
    """The scales of a region of the matrix; a scale of a whole row belongs to every part of the row.

    Raises:
        Misaligned: the region cuts a group, or groups of one row do not divide the columns.
    """
    if not divides(shape, group):
        raise Misaligned(f"{shape[1]} columns do not divide into groups of {group[1]}")
    sizes = group[0], group[1] or 1
    for begin, end, size, whole in zip(box.start, box.stop, sizes, shape, strict=True):
        if begin % size or (end % size and end != whole):
            raise Misaligned(f"a cut at {begin} to {end} of {whole} does not fall on groups of {size}")
    start = tuple(a // size for a, size in zip(box.start, sizes, strict=True))
    stop = tuple(-(-b // size) for b, size in zip(box.stop, sizes, strict=True))
    return Box(start, stop) if group[1] else Box((start[0], 0), (stop[0], 1))


def chunks(rows: int, columns: int, group: Group) -> Iterator[tuple[slice, slice]]:
    """Runs of rows of about `CHUNK` values, in whole groups: the rows of the matrix and those of its grid."""
    step = max(1, CHUNK // max(1, columns * group[0]))
    for first in range(0, -(-rows // group[0]) if columns else 0, step):
        yield slice(first * group[0], min(rows, (first + step) * group[0])), slice(first, first + step)


def peaks(values: torch.Tensor, group: Group, first: int = 0) -> torch.Tensor:
    """The largest magnitude of each group, float32 [grid]. `first` is the grid's row that errors count from.

    Raises:
        BadBlock: a value is NaN or infinite.
    """
    import torch

    # Magnitudes order as their bits do, with infinity and NaN on top.
    rows, columns = grid(tuple(values.shape), group)
    if group[0] == 1:
        wide = values.float() if 0 < group[1] < FEW_TO_SEARCH else values
        found = _magnitudes(wide).view(rows, columns, -1).amax(2).view(wide.dtype)
    else:
        bands = (_magnitudes(values[row : row + group[0]]).amax(0) for row in _starts(values, group))
        found = torch.stack([_padded(band, group[1]) for band in bands]).view(values.dtype)
    largest = found.float()
    if not largest.isfinite().all():
        row, column = largest.isfinite().logical_not().nonzero()[0].tolist()
        raise BadBlock("NaN or infinity", row + first, column)
    return largest


def peak(values: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of all, float32 [1]; NaN or infinity where one is among them."""
    import torch

    found = [_magnitudes(run).amax() for run in torch.split(values.reshape(-1), CHUNK)]
    return torch.stack(found).amax().view(values.dtype).float().view(1)


def _magnitudes(values: torch.Tensor) -> torch.Tensor:
    """The bits without the sign, as integers."""
    import torch

    return values.abs().view(torch.int32 if values.dtype == torch.float32 else torch.int16)


def divided(values: torch.Tensor, factors: torch.Tensor, group: Group, out: torch.Tensor) -> None:
    """`out` = values / the factor of their group, a true division rounded once to `out`'s dtype.

    `factors` has the grid's shape and the dtype to compute in; values, factors and out are contiguous.
    """
    import torch

    if group[0] == 1:
        # The float32 quotient, rounded, is the same.
        shape, short = (factors.numel(), -1), 0 < group[1] < FEW_TO_DIVIDE
        values, factors = (values.float(), factors.float()) if short else (values, factors)
        torch.div(values.view(shape), factors.view(-1, 1), out=out.view(shape))
        return
    for index, row in enumerate(_starts(values, group)):
        band = slice(row, row + group[0])
        torch.div(values[band], spread(factors[index], values.shape[1], group[1]), out=out[band])


def multiplied(values: torch.Tensor, factors: torch.Tensor, group: Group, out: torch.Tensor) -> None:
    """`out` = values * the factor of their group, rounded once to `out`'s dtype where the factors are float32.

    Values are floats or integers.
    """
    import torch

    if group[0] == 1:
        shape = factors.numel(), -1
        torch.mul(values.view(shape), factors.view(-1, 1), out=out.view(shape))
        return
    for index, row in enumerate(_starts(values, group)):
        band = slice(row, row + group[0])
        torch.mul(values[band], spread(factors[index], values.shape[1], group[1]), out=out[band])


def spread(factors: torch.Tensor, columns: int, width: int) -> torch.Tensor:
    """One factor per column from one per group of columns."""
    return factors.repeat_interleave(width)[:columns]


def refuse_bad(scales: torch.Tensor, zero: bool = False) -> None:
    """Refuse a scale that is NaN, infinite or negative, or zero where that is none either.

    Raises:
        BadBlock: the first such scale.
    """
    good = ((scales >= 0) if zero else (scales > 0)) & scales.isfinite()
    if not good.all():
        row, column = good.logical_not().nonzero()[0].tolist()
        raise BadBlock(f"scale {float(scales[row, column])}", row, column)


def _starts(values: torch.Tensor, group: Group) -> range:
    return range(0, values.shape[0], group[0])


def _padded(peaks: torch.Tensor, width: int) -> torch.Tensor:
    """The largest of each group of columns, the last of which may be short."""
    import torch

    missing = -len(peaks) % width
    return torch.nn.functional.pad(peaks, (0, missing)).view(-1, width).amax(1)
