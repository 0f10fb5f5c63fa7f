"""Products of groups and scales are the plain formula, whichever of torch's operations is quickest for them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsctl.codecs import e4m3, grids

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(BITS[values.dtype])


def spread(scales: torch.Tensor, shape: torch.Size, group: tuple[int, int]) -> torch.Tensor:
    rows = scales.repeat_interleave(group[0], 0)[: shape[0]]
    return rows.repeat_interleave(group[1], 1)[:, : shape[1]]


@pytest.mark.parametrize("odd", [0, 2])
@pytest.mark.parametrize("dtype", list(BITS))
def test_several_rows_of_blocks_with_one_odd_scale(odd: int, dtype: torch.dtype) -> None:
    codes = torch.randint(0, 0x7F, (5 * 128 + 7, 300), dtype=torch.uint8)
    scales = torch.rand(6, 3) + 0.1
    scales[odd, 1] = 1e-44
    out = torch.empty(codes.shape, dtype=dtype)
    e4m3.decode(codes, scales, out)
    plain = codes.view(torch.float8_e4m3fn).float() * spread(scales, codes.shape, (128, 128))
    assert torch.equal(bits(out), bits(plain.to(dtype)))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 40),
    groups=st.integers(1, 5),
    group=st.tuples(st.sampled_from([1, 3, 16]), st.sampled_from([8, 16, 32, 128])),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    exponent=st.sampled_from([-130, -9, 0, 100, 125]),
    short=st.booleans(),
    seed=st.integers(0, 99),
)
def test_integers_times_scales(
    rows: int, groups: int, group: tuple[int, int], dtype: torch.dtype, exponent: int, short: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (rows, groups * group[1]), dtype=torch.int8, generator=generator)
    scales = torch.rand(-(-rows // group[0]), groups, generator=generator) * 2.0**exponent
    if short:
        scales = scales.bfloat16().float()
    out = torch.empty(codes.shape, dtype=dtype)
    grids.multiplied(codes, scales, group, out)
    plain = (codes.float() * spread(scales, codes.shape, group)).to(dtype)
    assert torch.equal(bits(out), bits(plain))
