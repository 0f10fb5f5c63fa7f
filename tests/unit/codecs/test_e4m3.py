"""The E4M3 kernels give, bit for bit, what the plain formulas give."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsctl.codecs import e4m3
from dsctl.codecs.codec import SCALE
from dsctl.codecs.fp8_block import Fp8Block

BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}
DTYPES = list(BITS)
BLOCK = (128, 128)
CODES = torch.arange(256, dtype=torch.uint8)
SCALES = [
    1.0,
    0.37,
    2.0**-13,
    3.3e-4,
    1e-20,
    2.0**-100,
    1.1 * 2.0**-118,
    2.0**-126,
    2.0**-149,
    7e-45,
    1e-38,
    255.9,
    256.0,
    1e6,
    3e38,
]


def spread(scales: torch.Tensor, shape: torch.Size, block: tuple[int, int]) -> torch.Tensor:
    return scales.repeat_interleave(block[0], 0)[: shape[0]].repeat_interleave(block[1], 1)[:, : shape[1]]


def plain_decode(
    codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype, block: tuple[int, int] = BLOCK
) -> torch.Tensor:
    return (codes.view(torch.float8_e4m3fn).float() * spread(scales, codes.shape, block)).to(dtype)


def plain_scales(values: torch.Tensor, block: tuple[int, int], power_of_two: bool) -> torch.Tensor:
    """The recipe block by block in Python floats."""
    grid = [-(-n // b) for n, b in zip(values.shape, block, strict=True)]
    scales = torch.empty(grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            part = values[row * block[0] :, column * block[1] :][: block[0], : block[1]].float()
            scale = part.abs().amax().clamp(1e-4) / 448
            mantissa, exponent = math.frexp(float(scale))
            scales[row, column] = math.ldexp(1, exponent - (mantissa == 0.5)) if power_of_two else scale
    return scales


def plain_encode(values: torch.Tensor, scales: torch.Tensor, block: tuple[int, int] = BLOCK) -> torch.Tensor:
    quotients = (values.float() / spread(scales, values.shape, block)).clamp(-448, 448)
    return quotients.to(torch.float8_e4m3fn).view(torch.uint8)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(BITS.get(a.dtype, a.dtype)), b.view(BITS.get(b.dtype, b.dtype)))


def decoded(
    codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype, block: tuple[int, int] = BLOCK
) -> torch.Tensor:
    out = torch.empty(codes.shape, dtype=dtype)
    e4m3.decode(codes, scales, out, block)
    return out


def random_values(shape: tuple[int, int], dtype: torch.dtype, seed: int, spread_of_exponents: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randn(shape, generator=generator) * spread_of_exponents
    values = torch.randn(shape, generator=generator) * torch.exp2(exponents.clamp(-12, 12))
    return values.masked_fill(torch.rand(shape, generator=generator) < 0.05, -0.0).to(dtype)


def all_bf16() -> torch.Tensor:
    """Every finite BF16 value."""
    values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    return values[values.isfinite()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", SCALES)
def test_decode_is_the_formula_for_every_code(dtype: torch.dtype, scale: float) -> None:
    """With NaN codes and without, -0, subnormal codes and products, products past the largest float."""
    finite = CODES[(CODES & 0x7F) != 0x7F]
    for codes in (CODES, finite):
        matrix, scales = codes.repeat(3, 1), torch.tensor([[scale] * 2])
        assert same_bits(decoded(matrix, scales, dtype), plain_decode(matrix, scales, dtype))


@pytest.mark.parametrize("nan", [0x7F, 0xFF])
def test_one_nan_code_stays_nan(nan: int) -> None:
    codes = torch.zeros(256, 256, dtype=torch.uint8)
    codes[200, 7] = nan
    values = torch.empty(256, 256, dtype=torch.bfloat16)
    assert e4m3.decode(codes, torch.full((2, 2), 0.5), values)
    assert values.isnan().nonzero().tolist() == [[200, 7]]
    codes[200, 7] = 0x7E
    assert not e4m3.decode(codes, torch.full((2, 2), 0.5), values)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    block=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    dtype=st.sampled_from(DTYPES),
    exponent=st.sampled_from([-140, -30, -9, 0, 5, 100]),
    seed=st.integers(0, 99),
)
def test_decode_is_the_formula_for_ragged_shapes(
    rows: int, columns: int, block: tuple[int, int], dtype: torch.dtype, exponent: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, generator=generator)
    codes[(codes & 0x7F) == 0x7F] = 0x80
    scales = torch.rand(-(-rows // block[0]), -(-columns // block[1]), generator=generator) * 2.0**exponent
    assert same_bits(decoded(codes, scales, dtype, block), plain_decode(codes, scales, dtype, block))


def test_decode_into_and_from_part_of_a_matrix() -> None:
    codes, scales = torch.randint(0, 0x7F, (256, 512), dtype=torch.uint8), torch.rand(2, 2)
    out = torch.zeros(256, 512, dtype=torch.bfloat16)
    e4m3.decode(codes[:, 128:384], scales, out[:, 256:])
    assert same_bits(out[:, 256:].contiguous(), plain_decode(codes[:, 128:384].contiguous(), scales, torch.bfloat16))
    assert not out[:, :256].any()


@settings(deadline=None, max_examples=80)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    block=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    dtype=st.sampled_from(DTYPES),
    power_of_two=st.booleans(),
    exponents=st.sampled_from([0.0, 3.0, 6.0]),
    seed=st.integers(0, 99),
)
def test_encode_is_the_recipe(
    rows: int, columns: int, block: tuple[int, int], dtype: torch.dtype, power_of_two: bool, exponents: float, seed: int
) -> None:
    values = random_values((rows, columns), dtype, seed, exponents)
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    scales = e4m3.encode(values, codes, block, power_of_two)
    assert torch.equal(scales, plain_scales(values, block, power_of_two))
    assert torch.equal(codes, plain_encode(values, scales, block))


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("chunk", [1, 1 << 12, 1 << 30])
def test_encode_in_chunks_is_the_recipe(power_of_two: bool, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e4m3, "CHUNK", chunk)
    values = random_values((300, 400), torch.bfloat16, 1, 4.0)
    codes = torch.empty(300, 400, dtype=torch.uint8)
    scales = e4m3.encode(values, codes, power_of_two=power_of_two)
    assert torch.equal(scales, plain_scales(values, BLOCK, power_of_two))
    assert torch.equal(codes, plain_encode(values, scales))


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -0.02, 1e-5, 1e-38, 1e-44, 448.0, 3.3e38])
def test_encode_of_a_constant(value: float, power_of_two: bool) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        values = torch.full((130, 129), value, dtype=dtype)
        codes = torch.empty(values.shape, dtype=torch.uint8)
        scales = e4m3.encode(values, codes, power_of_two=power_of_two)
        assert torch.equal(scales, plain_scales(values, BLOCK, power_of_two))
        assert torch.equal(codes, plain_encode(values, scales))


SOME_SCALES = [1.0, 2.0**-13, 2.0**-20, 0.02 / 448, 1e-4 / 448, 1.0 / 7, 3.1e-3, 1e-30, 2.0**-110, 1e-44, 100.0, 1e30]


@pytest.mark.parametrize("scale", SOME_SCALES)
def test_every_bf16_value_rounds_as_torch_and_ml_dtypes_round(scale: float) -> None:
    """Saturated at 448, subnormal, tied."""
    values = all_bf16().view(255, -1)
    scales = torch.full((2, 2), scale)
    codes = torch.empty(values.shape, dtype=torch.uint8)
    e4m3.encode_kept(values, scales, codes)
    assert torch.equal(codes, plain_encode(values, scales))
    with np.errstate(over="ignore"):
        quotients = np.clip(values.float().numpy() / np.float32(scale), -448, 448)
    assert np.array_equal(codes.numpy(), quotients.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))


def test_every_tie_and_its_neighbours_round_to_even() -> None:
    """Between any two codes, one float32 step below and above; with a scale whose quotients are not exact, too."""
    grid = CODES[:0x7F].view(torch.float8_e4m3fn).float()
    ties = (grid[1:] + grid[:-1]) / 2
    around = [ties, torch.nextafter(ties, torch.tensor(0.0)), torch.nextafter(ties, torch.tensor(1e9)), grid[1:]]
    quotients = torch.cat(around)
    for scale in (1.0, 2.0**-9, 1 / 3, 0.7, 1.0 + 2.0**-23):
        values = torch.stack([quotients * scale, -quotients * scale])
        codes, scales = torch.empty(values.shape, dtype=torch.uint8), torch.full((1, 4), scale)
        e4m3.encode_kept(values, scales, codes)
        assert torch.equal(codes, plain_encode(values, scales))


@pytest.mark.parametrize("amax", [1.0, 0.0234375, 1.9921875])
def test_values_far_below_their_block_s_largest_round_once(amax: float) -> None:
    """amax * 2^-16 is near 7 / 1024, a tie of subnormals that its quotient misses by one float32 step."""
    values = (amax * torch.exp2(-torch.arange(0.0, 128.0))).bfloat16().repeat(2, 1)
    codes = torch.empty(values.shape, dtype=torch.uint8)
    scales = e4m3.encode(values, codes)
    assert torch.equal(codes, plain_encode(values, scales))


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    dtype=st.sampled_from(DTYPES),
    power_of_two=st.booleans(),
    seed=st.integers(0, 99),
)
def test_decoded_codes_are_restored(shape: tuple[int, int], dtype: torch.dtype, power_of_two: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    codes[(codes & 0x7F) == 0x7F] = 0x80
    grid = -(-shape[0] // 128), -(-shape[1] // 128)
    scales = torch.rand(grid, generator=generator) + 0.1
    if power_of_two:
        scales = torch.exp2(torch.floor(torch.log2(scales)))
    values, again = decoded(codes, scales, dtype), torch.empty_like(codes)
    assert e4m3.encode_kept(values, scales, again).all()
    assert torch.equal(again, codes)
    found, kept = e4m3.encode_restoring(values, scales, again)
    assert kept.all()
    assert torch.equal(found, scales)
    assert torch.equal(again, codes)


@pytest.mark.parametrize("power_of_two", [False, True])
def test_a_changed_block_is_detected_and_encoded_anew(power_of_two: bool) -> None:
    original = random_values((300, 400), torch.bfloat16, 2, 2.0)
    codes = torch.empty(original.shape, dtype=torch.uint8)
    scales = e4m3.encode(original, codes, power_of_two=False)
    values = decoded(codes, scales, torch.bfloat16)
    for row, column in ((299, 399), (5, 130)):
        largest = values[row // 128 * 128 :, column // 128 * 128 :][:128, :128].max()
        values[row, column] = largest
        values.view(torch.int16)[row, column] += 1  # a sixteenth of a step of E4M3 or less
    expected = torch.ones(3, 4, dtype=torch.bool)
    expected[2, 3] = expected[0, 1] = False
    again = torch.empty_like(codes)
    assert torch.equal(e4m3.encode_kept(values, scales, again), expected)
    assert torch.equal(again, plain_encode(values, scales))
    found, kept = e4m3.encode_restoring(values, scales, again, power_of_two=power_of_two)
    assert torch.equal(kept, expected)
    assert torch.equal(found, torch.where(expected, scales, plain_scales(values, BLOCK, power_of_two)))
    assert torch.equal(again, plain_encode(values, found))


def test_a_lost_sign_of_zero_is_a_change() -> None:
    values, codes = torch.zeros(128, 128, dtype=torch.bfloat16), torch.empty(128, 128, dtype=torch.uint8)
    values[3, 3] = -0.0
    assert e4m3.encode_kept(values, torch.ones(1, 1), codes).all()
    assert codes.nonzero().tolist() == [[3, 3]]
    assert int(codes[3, 3]) == 0x80


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_that_are_not_finite_are_refused_by_block(value: float, dtype: torch.dtype) -> None:
    values, codes = torch.ones(300, 400, dtype=dtype), torch.empty(300, 400, dtype=torch.uint8)
    values[290, 399] = value
    scales = torch.ones(3, 4)
    for encode in (
        lambda: e4m3.encode(values, codes),
        lambda: e4m3.encode_kept(values, scales, codes),
        lambda: e4m3.encode_restoring(values, scales, codes),
    ):
        with pytest.raises(e4m3.NotFinite, match=r"\[2, 3\]") as caught:
            encode()
        assert (caught.value.row, caught.value.column) == (2, 3)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_nothing_is_done_for_nothing(shape: tuple[int, int]) -> None:
    values, codes = torch.empty(shape, dtype=torch.bfloat16), torch.empty(shape, dtype=torch.uint8)
    scales = e4m3.encode(values, codes)
    e4m3.decode(codes, scales, values)
    assert scales.shape == (-(-shape[0] // 128), -(-shape[1] // 128))


def test_is_power_of_two() -> None:
    scales = torch.tensor(
        [[1.0, 0.5, 3.0, 2.0**-149, 3 * 2.0**-149, 2.0**127, 0.0, -2.0, math.inf, math.nan, 1 + 2.0**-23]]
    )
    assert e4m3.is_power_of_two(scales).tolist() == [[True, True, False, True, False, True] + [False] * 5]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -0.0, -1.0])
def test_bad_scales_are_named(value: float) -> None:
    scales = torch.rand(3, 4) + 0.1
    assert e4m3.bad_scales(scales) is None
    scales[1, 2] = value
    scales[2, 0] = math.nan
    row, column, found = e4m3.bad_scales(scales) or (0, 0, 0.0)
    assert (row, column) == (1, 2)
    assert found == value or (math.isnan(found) and math.isnan(value))


@pytest.mark.parametrize(("mark", "stays"), [("kept:", True), ("others:", False)])
def test_only_scales_of_the_same_format_stay_unrounded(mark: str, stays: bool) -> None:
    """V3.1 declares ue8m0 and has scales that are no powers of two; of another format's such scales are made again."""
    codec = Fp8Block((128, 128), "ue8m0")
    values = (torch.randn(128, 256) / 50).to(torch.bfloat16)
    free = Fp8Block((128, 128), "float32")
    stored = {"codes": torch.empty(128, 256, dtype=torch.float8_e4m3fn), SCALE: torch.empty(1, 2)}
    free.encode(values, stored)
    exact = torch.empty(128, 256, dtype=torch.bfloat16)
    free.decode(stored, exact)
    again = {suffix: torch.empty_like(tensor) for suffix, tensor in stored.items()}
    codec.encode(exact, again | {mark + SCALE: stored[SCALE]})
    assert torch.equal(again[SCALE], stored[SCALE]) == stays
    assert stays or bool(e4m3.is_power_of_two(again[SCALE]).all())
