"""One form becomes another of the same values: against plain formulas, and refused where it does not hold them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsctl.codecs import CODECS, in_dialect
from dsctl.codecs.codec import CODES, GLOBAL_SCALE, INPUT_SCALE, SCALE, Codec, Inexact
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.group_scales import bounds
from dsctl.codecs.recasts import recast

DTYPES = {
    "F8_E4M3": torch.float8_e4m3fn, "F8_E8M0": torch.float8_e8m0fnu, "F32": torch.float32, "U8": torch.uint8,
    "BF16": torch.bfloat16, "I8": torch.int8,
}  # fmt: skip
FP4 = in_dialect(CODECS["mxfp4"], "v4")
FP8 = in_dialect(CODECS["fp8-block-e8m0"], "v4")
FP8_F32 = Fp8Block(scale_fmt="ue8m0")

Stored = dict[str, torch.Tensor]


def room(codec: Codec, shape: tuple[int, int]) -> Stored:
    return {part: torch.empty(spec.shape, dtype=DTYPES[spec.dtype]) for part, spec in codec.specs(shape).items()}


def four_bits(seed: int, low: int, high: int, shape: tuple[int, int] = (256, 256)) -> Stored:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (shape[0], shape[1] // 2), generator=generator, dtype=torch.uint8)
    scales = torch.randint(low, high + 1, (shape[0], shape[1] // 32), generator=generator, dtype=torch.uint8)
    return {CODES: codes.view(torch.int8), SCALE: scales.view(torch.float8_e8m0fnu)}


def values_of(codec: Codec, stored: Stored) -> torch.Tensor:
    out = torch.empty(256, 256)
    codec.decode(stored, out)
    return out


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.int32)


@pytest.mark.parametrize("target", [FP8, replace(FP8, scale_dtype="F32"), replace(FP8, block=(64, 128))])
def test_four_bits_become_eight_under_the_largest_scale(target: Fp8Block) -> None:
    held, out = four_bits(1, 106, 120), room(target, (256, 256))
    way = recast(FP4, target)
    assert way is not None and way.write(held, out) == {"blocks_recast": out[SCALE].numel()}
    rows, columns = target.block
    scales = held[SCALE].float().view(256 // rows, rows, 256 // columns, columns // 32)
    assert torch.equal(out[SCALE].float(), scales.amax((1, 3)) / 64)
    assert torch.equal(bits(values_of(target, out)), bits(values_of(FP4, held)))


@pytest.mark.parametrize("offset", [0, 3, 8])
def test_bounds_of_scales_ignore_groups_of_zeros_wherever_the_codes_begin(offset: int) -> None:
    held = four_bits(3, 110, 120, (4, 128))
    codes, scales = held[CODES].view(torch.uint8), held[SCALE].view(torch.uint8)
    codes[1, :16], codes[2, 16:32], scales[1, 0], scales[2, 1] = 0x80, 0x08, 200, 2
    moved = torch.empty(offset + codes.numel(), dtype=torch.uint8)[offset:].view(codes.shape).copy_(codes)
    assert bounds(scales, moved) == (int(scales[scales > 2].amin()), int(scales[scales < 200].amax()))
    assert bounds(scales, torch.zeros_like(codes)) == (255, 0)
    assert bounds(scales) == (2, 200)


def test_zeros_keep_their_sign() -> None:
    held, out = four_bits(2, 118, 120), room(FP8, (256, 256))
    held[CODES].view(torch.uint8)[:] = 0x80
    way = recast(FP4, FP8)
    assert way is not None
    way.write(held, out)
    assert out[CODES].view(torch.uint8)[0, :4].tolist() == [0, 0x80, 0, 0x80]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 30), row=st.integers(0, 255), group=st.integers(0, 7), deep=st.integers(15, 60))
def test_a_scale_too_far_below_is_refused_by_its_block_or_counted(seed: int, row: int, group: int, deep: int) -> None:
    held, out = four_bits(seed, 118, 118), room(FP8, (256, 256))
    held[SCALE].view(torch.uint8)[row, group] = 118 - deep
    held[CODES].view(torch.uint8)[row, 16 * group] = 0x01
    way, lossy = recast(FP4, FP8), recast(FP4, FP8, lossy=True)
    assert way is not None and lossy is not None
    with pytest.raises(Inexact, match=f"scales differ by 2\\^{deep}") as refused:
        way.write(held, out)
    assert (refused.value.row, refused.value.column) == (row // 128, group // 4)
    assert lossy.write(held, out) == {"blocks_recast": 4, "blocks_inexact": 1}
    expected = (values_of(FP4, held) / 2.0 ** (118 - 127 - 6)).to(torch.float8_e4m3fn)
    assert torch.equal(out[CODES].view(torch.uint8), expected.view(torch.uint8))


def test_what_is_only_zeros_may_have_any_scale() -> None:
    held, out = four_bits(3, 118, 118), room(FP8, (256, 256))
    held[SCALE].view(torch.uint8)[200, 3] = 1
    held[CODES].view(torch.uint8)[200, 48:64] = 0x80
    way = recast(FP4, FP8)
    assert way is not None and "blocks_inexact" not in way.write(held, out)


@pytest.mark.parametrize("low", [0, 2, 5])
def test_the_smallest_scales_are_exact_too(low: int) -> None:
    held, out = four_bits(4, low, low + 3), room(FP8, (256, 256))
    way = recast(FP4, FP8)
    assert way is not None
    way.write(held, out)
    assert torch.equal(bits(values_of(FP8, out)), bits(values_of(FP4, held)))


@pytest.mark.parametrize("source", [FP8, FP8_F32, replace(FP8_F32, scale_dtype="BF16")])
@pytest.mark.parametrize("target", [CODECS["mxfp8"], FP8, FP8_F32, Fp8Block(), CODECS["fp8-block-ct"]])
@pytest.mark.parametrize("shape", [(256, 256), (200, 352)])
def test_eight_bits_keep_their_codes_under_the_same_powers(
    source: Fp8Block, target: Codec, shape: tuple[int, int]
) -> None:
    if isinstance(target, Fp8Block) and target.scale_fmt is None:
        target = replace(target, scale_dtype="F32")
    held, out = room(source, shape), room(target, shape)
    generator = torch.Generator().manual_seed(5)
    held[CODES].view(torch.uint8).copy_(torch.randint(0, 127, shape, generator=generator, dtype=torch.uint8))
    held[SCALE].copy_(torch.exp2(torch.randint(-20, 5, held[SCALE].shape, generator=generator).float()))
    way = recast(source, target)
    if way is None:
        assert source.form == target.form or source.scale_dtype == target.specs(shape)[SCALE].dtype
        return
    assert way.write(held, out) == {"blocks_recast": held[SCALE].numel()}
    assert torch.equal(out[CODES].view(torch.uint8), held[CODES].view(torch.uint8))
    before, after = torch.empty(shape), torch.empty(shape)
    source.decode(held, before)
    target.decode(out, after)
    assert torch.equal(bits(before), bits(after))


def test_scales_that_are_no_powers_in_spite_of_their_config_are_encoded_again() -> None:
    held, out = room(FP8_F32, (256, 256)), room(CODECS["mxfp8"], (256, 256))
    held[CODES].view(torch.uint8).fill_(0x38)
    held[SCALE].fill_(0.3)
    way = recast(FP8_F32, CODECS["mxfp8"])
    assert way is not None and way.write(held, out) == {"blocks_requantized": 4}
    values = torch.empty(256, 256)
    CODECS["mxfp8"].decode(out, values)
    assert torch.allclose(values, torch.full((), 0.3), rtol=2**-4)


@pytest.mark.parametrize("name", ["nvfp4", "nvfp4-modelopt"])
def test_groups_of_32_become_two_of_16_under_one_global_scale(name: str) -> None:
    target = CODECS[name]
    held, out = four_bits(6, 103, 120), room(target, (256, 256))
    way = recast(FP4, target)
    assert way is not None and way.write(held, out, 120) == {"blocks_recast": 2048}
    assert torch.equal(out[CODES], held[CODES].view(torch.uint8))
    factor = float(out[GLOBAL_SCALE])
    assert (factor if name == "nvfp4-modelopt" else 1 / factor) == 2.0 ** (120 - 8 - 127)
    assert INPUT_SCALE not in out or float(out[INPUT_SCALE]) == 1.0
    assert torch.equal(bits(values_of(target, out)), bits(values_of(FP4, held)))


def test_a_group_that_nvfp4_cannot_hold_is_refused_or_counted() -> None:
    target = CODECS["nvfp4"]
    held, out = four_bits(7, 120, 120), room(target, (256, 256))
    held[SCALE].view(torch.uint8)[9, 2] = 102
    way, lossy = recast(FP4, target), recast(FP4, target, lossy=True)
    assert way is not None and lossy is not None
    with pytest.raises(Inexact) as refused:
        way.write(held, out, 120)
    assert (refused.value.row, refused.value.column) == (9, 2)
    assert lossy.write(held, out, 120)["blocks_inexact"] == 1
    held[CODES].view(torch.uint8)[9, 32:48] = 0
    assert "blocks_inexact" not in way.write(held, out, 120)
    assert bounds(held[SCALE]) == (102, 120) and bounds(held[SCALE], held[CODES]) == (120, 120)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (CODECS["bf16"], FP8), (FP8, CODECS["bf16"]), (Fp8Block(), FP8_F32), (Fp8Block(), CODECS["mxfp8"]),
        (FP4, Fp8Block()), (FP4, CODECS["mxfp8"]), (FP4, CODECS["int4-group"]), (CODECS["nvfp4"], FP8),
        (CODECS["mxfp8"], FP8), (FP8_F32, FP8_F32), (FP8, CODECS["fp8-channel"]), (FP8, CODECS["nvfp4"]),
    ],
)  # fmt: skip
def test_there_is_no_other_way(source: Codec, target: Codec) -> None:
    assert recast(source, target) is None
