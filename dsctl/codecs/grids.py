"""Groups of values that share a scale: groups of `group` = (rows, columns), where 0 columns means the whole row. Pure.

A grid has one scale per group: [ceil(rows / group rows), ceil(columns / group columns)]. Groups of one row must divide
the columns; blocks of several rows may be cut short at the edges. Torch is imported when called.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING

from dsctl.codecs.codec import BadBlock, Misaligned
from dsctl.core.boxes import Box

if TYPE_CHECKING:
    import torch

GroupShape = tuple[int, int]
# Values quantized at a time: small enough for the cache, large enough to outweigh the cost of torch's calls.
CHUNK = 1 << 19
# Values of one row of blocks processed at a time.
PIECE = 1 << 20
# Products of scales and codes may overflow float32 from this value on.
TOO_LARGE = 2.0**127
# Below this run length torch is slow in 16 bits: for maxima, and for quotients and products.
FEW_TO_SEARCH = 128
FEW_TO_DIVIDE = 32


def grid(shape: tuple[int, ...], group: GroupShape) -> tuple[int, int]:
    """The number of groups that cover a matrix, including partial ones."""
    rows, columns = shape
    width = group[1] or max(columns, 1)
    return -(-rows // group[0]), -(-columns // width)


def divides(shape: tuple[int, ...], group: GroupShape) -> bool:
    """Whether groups can cover this matrix: blocks may be partial at its edges, groups of one row may not."""
    return len(shape) == 2 and (group[0] > 1 or not group[1] or shape[1] % group[1] == 0)


def grid_box(box: Box, group: GroupShape, shape: tuple[int, ...]) -> Box:
    """The box of scales of a region of the matrix; a row's scale belongs to every part of the row.

    Raises:
        Misaligned: the region cuts a group, or groups of one row do not divide the columns.
    """
    if not divides(shape, group):
        raise Misaligned(f"{shape[1]} columns do not divide into groups of {group[1]}")
    sizes = group[0], group[1] or 1
    for begin, end, size, whole in zip(box.start, box.stop, sizes, shape, strict=True):
        if begin % size or (end % size and end != whole):
            raise Misaligned(f"a cut at {begin} to {end} of {whole} is not aligned with groups of {size}")
    start = tuple(a // size for a, size in zip(box.start, sizes, strict=True))
    stop = tuple(-(-b // size) for b, size in zip(box.stop, sizes, strict=True))
    return Box(start, stop) if group[1] else Box((start[0], 0), (stop[0], 1))


def chunks(rows: int, columns: int, group: GroupShape, size: int | None = None) -> Iterator[tuple[slice, slice]]:
    """Runs of rows of about `size` values (`CHUNK`), in whole groups: rows of the matrix and those of its grid."""
    step = max(1, (size or CHUNK) // max(1, columns * group[0]))
    for first in range(0, -(-rows // group[0]) if columns else 0, step):
        yield slice(first * group[0], min(rows, (first + step) * group[0])), slice(first, first + step)


def chunk(shape: tuple[int, ...], group: GroupShape) -> int:
    """The most values of a matrix of this shape that codecs process at a time. Rows are never cut."""
    rows, columns = shape
    return min(rows * columns, max(CHUNK, columns, min(PIECE, group[0] * columns)))


def pieces(rows: slice, columns: int, size: int = PIECE) -> Iterator[slice]:
    """Runs of about `size` values of a row of blocks, which can be much longer."""
    step = max(1, size // max(1, columns))
    return (slice(row, min(row + step, rows.stop)) for row in range(rows.start, rows.stop, step))


def peaks(values: torch.Tensor, group: GroupShape, first: int = 0) -> torch.Tensor:
    """The largest magnitude of each group, float32 [grid]. `first` is the grid's row that errors count from.

    Raises:
        BadBlock: a value is NaN or infinite, or 2^127 or more.
    """
    import torch

    if group[0] == 1:
        magnitudes = _magnitudes(values)
        return greatest(magnitudes.float() if 0 < group[1] < FEW_TO_SEARCH else magnitudes, group, first)
    found = torch.stack([_padded(_highest(values, rows), group[1]) for rows in _blocks(values, group)])
    return _finite(found.view(values.dtype).float(), first)


def _highest(values: torch.Tensor, rows: slice) -> torch.Tensor:
    """The bits of the largest magnitude of each column in a run of rows."""
    import torch

    found = (_bits(_magnitudes(values[piece])).amax(0) for piece in pieces(rows, values.shape[1]))
    highest = next(found)
    for other in found:
        torch.maximum(highest, other, out=highest)
    return highest


def greatest(magnitudes: torch.Tensor, group: GroupShape, first: int = 0) -> torch.Tensor:
    """The largest of each group of one row, float32 [grid], for unsigned values; otherwise as `peaks`.

    Raises:
        BadBlock: a value is NaN or infinite, or 2^127 or more.
    """
    rows, columns = grid(tuple(magnitudes.shape), group)
    found = _bits(magnitudes).view(rows, columns, -1).amax(2)
    return _finite(found.view(magnitudes.dtype).float(), first)


def _finite(largest: torch.Tensor, first: int) -> torch.Tensor:
    if largest.numel() and not largest.amax() < TOO_LARGE:
        row, column = (largest < TOO_LARGE).logical_not_().nonzero()[0].tolist()
        what = "a value of 2^127 or more" if largest[row, column].isfinite() else "NaN or infinity"
        raise BadBlock(what, row + first, column)
    return largest


def peak(values: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of all, float32 [1]; NaN or infinity if it occurs."""
    import torch

    if not values.numel():
        return values.new_zeros(1, dtype=torch.float32)
    found = [_bits(_magnitudes(run)).amax() for run in torch.split(values.reshape(-1), CHUNK)]
    return torch.stack(found).amax().view(values.dtype).float().view(1)


