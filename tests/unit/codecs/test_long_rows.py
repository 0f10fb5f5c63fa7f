"""Rows that are encoded as one long row give the same bits as each row by itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsctl.codecs import e4m3, long_rows

BLOCKS = ((1, 32), (1, 8), (2, 16), (1, 24))


def drawn(rows: int, columns: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator)
    return (values * torch.exp2(torch.randint(-30, 20, (rows, 1), generator=generator))).to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 5), st.integers(0, 99), st.sampled_from(BLOCKS), st.booleans(),
    st.sampled_from((torch.bfloat16, torch.float32)),
)  # fmt: skip
def test_the_bits_are_those_of_single_rows(
    rows: int, groups: int, seed: int, block: tuple[int, int], powers: bool, dtype: torch.dtype
) -> None:
    values = drawn(rows, groups * 16, seed, dtype)
    whole, single = (torch.empty(values.shape, dtype=torch.uint8) for _ in range(2))
    scales = long_rows.encode(values, whole, block, powers)
    assert torch.equal(scales, e4m3.encode(values, single, block, powers)) and torch.equal(whole, single)
    again, wanted = torch.empty_like(values), torch.empty_like(values)
    long_rows.decode(whole, scales, again, block)
    e4m3.decode(whole, scales, wanted, block)
    assert torch.equal(again, wanted)
    kept = torch.where(torch.rand(scales.shape, generator=torch.Generator().manual_seed(seed)) < 0.5, scales, 1.0)
    found = long_rows.encode_restoring(again, kept, whole, block, powers)
    theirs = e4m3.encode_restoring(again, kept, single, block, powers)
    assert all(torch.equal(one, other) for one, other in zip(found, theirs, strict=True))
    assert torch.equal(whole, single)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_has_its_place(value: float) -> None:
    values = torch.ones(3000, 256)
    values[2999, 70] = value
    for encode in (
        lambda: long_rows.encode(values, torch.empty(values.shape, dtype=torch.uint8), (1, 32), True),
        lambda: long_rows.encode_restoring(
            values, torch.ones(3000, 8), torch.empty(values.shape, dtype=torch.uint8), (1, 32), True
        ),
    ):
        with pytest.raises(e4m3.NotFinite, match=r"\[2999, 2\]"):
            encode()


def test_codes_that_are_no_numbers_and_tiny_scales_are_decoded_plainly() -> None:
    codes = torch.randint(0, 256, (700, 64), dtype=torch.uint8)
    scales = torch.full((700, 2), 2.0**-127)
    out, wanted = torch.empty(700, 64), torch.empty(700, 64)
    assert long_rows.decode(codes, scales, out, (1, 32)) == e4m3.decode(codes, scales, wanted, (1, 32))
    assert torch.equal(out.view(torch.int32), wanted.view(torch.int32))
