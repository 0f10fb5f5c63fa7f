"""Find scales with the least squared error, group by group, without data; ties go to the plain rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Restore = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]

# Candidates beside the plain rule: scales for these shares of the group's largest magnitude.
SHARES = tuple(n / 32 for n in range(20, 36) if n != 32)
# Columns searched at a time: every try makes temporary values, and the allocator keeps freed memory.
COLUMNS = 1 << 17


def best(values: torch.Tensor, tried: Sequence[torch.Tensor], restore: Restore) -> torch.Tensor:
    """Choose, for each group of columns, the scale from several grids that restores its values with the least error.

    `restore(values, scales, out)` fills `out`, float32 of the values' shape, with the values after storing them with
    these scales.
    """
    import torch

    columns, groups = values.shape[-1], tried[0].shape[-1]
    if columns <= COLUMNS:
        return _best(values, tried, restore)
    many = COLUMNS * groups // columns
    return torch.cat(
        [
            _best(
                values[..., first * columns // groups : (first + many) * columns // groups].contiguous(),
                [scales[..., first : first + many].contiguous() for scales in tried],
                restore,
            )
            for first in range(0, groups, many)
        ],
        -1,
    )


def _best(values: torch.Tensor, tried: Sequence[torch.Tensor], restore: Restore) -> torch.Tensor:
    import torch

    chosen, least = tried[0].clone(), None
    restored = torch.empty_like(values, dtype=torch.float32)
    for scales in tried:
        restore(values, scales, restored)
        error = restored.sub_(values).square_().view(*scales.shape, -1).sum(-1)
        if least is None:
            least = error
            continue
        better = error < least
        least = torch.where(better, error, least)
        chosen = torch.where(better, scales, chosen)
    return chosen
