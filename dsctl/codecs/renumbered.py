"""Tables of experts by token with new expert numbers, for a model that keeps some of the experts.

The experts of each token in layers that do not choose by a score: deepseek-ai/DeepSeek-V4-Flash
inference/model.py (`Gate`, `tid2eid` [vocabulary, experts per token]).
"""

from __future__ import annotations

from bisect import bisect_left
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

    In a row, a removed expert is replaced by a kept one that the row does not have yet, so that the experts of a token
    stay different: by the one with the lowest new number or, if `near`, by the next one in the old numbering, after
    whose last expert the first one follows. The second rule spreads the tokens of removed experts over the kept ones.
    """

    experts: int = 0
    kept: tuple[int, ...] = ()
    near: bool = False

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

    @property
    def rule(self) -> str:
        """What happens to removed experts, in words; empty if there are none."""
        if len(self.kept) == self.experts:
            return ""
        return f"{'the next' if self.near else 'a'} kept expert replaces each removed one"

    def reads(self, shape: tuple[int, ...], stored: Mapping[str, TensorSpec]) -> None:
        return None

    def room(self, shape: tuple[int, ...], width: int, encoding: bool) -> int:
        # A mask of the kept experts in a row, as bool and as integers, and the row's numbers.
        return min(shape[0], ROWS) * (2 * len(self.kept) + 48 * shape[1])

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
            if self.near:
                out[first : first + ROWS] = self._nearest(numbers, new[numbers])
            else:
                out[first : first + ROWS] = _filled(new[numbers], len(self.kept))

    def _nearest(self, old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """The new numbers (int64 [rows, columns]) of old ones, with the next kept ones in place of -1."""
        import torch

        ascending = sorted(self.kept)
        order = {expert: number for number, expert in enumerate(self.kept)}
        follows, entered = torch.zeros(len(ascending), dtype=torch.int64), torch.zeros(self.experts, dtype=torch.int64)
        for place, expert in enumerate(ascending):
            follows[order[expert]] = order[ascending[(place + 1) % len(ascending)]]
        for expert in range(self.experts):
            entered[expert] = order[ascending[bisect_left(ascending, expert) % len(ascending)]]
        held = _held(new, len(ascending))
        for before, after in zip(old.unbind(1), new.unbind(1), strict=True):
            gone = (after < 0).nonzero().view(-1)
            chosen = entered[before[gone]]
            # A row has at most as many experts as there are kept ones, so each search ends.
            while (taken := held[gone, chosen]).any():
                chosen = chosen.where(~taken, follows[chosen])
            after[gone] = chosen
            held[gone, chosen] = True
        return new


def _held(numbers: torch.Tensor, kept: int) -> torch.Tensor:
    """Which of the kept experts each row has (bool [rows, kept + 1]); a removed expert counts as the last one."""
    import torch

    held = torch.zeros((len(numbers), kept + 1), dtype=torch.bool)
    return held.scatter_(1, numbers.where(numbers >= 0, kept), True)


def _filled(numbers: torch.Tensor, kept: int) -> torch.Tensor:
    """The same numbers (int64 [rows, columns]), with unused ones of the row in place of -1."""
    import torch

    held = _held(numbers, kept)
    # No row can get the extra one.
    held[:, kept] = True
    for column in numbers.unbind(1):
        gone = (column < 0).nonzero().view(-1)
        if len(gone):
            first = held[gone].to(torch.uint8).argmin(1)
            column[gone] = first
            held[gone, first] = True
    return numbers