def _bits(values: torch.Tensor) -> torch.Tensor:
    """Values as integers: for unsigned ones the same order, infinity and NaN on top."""
    import torch

    return values.view(torch.int32 if values.dtype == torch.float32 else torch.int16)


def _magnitudes(values: torch.Tensor) -> torch.Tensor:
    """As `values.abs()`, which in 16 bits takes several times as long."""
    return _bits(values).bitwise_and(0x7FFFFFFF if values.element_size() == 4 else 0x7FFF).view(values.dtype)


def divided(values: torch.Tensor, factors: torch.Tensor, group: GroupShape, out: torch.Tensor) -> None:
    """`out` = values / the factor of their group, a true division rounded once to `out`'s dtype.

    `factors` has the grid's shape and the dtype to compute in; values, factors and out are contiguous.
    """
    import torch

    if group[0] == 1:
        # The rounded float32 quotient is the same.
        shape, short = (factors.numel(), -1), 0 < group[1] < FEW_TO_DIVIDE
        values, factors = (values.float(), factors.float()) if short else (values, factors)
        torch.div(values.view(shape), factors.view(-1, 1), out=out.view(shape))
        return
    for index, rows in enumerate(_blocks(values, group)):
        each = spread(factors[index], values.shape[1], group[1])
        for piece in pieces(rows, values.shape[1]):
            torch.div(values[piece], each, out=out[piece])


def multiplied(values: torch.Tensor, factors: torch.Tensor, group: GroupShape, out: torch.Tensor) -> None:
    """`out` = values * the float32 factor of their group, rounded once to `out`'s dtype.

    Values are of `out`'s dtype, bfloat16, or integers of eight bits. Values, factors and out are contiguous. Where
    `at_once(out)`, factors may be bfloat16, too.
    """
    import torch

    if group[0] == 1:
        shape = factors.numel(), -1
        if at_once(out) and not 0 < group[1] < FEW_TO_DIVIDE:
            # Integers of eight bits are exact in bfloat16.
            exact = values if values.dtype == out.dtype else out.copy_(values)
            products(exact.view(1, *shape), factors.view(1, -1), out.view(1, *shape))
        else:
            torch.mul(values.view(shape), factors.view(-1, 1), out=out.view(shape))
        return
    if at_once(out) and not values.shape[1] % group[1]:
        groups = out.copy_(values).view(len(values), factors.shape[1], -1)
        each = factors if len(factors) == 1 else factors.repeat_interleave(group[0], 0)[: len(values)]
        products(groups, each, groups)
        return
    for index, rows in enumerate(_blocks(values, group)):
        each = spread(factors[index], values.shape[1], group[1])
        for piece in pieces(rows, values.shape[1]):
            torch.mul(values[piece], each, out=out[piece])


