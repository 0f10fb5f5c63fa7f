"""E2M1 in groups of 32 as V4 stores it: DeepSeek's rule, and which scales do not follow from the values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsctl.codecs import CODECS, in_dialect
from dsctl.codecs.codec import CODES, KEPT, SCALE
from dsctl.codecs.native_fp4 import GROUP, NONE, exponents, odd

V4 = in_dialect(CODECS["mxfp4"], "v4")
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])

Stored = dict[str, torch.Tensor]


def group(codes: list[int], scale: int) -> Stored:
    """One group of 32 of these codes, zeros behind them."""
    nibbles = torch.tensor([*codes, *[0] * (GROUP - len(codes))], dtype=torch.uint8)
    packed = nibbles[0::2] | nibbles[1::2] << 4
    return {CODES: packed.view(1, -1), SCALE: torch.tensor([[scale]], dtype=torch.uint8)}


def values_of(stored: Stored, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The plain formula: the low half of a byte is the even column."""
    pairs = stored[CODES].view(torch.uint8)
    values = E2M1[torch.stack((pairs & 15, pairs >> 4), -1).flatten(1).long()].double()
    powers = (stored[SCALE].view(torch.uint8).double() - 127).exp2().repeat_interleave(GROUP, 1)
    return (values * powers).to(dtype)


def encoded(values: torch.Tensor, kept: torch.Tensor | None = None) -> tuple[Stored, dict[str, int]]:
    rows, columns = values.shape
    stored = {
        CODES: torch.empty(rows, columns // 2, dtype=torch.int8),
        SCALE: torch.empty(rows, columns // GROUP, dtype=torch.float8_e8m0fnu),
    }
    counts = V4.encode(values, stored | ({} if kept is None else {KEPT + SCALE: kept}))
    return stored, counts


def same(one: Stored, other: Stored) -> bool:
    return all(torch.equal(one[part].view(torch.uint8), other[part].view(torch.uint8)) for part in (CODES, SCALE))


@pytest.mark.parametrize(
    ("peak", "scale"),
    [(6.0, 127), (6.03125, 128), (5.0, 127), (3.0, 126), (3.03125, 127), (1.5, 125), (0.0, 1), (2.0**-130, 1)],
)
def test_a_scale_is_the_power_of_two_at_or_above_a_sixth_of_the_peak(peak: float, scale: int) -> None:
    assert exponents(torch.tensor([peak])).tolist() == [scale]


@pytest.mark.parametrize(
    ("codes", "follows"),
    [
        ([7], False), ([7, 1], True), ([7, 3], True), ([7, 11], True), ([6], True), ([6, 1], True), ([5], True),
        ([5, 1], True), ([4], False), ([3], False), ([1], False), ([13, 9], True), ([15, 2], False),
    ],
)  # fmt: skip
def test_which_scales_follow_from_the_values(codes: list[int], follows: bool) -> None:
    stored = group(codes, 120)
    assert bool(odd(stored[CODES], stored[SCALE]).item()) != follows
    again, _ = encoded(values_of(stored))
    assert same(again, stored) == follows


@pytest.mark.parametrize(("codes", "scale", "follows"), [([], 1, True), ([8], 1, True), ([], 120, False)])
def test_zeros_have_the_least_scale_and_keep_their_sign(codes: list[int], scale: int, follows: bool) -> None:
    stored = group(codes, scale)
    assert bool(odd(stored[CODES], stored[SCALE]).item()) != follows
    again, _ = encoded(values_of(stored))
    assert torch.equal(again[CODES].view(torch.uint8), stored[CODES])


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 30), mask=st.sampled_from([0xFF, 0x77, 0x33, 0x99, 0x11]), wide=st.booleans())
def test_what_is_not_odd_comes_back_and_what_is_odd_comes_back_with_its_scale(seed: int, mask: int, wide: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (4, 64), generator=generator, dtype=torch.uint8) & mask
    scales = torch.randint(0, 250, (4, 4), generator=generator, dtype=torch.uint8)
    stored = {CODES: codes, SCALE: scales}
    values = values_of(stored, torch.float32 if wide else torch.bfloat16)
    found = odd(codes, scales)
    again, _ = encoded(values)
    changed = again[SCALE].view(torch.uint8) != scales
    assert not bool((changed & ~found).any())
    kept = torch.where(found, scales, torch.tensor(NONE, dtype=torch.uint8))
    back, counts = encoded(values, kept)
    assert same(back, stored)
    assert counts.get("groups_restored", 0) == int(found.sum())
    assert sum(counts.values()) == scales.numel()


def test_a_kept_scale_that_does_not_restore_a_changed_value_gives_way() -> None:
    stored = group([4, 2], 120)
    values = values_of(stored)
    values[0, 5] = 0.37 * 2.0**-7
    again, counts = encoded(values, stored[SCALE])
    assert counts == {"groups_computed": 1}
    assert torch.equal(again[SCALE].view(torch.uint8), exponents(values.abs().amax().view(1, 1)))


def test_values_between_codes_are_rounded_to_the_nearest_even() -> None:
    values = torch.zeros(1, GROUP)
    values[0, :8] = torch.tensor([6.0, 0.25, 0.75, 1.25, 2.5, 3.5, 5.0, -0.2])
    again, _ = encoded(values)
    assert values_of(again)[0, :8].tolist() == [6.0, 0.0, 1.0, 1.0, 2.0, 4.0, 4.0, -0.0]
    assert again[CODES].view(torch.uint8)[0, 3] >> 4 == 8
