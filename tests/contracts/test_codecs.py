"""What every codec promises, over the whole table: a new entry is tested unasked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsctl.codecs import CODECS
from dsctl.codecs.codec import PEAK, BadBlock, Codec, Misaligned, moves_to
from dsctl.core.boxes import Box
from dsctl.core.header import TensorSpec
from dsctl.work.buffers import DTYPES

SHAPES = [(128, 128), (576, 512), (256, 384), (64, 128), (640, 1536)]


def empty(specs: dict[str, TensorSpec]) -> dict[str, torch.Tensor]:
    return {suffix: torch.empty(spec.shape, dtype=DTYPES[spec.dtype]) for suffix, spec in specs.items()}


def gaussian(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * 0.02).to(torch.bfloat16)


def encoded(codec: Codec, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is stored, but for what the shape says already."""
    shape = tuple(values.shape)
    stored = empty(codec.specs(shape))
    codec.encode(values, stored)
    return {suffix: tensor for suffix, tensor in stored.items() if suffix not in codec.stated(shape)}


def decoded(codec: Codec, stored: dict[str, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
    out = torch.empty(shape, dtype=torch.float32)
    codec.decode(stored, out)
    return out


@pytest.fixture(params=sorted(CODECS))
def codec(request: pytest.FixtureRequest) -> Codec:
    return CODECS[request.param]


@pytest.mark.parametrize("shape", SHAPES)
def test_encode_fills_exactly_what_specs_says(codec: Codec, shape: tuple[int, int]) -> None:
    specs = codec.specs(shape)
    assert tuple(specs) == codec.parts
    stored = encoded(codec, gaussian(shape))
    assert {suffix: tuple(tensor.shape) for suffix, tensor in stored.items()} == {
        suffix: spec.shape for suffix, spec in specs.items() if suffix in stored
    }
    assert codec.reads(shape, specs) == codec


def test_what_the_shape_says_is_a_stored_tensor_of_its_length(codec: Codec) -> None:
    specs = codec.specs((256, 512))
    for suffix, data in codec.stated((256, 512)).items():
        assert len(data) == specs[suffix].nbytes


def test_encoding_band_by_band_gives_the_same_bytes_where_the_peak_is_known(codec: Codec) -> None:
    values = gaussian((512, 256))
    whole = encoded(codec, values)
    peak = {PEAK: values.abs().amax().float().view(1)}
    for box in Box.whole((512, 256)).bands(128):
        band = values[box.start[0] : box.stop[0]]
        stored = empty(codec.specs(tuple(band.shape)))
        codec.encode(band, stored | peak)
        for suffix, tensor in whole.items():
            place = codec.box(suffix, box, (512, 256))
            cut = tensor[tuple(slice(a, b) for a, b in zip(place.start, place.stop, strict=True))]
            assert torch.equal(cut.reshape(-1).view(torch.uint8), stored[suffix].reshape(-1).view(torch.uint8)), suffix


@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_what_was_encoded_is_close_and_exact_where_the_format_holds_bf16(
    codec: Codec, shape: tuple[int, int]
) -> None:
    values = gaussian(shape)
    once = decoded(codec, encoded(codec, values), shape)
    error = (once - values.float()).norm() / values.float().norm()
    assert error < 0.2
    if codec.name in ("bf16", "f32"):
        assert torch.equal(once.to(torch.bfloat16), values)


@given(seed=st.integers(0, 2**31), row=st.integers(0, 3), column=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("name", sorted(CODECS))
def test_cutting_and_decoding_commute(name: str, seed: int, row: int, column: int) -> None:
    codec, shape = CODECS[name], (512, 512)
    stored = encoded(codec, gaussian(shape, seed))
    whole = decoded(codec, stored, shape)
    box = Box((128 * row, 128 * column), (512, 512))
    parts = {}
    for suffix, tensor in stored.items():
        place = codec.box(suffix, box, shape)
        parts[suffix] = tensor[tuple(slice(a, b) for a, b in zip(place.start, place.stop, strict=True))].contiguous()
    assert {suffix: tuple(part.shape) for suffix, part in parts.items()} == {
        suffix: spec.shape for suffix, spec in codec.specs(box.shape).items() if suffix in parts
    }
    assert torch.equal(decoded(codec, parts, box.shape), whole[128 * row :, 128 * column :])


def test_a_cut_inside_a_block_is_refused_and_an_aligned_one_is_not(codec: Codec) -> None:
    rows, columns = codec.block
    box = Box((rows, columns), (2 * rows, 2 * columns))
    for suffix in codec.parts:
        codec.box(suffix, box, (4 * rows, 4 * columns))
    for start in ((rows // 2, 0), (0, columns // 2)):
        if any(start):
            cut = Box(start, (4 * rows, 4 * columns))
            with pytest.raises(Misaligned):
                list(map(codec.box, codec.parts, [cut] * 9, [cut.stop] * 9))


def test_all_zero_values_survive(codec: Codec) -> None:
    shape = (256, 256)
    stored = encoded(codec, torch.zeros(shape, dtype=torch.bfloat16))
    assert torch.equal(decoded(codec, stored, shape), torch.zeros(shape))


def test_bytes_move_to_the_same_codec_only(codec: Codec) -> None:
    assert moves_to(codec, codec)
    assert not any(moves_to(codec, other) for other in CODECS.values() if other != codec)


@pytest.mark.parametrize("largest", [torch.finfo(torch.bfloat16).max, 2.0**127, 1.5 * 2.0**126])
def test_huge_values_are_refused_or_decoded_to_numbers(codec: Codec, largest: float) -> None:
    values = gaussian((256, 512))
    values[3, 7] = -largest
    try:
        stored = encoded(codec, values)
    except BadBlock as error:
        refused = error.what
    else:
        refused = ""
    if refused:
        assert (largest >= 2.0**127 and "a value" in refused) or codec.name == "f16"
        return
    out = torch.empty((256, 512), dtype=torch.bfloat16)
    codec.decode(stored, out)
    assert out.isfinite().all()


def test_a_matrix_without_rows_is_stored(codec: Codec) -> None:
    stored = encoded(codec, gaussian((0, 256)))
    assert decoded(codec, stored, (0, 256)).shape == (0, 256)


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("scale", [2.0**-133, 2.0**-126, 0.0123, 1.0, 2.0**119, 2.0**124])
def test_words_of_four_bits_are_decoded_as_integers_times_scales(size: int, scale: float) -> None:
    codec = CODECS["int4-group" if size == 128 else "int4-group-32"]
    shape = 256, 512
    packed = torch.randint(0, 256, (256, 256), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scales = torch.full((256, 512 // size), scale).bfloat16()
    codes = torch.stack((packed & 15, packed >> 4), 2).view(256, -1, size).float() - 8
    out = torch.empty(shape, dtype=torch.bfloat16)
    codec.decode({"codes": packed.view(torch.int32), "scale": scales}, out)
    plain = (codes * scales.float()[..., None]).bfloat16().view(shape)
    assert torch.equal(out.view(torch.int16), plain.view(torch.int16))


@pytest.mark.parametrize("name", [name for name, codec in CODECS.items() if hasattr(codec, "search")])
def test_wide_rows_are_searched_in_pieces_with_the_same_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = replace(CODECS[name], search=True)  # type: ignore[type-var]
    found = []
    for columns in (1024, 300):
        monkeypatch.setattr("dsctl.codecs.search.COLUMNS", columns)
        found.append(encoded(codec, gaussian((3, 1024), 5)))
    assert all(torch.equal(tensor, found[1][suffix]) for suffix, tensor in found[0].items())
