"""Rows and bytes of a step: blocks are never cut, bands fill the span, buffers hold what a band takes."""

from __future__ import annotations

from itertools import pairwise
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from dsctl.checkpoint.pieces import Piece
from dsctl.codecs import CODECS
from dsctl.codecs.codec import CODES, SCALE, VALUES, Codec, Misaligned
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.plain import Plain
from dsctl.core.boxes import Box
from dsctl.core.header import TensorRef, TensorSpec
from dsctl.layouts.layout import Slot
from dsctl.layouts.naming import DIALECTS
from dsctl.plan.steps import Copy, Part, Region, Step, Twin, held_as, moved, region_of, share

BLOCKS, PLAIN = Fp8Block(), Plain()
SHAPE = (300, 200)


def _region(codec: Codec, box: Box, container: tuple[int, ...] = (), at: tuple[int, ...] = ()) -> Region:
    container = container or box.shape
    specs, stated = codec.specs(container), codec.stated(container)
    parts = tuple(Part(name, "f", 0, spec) for name, spec in specs.items() if name not in stated)
    return Region(box, codec, parts, container, at or (0,) * len(container))


def _whole(codec: Codec, shape: tuple[int, ...] = SHAPE) -> Region:
    return _region(codec, Box.whole(shape))


def _step(read: Codec, write: Codec, shape: tuple[int, ...] = SHAPE, how: str = "recode") -> Step:
    return Step("w", shape, how, (_whole(read, shape),), (_whole(write, shape),))


def _band(first: int, last: int) -> Box:
    return Box((first, 0), (last, SHAPE[1]))


@pytest.mark.parametrize(
    ("first", "last", "span"),
    [
        (0, 300, (0, 300)),
        (0, 128, (0, 128)),
        (128, 256, (128, 256)),
        (256, 300, (256, 300)),
        (130, 140, (128, 256)),
        (100, 129, (0, 256)),
        (299, 300, (256, 300)),
    ],
)
def test_the_span_is_from_whole_blocks_to_whole_blocks(first: int, last: int, span: tuple[int, int]) -> None:
    step = Step("w", SHAPE, "recode", (_whole(BLOCKS),), (_region(PLAIN, _band(first, last)),))
    assert step.span == _band(*span)


def test_the_span_of_a_scalar_is_itself() -> None:
    assert Step("w", (), "move", (_whole(PLAIN, ()),), (_whole(PLAIN, ()),)).span == Box((), ())


def test_parts_with_blocks_of_their_own_are_read_whole() -> None:
    """A part that begins between blocks was encoded by itself: its first block begins with it."""
    parts = _region(BLOCKS, _band(0, 150)), _region(BLOCKS, _band(150, 300))
    step = Step("w", SHAPE, "recode", parts, (_whole(PLAIN),))
    assert step.band_rows(1) % 150 == 0 and step.band_rows(1) % 128 == 0


@given(
    st.tuples(st.integers(1, 600), st.integers(1, 40)),
    st.sampled_from([1, 2, 16, 128]),
    st.integers(0, 1 << 20),
)
def test_bands_are_of_whole_blocks_and_about_as_large_as_asked(shape: tuple[int, int], block: int, band: int) -> None:
    step = _step(Fp8Block((block, block)), PLAIN, shape)
    rows = step.band_rows(band)
    assert rows % block == 0
    assert rows == block or rows * 4 * shape[1] <= band