def at_once(out: torch.Tensor) -> bool:
    """Whether `products` can fill it."""
    import torch

    return out.dtype == torch.bfloat16 and out.device.type == "cpu" and out.numel() > 0


def products(values: torch.Tensor, factors: torch.Tensor, out: torch.Tensor, less: float = 0.0) -> None:
    """`out` = (values - less) * a factor per group, rounded once where values * factors is exact.

    Values and out are contiguous, [rows, groups, size], of one dtype; out may be values. Factors are float32 or of that
    dtype, [rows, groups], or [1, groups] for all rows. Without `less` any product rounds once.

    Batch normalisation with variance 1, mean `less` and offset -0 (which keeps the sign of zeros) is torch's only
    single pass that reads bfloat16, multiplies in float32 and writes bfloat16. A product of mixed dtypes takes three.
    A product of bfloat16 alone is quicker still, for factors that it holds and if rows do not share them.
    """
    import torch

    if len(factors) > 1:
        # A row's groups follow those of the row before.
        values, out = (one.view(1, -1, one.shape[2]) for one in (values, out))
    factors = factors.reshape(-1)
    if not less and len(values) == 1 and values.shape[2] >= FEW_TO_DIVIDE and holds(values.dtype, factors):
        torch.mul(values[0], factors.to(values.dtype).unsqueeze(1), out=out[0])
        return
    mean, variance, offset = _constants(len(factors), less)
    unused, other = offset.new_empty(0), offset.new_empty(0)
    torch.native_batch_norm(values, factors.float(), offset, mean, variance, False, 0.0, 0.0, out=(out, unused, other))


@lru_cache(maxsize=8)
def _constants(count: int, less: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The means, variances and offsets of `products`."""
    import torch

    return torch.full((count,), float(less)), torch.ones(count), torch.full((count,), -0.0)


def holds(dtype: torch.dtype, factors: torch.Tensor) -> bool:
    """Whether a dtype holds these factors exactly, so that its products round as in float32."""
    import torch

    return dtype in (torch.float32, factors.dtype) or torch.equal(factors.to(dtype).float(), factors)


def spread(factors: torch.Tensor, columns: int, width: int) -> torch.Tensor:
    """One factor per column from one per group of columns."""
    return factors.repeat_interleave(width)[:columns]


def refuse_bad(scales: torch.Tensor, zero: bool = False) -> None:
    """Refuse a scale that is NaN, infinite or negative, or zero if zeros are not allowed.

    Raises:
        BadBlock: the first such scale.
    """
    if not scales.numel():
        return
    least, most = (float(one) for one in scales.aminmax())  # both are NaN if a NaN occurs
    if (least > 0 or (zero and least == 0)) and most < inf:
        return
    good = ((scales >= 0) if zero else (scales > 0)) & scales.isfinite()
    row, column = good.logical_not().nonzero()[0].tolist()
    raise BadBlock(f"scale {float(scales[row, column])}", row, column)


def _blocks(values: torch.Tensor, group: GroupShape) -> Iterator[slice]:
    """The rows of each row of groups."""
    count = values.shape[0]
    return (slice(row, min(row + group[0], count)) for row in range(0, count, group[0]))


def _padded(peaks: torch.Tensor, width: int) -> torch.Tensor:
    """The largest of each group of columns; the last group may be partial."""
    import torch

    missing = -len(peaks) % width
    return torch.nn.functional.pad(peaks, (0, missing)).view(-1, width).amax(1)
