"""`dsctl formats` tells of every codec, and tells what measuring finds."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from dsctl.codecs import CODECS
from dsctl.codecs.facts import FORMATS, bits
from dsctl.plan.recipes import ready
from dsctl.work.buffers import DTYPES
from tests.support.command import dsctl
from tests.tools.snr import searched, snr

PAGE = Path(__file__).parents[3] / "docs" / "loaders.md"


def test_every_codec_is_told_of_in_the_same_order() -> None:
    assert list(FORMATS) == list(CODECS)


@pytest.mark.parametrize("name", CODECS)
def test_the_noise_is_what_measuring_finds(name: str) -> None:
    told, found = FORMATS[name].snr, snr(CODECS[name])
    assert found is None if told is None else found == pytest.approx(told, abs=0.1)


@pytest.mark.parametrize("name", CODECS)
def test_searching_gains_what_is_told(name: str) -> None:
    told, better = FORMATS[name].searched, searched(CODECS[name])
    usual, found = snr(CODECS[name]), better and snr(better)
    if told is None:
        assert found is None or found == usual, "searching changes nothing"
    else:
        assert usual is not None and found == pytest.approx(told, abs=0.1) and found > usual


def test_bits_count_scales() -> None:
    assert bits("bf16") == 16
    assert bits("mxfp4") == 4.25 and bits("int4-group") == pytest.approx(4.125, abs=1e-4)
    assert bits("fp8-block") == 8 + 32 / 128**2


def test_the_verb_lists_formats_and_recipes() -> None:
    told: dict[str, Any] = json.loads(dsctl("formats", "--json"))
    assert [one["name"] for one in told["formats"]] == list(CODECS)
    assert {one["name"] for one in told["recipes"]} == set(ready())
    assert {one["name"]: one["loaders"] for one in told["formats"]} == loaders_on_the_page()


def loaders_on_the_page() -> dict[str, str]:
    """The first two columns of the table below `Who loads what`."""
    _, _, below = PAGE.read_text().partition("## Who loads what")
    table, _, _ = below.partition("\n## ")
    return dict(re.findall(r"^\| `([a-z0-9-]+)` \| ([^|]+) \|", table, re.MULTILINE))


@pytest.mark.parametrize("width", [None, 80, 100, 120, 200])
def test_every_column_is_shown_at_every_width(width: int | None) -> None:
    with mock.patch.dict(os.environ, {"COLUMNS": str(width)} if width else {}):
        lines = dsctl("formats").splitlines()
    titles = [cell for line in lines if line.split()[:1] == ["format"] for cell in re.split(r"  +", line.strip())]
    assert set(titles) == {"format", "bits", "SNR dB", "loaders", "hardware", "lossless from"}
    assert width is None or max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "Blackwell; Ampere+ (Marlin)" in text and "Hopper+" in text and "with BF16 scales" in text
    # In a pipe each format is one line with all that is told of it, but for what is wrapped.
    mine = next(line for line in lines if line.split()[:1] == ["nvfp4"])
    assert width not in (None, 200) or ("SGLang" in mine and "Marlin" in mine and "itself" in mine)


E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
SHAPE = 256, 512
# What holds every product of stored codes and scales.
EXACT = {
    "bf16": ["mxfp4", "mxfp8", "fp8-block-e8m0"],
    "f32": [
        "mxfp4", "mxfp8", "fp8-block-e8m0", "fp8-block-ct", "fp8-channel", "int8-channel", "int4-group",
        "int4-group-32", "int8-group",
    ],
}  # fmt: skip
INEXACT = {
    "bf16": ["fp8-block", "fp8-block-ct", "fp8-channel", "int8-channel", "int4-group", "int8-group", "nvfp4"],
    "f32": ["fp8-block", "int8-block", "nvfp4"],
}


def random_bytes(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    width = torch.empty(0, dtype=dtype).element_size()
    return torch.randint(0, 256, (*shape[:-1], shape[-1] * width), dtype=torch.uint8, generator=generator).view(dtype)


def random_scales(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    if dtype in (torch.uint8, torch.float8_e8m0fnu):
        # From 2^-124 up, below which BF16's subnormals end, to where six of them are still finite.
        return torch.randint(3, 240, shape, dtype=torch.uint8, generator=generator).view(dtype)
    return (torch.rand(shape, generator=generator) + 0.1).to(dtype)


def product(name: str, stored: dict[str, torch.Tensor]) -> torch.Tensor:
    """Codes times scales in float64, from what is stored."""
    codes, scales = stored["codes"], stored["scale"]
    if codes.dtype == torch.int32:
        bits = 4 if name.startswith("int4") else 8
        shifts = torch.arange(0, 32, bits)
        values = ((codes.long()[..., None] >> shifts) & ((1 << bits) - 1)).flatten(1) - (1 << (bits - 1))
    elif codes.dtype == torch.uint8:
        values = E2M1[torch.stack((codes & 15, codes >> 4), -1).flatten(1).long()]
    else:
        values = codes
    factors = (scales.long() - 127).double().exp2() if scales.dtype == torch.uint8 else scales.double()
    rows, columns = values.shape[0] // factors.shape[0], values.shape[1] // factors.shape[1]
    found = values.double() * factors.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return found / stored["global_scale"].double() if "global_scale" in stored else found


def decoded(name: str, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix of random codes and scales, decoded, and what it is worth exactly."""
    generator = torch.Generator().manual_seed(7)
    codec, stored = CODECS[name], {}
    for suffix, spec in codec.specs(SHAPE).items():
        make = random_scales if "scale" in suffix else random_bytes
        stored[suffix] = make(spec.shape, DTYPES[spec.dtype], generator)
    codes = stored[codec.parts[0]]
    if codes.dtype == torch.float8_e4m3fn:
        codes.view(torch.uint8)[codes.isnan()] = 0
    for suffix, data in codec.stated(SHAPE).items():
        stored[suffix] = torch.frombuffer(bytearray(data), dtype=torch.int64)
    out = torch.empty(SHAPE, dtype=DTYPES[dtype.upper()])
    codec.decode(stored, out)
    return out.double(), product(name, stored)


@pytest.mark.parametrize(("target", "name"), [(target, name) for target, names in EXACT.items() for name in names])
def test_what_is_called_lossless_is_exact(target: str, name: str) -> None:
    out, exact = decoded(name, target)
    assert exact.isfinite().all() and torch.equal(out, exact)
    told = FORMATS[target].lossless
    assert re.search(rf"\b{name}\b(?!-)", told) or ("e8m0" in name and "ue8m0 scales" in told)


@pytest.mark.parametrize(("target", "name"), [(target, name) for target, names in INEXACT.items() for name in names])
def test_what_is_not_called_lossless_rounds(target: str, name: str) -> None:
    out, exact = decoded(name, target)
    assert not torch.equal(out, exact)
    assert torch.allclose(out, exact, rtol=2**-8 if target == "bf16" else 2**-23)


def test_blocks_with_float32_scales_round_in_f32_under_their_other_name_too() -> None:
    codec: Any = CODECS["fp8-block-ct"]
    generator = torch.Generator().manual_seed(7)
    codes = random_bytes(SHAPE, torch.float8_e4m3fn, generator)
    codes.view(torch.uint8)[codes.isnan()] = 0
    scales, out = random_scales((2, 4), torch.float32, generator), torch.empty(SHAPE)
    replace(codec, scale_dtype="F32").decode({"codes": codes, "scale": scales}, out)
    assert not torch.equal(out.double(), product("fp8-block-ct", {"codes": codes, "scale": scales}))
