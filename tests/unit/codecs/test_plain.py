"""Values stored as they are: what is exact refuses to round."""

from __future__ import annotations

import pytest
import torch

from dsctl.codecs.codec import VALUES
from dsctl.codecs.plain import Plain, Rounded


def stored(*values: float) -> torch.Tensor:
    """These values as BF16, where that holds each of them."""
    wide = torch.tensor(values)
    out = torch.empty(wide.shape, dtype=torch.bfloat16)
    Plain("BF16", exact=True).encode(wide, {VALUES: out})
    return out


def test_values_that_the_shorter_dtype_holds_are_kept() -> None:
    values = (1.0, -0.0, 0.00390625, float("inf"), float("nan"))
    assert torch.equal(stored(*values[:-1]).float(), torch.tensor(values[:-1]))
    assert stored(*values)[-1].isnan()


@pytest.mark.parametrize("value", [1.001, 3.4e38, 1e-45])
def test_one_that_would_be_rounded_is_named_by_its_place(value: float) -> None:
    with pytest.raises(Rounded, match=r"BF16 cannot hold in block \[2, 0\]"):
        stored(1.0, 2.0, value)
