"""Tables of experts by token with new expert numbers, for a model that keeps some of the experts.

The experts of each token in layers that do not choose by a score: deepseek-ai/DeepSeek-V4-Flash
inference/model.py (`Gate`, `tid2eid` [vocabulary, experts per token]).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dsctl.codecs.codec import VALUES, BadBlock, Form
from dsctl.codecs.plain import Plain
from dsctl.core.header import TensorSpec

if TYPE_CHECKING:
    import torch

# Rows processed at a time.
ROWS = 4096
NUMBERS = "numbers of experts"


@dataclass(frozen=True, slots=True)
class Renumbered(Plain):
    """Whole numbers below `experts`; the experts `kept` get new numbers, in order.

    In a row, a removed expert is replaced by the first kept one that the row does not have yet, so that the experts of
    a token stay different.
    """

    experts: int = 0
    kept: tuple[int, ...] = ()

    @property
    def plain(self) -> None:
        return None

    @property
    def form(self) -> Form:
        return Form(NUMBERS)

    @property
    def written(self) -> Plain:
        """The codec of the new numbers."""
        return Plain(self.dtype)

    def reads(self, shape: tuple[int, ...], stored: Mapping[str, TensorSpec]) -> None:
        return None

    def room(self, shape: tuple[int, ...], width: int, encoding: bool) -> int:
        # A mask of the kept experts in a row, as bool and as integers, and the row's numbers.
        return min(shape[0], ROWS) * (2 * len(self.kept) + 32 * shape[1])

    def decode(self, stored: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """The new numbers, in a float dtype that represents all of them exactly.

        Raises:
            BadBlock: a number is not an expert's.
        """
        import torch

        new = torch.full((self.experts,), -1, dtype=torch.int64)
        new[list(self.kept)] = torch.arange(len(self.kept))
        for first in range(0, len(out), ROWS):
            numbers = stored[VALUES][first : first + ROWS].to(torch.int64)
            wrong = ((numbers < 0) | (numbers >= self.experts)).nonzero()
            if len(wrong):
                row, column = wrong[0].tolist()
                raise BadBlock(f"expert {int(numbers[row, column])} of {self.experts}", first + row, column)
            out[first : first + ROWS] = _filled(new[numbers], len(self.kept))


def _filled(numbers: torch.Tensor, kept: int) -> torch.Tensor:
    """The same numbers (int64 [rows, columns]), with unused ones of the row in place of -1."""
    import torch

    held = torch.zeros((len(numbers), kept + 1), dtype=torch.bool)
    # A removed expert counts as an extra one that no row can get.
    held.scatter_(1, numbers.where(numbers >= 0, kept), True)
    held[:, kept] = True
    for column in numbers.unbind(1):
        gone = (column < 0).nonzero().view(-1)
        if len(gone):
            first = held[gone].to(torch.uint8).argmin(1)
            column[gone] = first
            held[gone, first] = True
    return numbers
