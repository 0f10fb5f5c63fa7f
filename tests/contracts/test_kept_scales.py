"""What every quantized codec promises of the scales of an earlier encoding: the codes come back, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsctl.codecs import CODECS, in_dialect
from dsctl.codecs.codec import CHOSEN, CODES, GLOBAL_SCALE, INPUT_SCALE, KEPT, PEAK, SCALE, BadBlock, Codec
from dsctl.codecs.restoring import ZERO
from dsctl.work.buffers import DTYPES
from dsctl.work.devices import Device

Stored = dict[str, torch.Tensor]
QUANTIZED = [name for name, codec in CODECS.items() if codec.quantized]
# The exponents of scales, as far down as no product of any code underflows in bfloat16.
LEAST = {"e4m3": -115, "e2m1": -127}


def scales_of(codec: Codec, shape: tuple[int, int], random: torch.Generator) -> Stored:
    """Scales that no recipe chooses: odd ones, very small ones, some equal."""
    made: Stored = {}
    for part, spec in codec.specs(shape).items():
        if part not in CHOSEN:
            continue
        size, dtype = spec.shape, DTYPES[spec.dtype]
        if part != SCALE:
            made[part] = (torch.rand(size, generator=random) + 0.3) * (1 if codec.name == "nvfp4-modelopt" else 900)
        elif codec.form.scale == "E4M3":
            made[part] = torch.randint(1, 0x7F, size, generator=random, dtype=torch.uint8).view(dtype)
        elif codec.form.powers:
            least = 127 + LEAST[codec.form.codes]
            made[part] = torch.randint(least, 237, size, generator=random, dtype=torch.uint8).view(dtype)
        else:
            exponents = torch.randint(LEAST["e4m3"], 2, size, generator=random)
            made[part] = ((torch.rand(size, generator=random) + 1) * exponents.double().exp2()).to(dtype)
            if codec.form.scale == "BF16" and "int" in codec.form.codes:
                made[part].view(-1)[::3] = 2.0**-133
    return made


def codes_of(codec: Codec, shape: tuple[int, int], random: torch.Generator, every: bool) -> torch.Tensor:
    """All codes, or only zeros of both signs and the largest."""
    spec = codec.specs(shape)[CODES]
    codes = torch.randint(0, 256, (spec.nbytes,), generator=random, dtype=torch.uint8)
    if not every:
        few = torch.tensor([0, 0x80, 0x08, 0x88, 0x7E, 0xFE, 0x77, 0xFF, 0xF0], dtype=torch.uint8)
        codes = few[(codes % len(few)).long()]
    if spec.dtype == "F8_E4M3":
        codes[(codes & 0x7F) == 0x7F] -= 1
    return codes.view(DTYPES[spec.dtype]).view(spec.shape)


def values_of(codec: Codec, stored: Stored, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(shape, dtype=dtype)
    codec.decode(stored, out)
    return out


def encoded(codec: Codec, values: torch.Tensor, kept: Stored) -> tuple[Stored, dict[str, int]]:
    shape = tuple(values.shape)
    made = {
        part: torch.empty(spec.shape, dtype=DTYPES[spec.dtype])
        for part, spec in codec.specs(shape).items()
        if part not in codec.stated(shape)
    }
    before = values.clone()
    counts = codec.encode(values, made | {KEPT + part: one for part, one in kept.items() if part in CHOSEN})
    assert torch.equal(values.view(torch.uint8), before.view(torch.uint8)), "the values were changed"
    return made, counts


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))


def groups(counts: dict[str, int], how: str) -> int:
    return counts.get(f"groups_{how}", 0) + counts.get(f"blocks_{how}", 0)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1 << 30), rows=st.sampled_from([1, 5, 128, 300]), every=st.booleans(),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)  # fmt: skip
@pytest.mark.parametrize("name", QUANTIZED)
def test_codes_and_scales_come_back(name: str, seed: int, rows: int, every: bool, dtype: torch.dtype) -> None:
    codec, shape, random = CODECS[name], (rows, 384), torch.Generator().manual_seed(seed)
    assert codec.keeps_scales
    stored = scales_of(codec, shape, random) | {CODES: codes_of(codec, shape, random, every)}
    again, counts = encoded(codec, values_of(codec, stored, shape, dtype), stored)
    assert {part for part, one in stored.items() if not same(one, again[part])} == set()
    assert groups(counts, "restored") == stored[SCALE].numel() and not groups(counts, "computed")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", QUANTIZED)
def test_a_changed_value_changes_its_group_alone(name: str, dtype: torch.dtype) -> None:
    codec, shape, random = CODECS[name], (300, 384), torch.Generator().manual_seed(1)
    stored = scales_of(codec, shape, random) | {CODES: codes_of(codec, shape, random, True)}
    if SCALE in stored and not codec.form.scale.startswith("E"):
        stored[SCALE] = (torch.rand(stored[SCALE].shape, generator=random) * 1e-3 + 1e-3).to(stored[SCALE].dtype)
    else:
        stored[SCALE] = stored[SCALE].view(torch.uint8).fill_(0x40 if codec.surveys else 120).view(stored[SCALE].dtype)
    values = values_of(codec, stored, shape, dtype)
    values[200, 133] = 0.0121 * float(values[200].abs().max())
    again, counts = encoded(codec, values, stored)
    assert groups(counts, "computed") == 1
    group, width = codec.form.group, codec.form.group[1] or shape[1]
    changed = torch.zeros(shape, dtype=torch.bool)
    top, left = 200 // group[0] * group[0], 133 // width * width
    changed[top : top + group[0], left : left + width] = True
    before, after = (values_of(codec, one, shape, torch.float32) for one in (stored, again))
    assert same(before[~changed], after[~changed])
    codes = [one[CODES].view(torch.uint8).view(shape[0], -1) for one in (stored, again)]
    each = shape[1] // codes[0].shape[1]
    other = (codes[0] != codes[1]).repeat_interleave(each, 1)
    assert not other[~changed].any()
    # The group's own bytes are those of an encoding without kept scales, if nothing else decides them.
    if not codec.surveys:
        fresh, _ = encoded(codec, values, {})
        new = fresh[CODES].view(torch.uint8).view(shape[0], -1)
        wide = changed[:, ::each]
        assert torch.equal(codes[1][wide], new[wide])


@pytest.mark.parametrize("name", QUANTIZED)
def test_without_kept_scales_nothing_is_counted_as_restored(name: str) -> None:
    codec = CODECS[name]
    _, counts = encoded(codec, torch.randn(128, 256).bfloat16(), {})
    assert not groups(counts, "restored")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", QUANTIZED)
def test_values_that_are_no_numbers_are_refused(name: str, value: float) -> None:
    codec, shape, random = CODECS[name], (256, 256), torch.Generator().manual_seed(2)
    stored = scales_of(codec, shape, random) | {CODES: codes_of(codec, shape, random, True)}
    values = values_of(codec, stored, shape, torch.bfloat16)
    values[130, 200] = value
    with pytest.raises(BadBlock, match="NaN or infinity"):
        encoded(codec, values, stored)


@pytest.mark.parametrize("name", [name for name in QUANTIZED if CODECS[name].form.scale in ("F32", "BF16")])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_kept_scale_is_refused_with_its_place(name: str, value: float) -> None:
    codec, shape, random = CODECS[name], (4096, 512), torch.Generator().manual_seed(3)
    stored = scales_of(codec, shape, random) | {CODES: codes_of(codec, shape, random, True)}
    values = values_of(codec, stored, shape, torch.bfloat16)
    stored[SCALE][-1, -1] = value
    with pytest.raises(BadBlock) as caught:
        encoded(codec, values, stored)
    assert (caught.value.row, caught.value.column) == (stored[SCALE].shape[0] - 1, stored[SCALE].shape[1] - 1)


NVFP4 = [name for name in QUANTIZED if CODECS[name].surveys]


@pytest.mark.parametrize("name", NVFP4)
def test_groups_whose_scale_is_zero_are_counted(name: str) -> None:
    codec, shape, random = CODECS[name], (4, 64), torch.Generator().manual_seed(4)
    stored = scales_of(codec, shape, random) | {CODES: codes_of(codec, shape, random, True)}
    stored[SCALE].view(torch.uint8)[1, 2] = 0
    again, counts = encoded(codec, values_of(codec, stored, shape, torch.bfloat16), stored)
    assert counts == {"groups_restored": 16, ZERO: 1}
    assert same(again[SCALE], stored[SCALE])
    group = again[CODES].view(torch.uint8)[1, 16:24]
    assert not (group & 0x77).any() and torch.equal(group, stored[CODES][1, 16:24] & 0x88), "zeros keep their signs"


@pytest.mark.parametrize("name", NVFP4)
def test_a_peak_beyond_the_kept_global_scale_needs_a_new_one(name: str) -> None:
    codec, shape, random = CODECS[name], (4, 64), torch.Generator().manual_seed(5)
    stored = scales_of(codec, shape, random) | {CODES: codes_of(codec, shape, random, True)}
    values = values_of(codec, stored, shape, torch.bfloat16)
    values[0, 0] = (
        4 * 448 * 6 * float(stored[GLOBAL_SCALE].item() if INPUT_SCALE in stored else 1 / stored[GLOBAL_SCALE])
    )
    again, counts = encoded(codec, values, stored)
    assert counts == {"groups_computed": 16} and not same(again[GLOBAL_SCALE], stored[GLOBAL_SCALE])
    assert abs(float(values_of(codec, again, shape, torch.float32)[0, 0]) / float(values[0, 0]) - 1) < 0.01
    assert INPUT_SCALE not in stored or same(again[INPUT_SCALE], stored[INPUT_SCALE])
    far = {KEPT + part: one for part, one in stored.items() if part in CHOSEN}
    again[GLOBAL_SCALE].zero_()
    codec.encode(values[1:], {part: one[1:] if one.dim() == 2 else one for part, one in (again | far).items()} | {
        PEAK: values.abs().amax().float().view(1)
    })  # fmt: skip
    assert not same(again[GLOBAL_SCALE], stored[GLOBAL_SCALE]), "the whole parameter's peak decides, for every band"


@pytest.mark.parametrize("dtype", ["U8", "F8_E8M0"])
@pytest.mark.parametrize("name", ["mxfp4", "mxfp8"])
def test_either_dtype_of_powers_comes_back(name: str, dtype: str) -> None:
    codec, shape, random = replace(CODECS[name], scale_dtype=dtype), (5, 256), torch.Generator().manual_seed(6)
    stored = scales_of(codec, shape, random) | {CODES: codes_of(codec, shape, random, True)}
    again, counts = encoded(codec, values_of(codec, stored, shape, torch.bfloat16), stored)
    assert all(same(one, again[part]) for part, one in stored.items()) and counts == {"groups_restored": 40}


def test_v4_keeps_odd_scales_only() -> None:
    assert in_dialect(CODECS["mxfp4"], "v4").scales_follow
    assert not any(CODECS[name].scales_follow for name in QUANTIZED)


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_device_uses_kept_scales_in_stretches(name: str) -> None:
    codec, shape, random = CODECS[name], (640, 256), torch.Generator().manual_seed(7)
    stored = scales_of(codec, shape, random) | {CODES: codes_of(codec, shape, random, True)}
    values = values_of(codec, stored, shape, torch.bfloat16)
    made = {part: torch.empty_like(one) for part, one in stored.items()}
    known = {KEPT + part: one for part, one in stored.items() if part in CHOSEN}
    known |= {PEAK: values.abs().amax().float().view(1)} if codec.surveys else {}
    counts = Device("cpu").encode(codec, values, made, known)
    assert all(same(one, made[part]) for part, one in stored.items())
    assert groups(counts, "restored") == stored[SCALE].numel()