@given(st.integers(1, 600), st.integers(0, 1 << 12))
def test_bands_of_a_vector_are_of_values(length: int, band: int) -> None:
    assert _step(PLAIN, Plain("F32"), (length,)).band_rows(band) == max(1, band // 4)


@pytest.mark.parametrize(
    ("read", "write", "dtype"),
    [
        (PLAIN, BLOCKS, None), (PLAIN, Plain("F32"), None), (BLOCKS, PLAIN, "BF16"), (BLOCKS, Plain("F32"), "F32"),
        (BLOCKS, Plain("F16"), "F32"), (BLOCKS, CODECS["mxfp4"], "F32"),
    ],
)  # fmt: skip
def test_the_dtype_that_values_are_decoded_to(read: Codec, write: Codec, dtype: str | None) -> None:
    assert _step(read, write).decoded == dtype


def test_several_plain_parts_are_put_together_before() -> None:
    parts = _region(PLAIN, _band(0, 100)), _region(PLAIN, _band(100, 300))
    assert Step("w", SHAPE, "recode", parts, (_whole(BLOCKS),)).decoded == "F32"


@given(st.lists(st.integers(1, 300), unique=True, max_size=5), st.integers(0, 299), st.integers(1, 300))
def test_what_pieces_share_with_a_band_adds_up(cuts: list[int], first: int, last: int) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < 300), 300]
    regions = [_region(PLAIN, _band(a, b)) for a, b in pairwise(edges)]
    band = _band(min(first, last), max(first, last))
    if band.size:
        assert sum(share(band, region) for region in regions) == 2 * band.size


def test_a_share_of_nothing() -> None:
    assert share(_band(0, 10), _region(PLAIN, _band(10, 20))) == 0
    assert share(Box((0, 0), (0, 200)), _region(PLAIN, Box((0, 0), (0, 200)))) == 0


def test_bytes_read_and_written() -> None:
    step = _step(BLOCKS, PLAIN)
    assert step.read_bytes == 300 * 200 + 3 * 2 * 4
    assert step.written_bytes == 2 * 300 * 200
    twice = structs.replace(step, twins=(Twin(0, step.reads[0]),))
    assert twice.read_bytes == 2 * step.read_bytes and len(twice.regions_read) == 2
    scale = step.reads[0].parts[1]
    kept = structs.replace(step, copies=(Copy(scale, scale),))
    assert kept.written_bytes == step.written_bytes + scale.spec.nbytes and kept.read_bytes == step.read_bytes


def test_a_region_of_a_larger_container_writes_its_own_bytes_alone() -> None:
    region = _region(BLOCKS, Box.whole((128, 128)), (256, 128), (128, 0))
    step = Step("w", (128, 128), "move", (_whole(BLOCKS, (128, 128)),), (region,))
    assert step.written_bytes == 128 * 128 + 4


def test_parts_read_are_those_of_copies_twins_kept_scales_and_partners() -> None:
    step = _step(BLOCKS, PLAIN)
    one, other, third = (Part(name, name, 0, TensorSpec("F32", (1,))) for name in ("kept", "copy", "partner"))
    kept = Region(Box.whole(SHAPE), BLOCKS, (one,), SHAPE, (0, 0))
    partner = structs.replace(step, copies=(Copy(third, third),))
    full = structs.replace(step, kept=kept, copies=(Copy(other, other),), surveyed=(partner,))
    files = [part.file for part in full.parts_read]
    assert {"kept", "copy", "partner", "f"} == set(files) and files.count("f") == 4


def test_where_a_part_lies_in_its_container() -> None:
    region = _region(BLOCKS, Box((128, 0), (256, 200)), (512, 200), (256, 0))
    assert region.place(CODES, Box((128, 0), (256, 200))) == Box((256, 0), (384, 200))
    assert region.place(SCALE, Box((128, 0), (256, 200))) == Box((2, 0), (3, 2))
    with pytest.raises(Misaligned):
        region.place(SCALE, Box((130, 0), (256, 200)))


@pytest.mark.parametrize("codec", CODECS.values(), ids=lambda codec: codec.name)
def test_endings_are_those_of_the_dialect(codec: Codec) -> None:
    region = _whole(codec, (128, 128))
    for part in region.parts:
        assert region.ending(part) == DIALECTS[codec.dialect].tensor("", part.name)


