"""A change of low rank to a matrix, and where its two factors are stored. Data.

PEFT's merge (huggingface/peft 0.21.2, tuners/lora/layer.py `get_delta_weight`, tuners/lora/variants.py
`DoraLinearVariant.merge_unsafe`): D = (B @ A) * scaling, and W + D; with DoRA m / |W + D| * (W + D), |.| by row.
"""

from __future__ import annotations

import msgspec

from dsctl.core.header import TensorRef

# Before the names of the adapter's files in a joined store.
ADAPTER = "adapter://"
# A product is always computed for whole runs of this many rows, so that its bits do not depend on the size of a band.
ROWS = 128


class Factor(msgspec.Struct, frozen=True, gc=False):
    """One factor: `rank` vectors, as long as the matrix has rows or columns, within a stored matrix.

    Element i of vector k is `[begin + i, first + step * k]` of the stored matrix if `along` is 0, else
    `[first + step * k, begin + i]`.
    """

    ref: TensorRef
    rank: int
    along: int
    begin: int = 0
    first: int = 0
    step: int = 1


class LowRank(msgspec.Struct, frozen=True, gc=False):
    """The change left @ right * scaling of a matrix; with a `magnitude` (one number for each row, from `row` on), each
    row of the sum gets this length.
    """

    left: Factor
    right: Factor
    scaling: float
    magnitude: TensorRef | None = None
    row: int = 0

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """The stored tensors that it needs."""
        return self.left.ref, self.right.ref, *((self.magnitude,) if self.magnitude else ())


class Change(msgspec.Struct, frozen=True, gc=False):
    """The change of one parameter: a tensor that replaces it, or a change of low rank, or both in this order."""

    whole: TensorRef | None = None
    low_rank: LowRank | None = None
