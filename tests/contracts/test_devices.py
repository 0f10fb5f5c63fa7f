"""What every device promises for every codec: the processor's bytes. Without a GPU, `cpu` shows that stretches of rows
come together right; with one, `pytest -m gpu` shows the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dsctl.codecs import CODECS
from dsctl.codecs.codec import KEPT, PEAK, BadBlock, Codec
from dsctl.work.devices import Device
from tests.contracts.test_codecs import decoded, empty, encoded, gaussian
from tests.flows.test_resume import contents
from tests.support.checkpoints import smaller
from tests.support.command import dsctl

# One that no stretch divides, one smaller than a stretch.
SHAPES = [(576, 512), (64, 128)]
GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"))
DEVICES = ("cpu", pytest.param("cuda:0", marks=GPU))


@pytest.fixture(params=sorted(CODECS))
def codec(request: pytest.FixtureRequest) -> Codec:
    return CODECS[request.param]


@pytest.fixture(params=DEVICES, scope="module")
def there(request: pytest.FixtureRequest) -> Device:
    return Device(request.param)


def peak(codec: Codec, values: torch.Tensor) -> dict[str, torch.Tensor]:
    return {PEAK: values.abs().amax().float().view(1)} if codec.surveys else {}


@pytest.mark.parametrize("shape", SHAPES)
def test_encoding_there_gives_the_same_bytes(there: Device, codec: Codec, shape: tuple[int, int]) -> None:
    values = gaussian(shape)
    for known in (peak(codec, values), {}):
        stored = empty(codec.specs(shape))
        there.encode(codec, values, stored, known)
        for suffix, tensor in encoded(codec, values).items():
            ours, theirs = (one.reshape(-1).view(torch.uint8) for one in (stored[suffix], tensor))
            assert torch.equal(ours, theirs), suffix


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_there_gives_the_same_values(
    there: Device, codec: Codec, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    stored, out, here = (
        encoded(codec, gaussian(shape)),
        torch.empty(shape, dtype=dtype),
        torch.empty(shape, dtype=dtype),
    )
    there.decode(codec, stored, out)
    codec.decode(stored, here)
    assert torch.equal(out, here)


def test_kept_scales_are_used_there_too(there: Device) -> None:
    codec, values = CODECS["fp8-block"], gaussian((576, 512))
    stored = encoded(codec, values)
    exact = decoded(codec, stored, (576, 512)).to(torch.bfloat16)
    kept = {KEPT + suffix: tensor for suffix, tensor in stored.items() if suffix != "codes"}
    here, out = empty(codec.specs((576, 512))), empty(codec.specs((576, 512)))
    counts = codec.encode(exact, here | kept)
    assert there.encode(codec, exact, out, kept) == counts
    assert all(torch.equal(out[suffix].view(torch.uint8), here[suffix].view(torch.uint8)) for suffix in here)


def test_a_bad_block_is_told_by_its_place_in_the_band(there: Device) -> None:
    codec, values = CODECS["fp8-block"], gaussian((640, 256))
    values[600, 200] = float("nan")
    with pytest.raises(BadBlock, match=r"block \[4, 1\]"):
        there.encode(codec, values, empty(codec.specs((640, 256))), {})


def test_codes_that_are_nan_are_nan_there_too_and_nothing_else_is(there: Device) -> None:
    codec, shape = CODECS["fp8-block"], (576, 512)
    stored = encoded(codec, gaussian(shape))
    for place, code in (((5, 7), 0x7F), ((300, 400), 0xFF), ((575, 511), 0x7F)):
        stored["codes"].view(torch.uint8)[place] = code
    for dtype in (torch.float32, torch.bfloat16):
        here, out = torch.empty(shape, dtype=dtype), torch.empty(shape, dtype=dtype)
        codec.decode(stored, here)
        there.decode(codec, stored, out)
        assert int(out.isnan().sum()) == 3 and torch.equal(out.isnan(), here.isnan())
        assert torch.equal(out.nan_to_num(), here.nan_to_num())


@GPU[1]
@pytest.mark.gpu
def test_a_conversion_there_gives_the_same_bytes(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    source = smaller(tmp_path_factory, "v3.2")
    for device in ("cpu", "cuda"):
        dsctl("convert", source, tmp_path / device, "--bf16", "--workers", "1", "--device", device)
        dsctl("convert", tmp_path / device, tmp_path / f"{device}-back", "--fp8", "--workers", "1", "--device", device)
    for suffix in ("", "-back"):
        here, there_ = (contents(tmp_path / f"{device}{suffix}") for device in ("cpu", "cuda"))
        here.pop("dsctl.json"), there_.pop("dsctl.json")
        assert here == there_