@pytest.mark.parametrize("codec", CODECS.values(), ids=lambda codec: codec.name)
def test_a_region_is_read_without_what_its_shape_says(codec: Codec) -> None:
    shape = (256, 256)
    refs = [TensorRef(name, spec, "f", 100, 100 + spec.nbytes) for name, spec in codec.specs(shape).items()]
    region = region_of(Piece(Slot("", "w", Box.whole(shape), shape, (0, 0)), codec, tuple(refs)))
    assert [part.name for part in region.parts] == [part for part in codec.parts if part not in codec.stated(shape)]
    assert region.parts[0] == Part(codec.parts[0], "f", 100, refs[0].spec)


@pytest.mark.parametrize(("part", "shared"), [(VALUES, CODES), (CODES, CODES), (SCALE, SCALE)])
def test_values_and_codes_share_a_buffer(part: str, shared: str) -> None:
    assert held_as(part) == shared
    assert moved(0, Part(part, "f", 0, TensorSpec("F32", ()))) == f"in:{shared}"
    assert moved(2, Part(part, "f", 0, TensorSpec("F32", ()))) == f"in2:{shared}"


def test_a_move_holds_what_it_reads() -> None:
    assert _step(BLOCKS, BLOCKS, how="move").buffers(1 << 30) == {"in:codes": 60_000, "in:scale": 24}


def test_a_step_holds_a_band_of_values_and_what_is_written_of_it() -> None:
    held = _step(BLOCKS, PLAIN).buffers(128 * 200 * 4)
    assert held["in:codes"] == 128 * 200 and held["in:scale"] == -(-24 * 128 // 300)
    assert held["values"] == 2 * 128 * 200
    assert "out:codes" not in held


def test_copied_scales_are_held_whole_kept_ones_and_copies_by_bands() -> None:
    step = _step(PLAIN, BLOCKS)
    scale = Part(SCALE, "k", 0, TensorSpec("F32", (3, 2)))
    step = structs.replace(
        step,
        kept=Region(Box.whole(SHAPE), BLOCKS, (scale,), SHAPE, (0, 0)),
        copies=(Copy(scale, scale),),
        twins=(Twin(0, step.reads[0]),),
    )
    held = step.buffers(1)
    assert held["copy"] == 24
    assert held["kept:scale"] == -(-24 * 128 // 300)
    assert held["twin"] == 128 * 200 * 2


def test_parts_that_are_cut_by_columns_are_read_into_a_buffer_of_their_own() -> None:
    region = _region(PLAIN, Box((0, 0), (300, 100)), (300, 200))
    step = Step("w", (300, 100), "move", (region,), (_whole(PLAIN, (300, 100)),))
    assert step.buffers(1 << 30)["cut"] == 300 * 200 * 2


def test_parts_that_are_joined_have_a_buffer_for_what_is_written() -> None:
    parts = _region(PLAIN, _band(0, 100)), _region(PLAIN, _band(100, 300))
    assert Step("w", SHAPE, "move", parts, (_whole(PLAIN),)).buffers(1 << 30) == {
        "in:codes": 100 * 200 * 2, "in1:codes": 200 * 200 * 2, "joined": 300 * 200 * 2,
    }  # fmt: skip


@given(st.tuples(st.integers(1, 400), st.integers(1, 300)), st.integers(1, 20), st.integers(1, 20))
def test_more_memory_never_holds_less(shape: tuple[int, int], small: int, more: int) -> None:
    step = _step(BLOCKS, PLAIN, shape)
    less, all_ = (sum(step.buffers(bytes_ << 12).values()) for bytes_ in (small, small + more))
    assert less <= all_


def test_a_scalar_and_an_empty_matrix_have_buffers_too() -> None:
    assert sum(_step(PLAIN, Plain("F32"), ()).buffers(1).values()) >= 2
    assert prod(_step(PLAIN, Plain("F32"), (0, 4)).span.shape) == 0
    _step(PLAIN, Plain("F32"), (0, 4)).buffers(1)
