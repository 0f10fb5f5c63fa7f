"""Whether what is wanted is there, which copies are compared, and which cuts would go through blocks."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from dsctl.checkpoint.pieces import Piece
from dsctl.codecs import CODECS
from dsctl.codecs.codec import Codec
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.plain import Plain
from dsctl.core.boxes import Box, tiles
from dsctl.core.errors import PlanError
from dsctl.core.header import TensorRef
from dsctl.layouts.layout import Slot
from dsctl.plan.blocks import NAMED, Blocks, check_filled, check_joined, covers, twins
from dsctl.plan.plan import Recoded
from dsctl.plan.steps import Part, Region, Step

SHAPE = (256, 4)
BLOCKS = Fp8Block()


def _band(first: int, last: int, columns: int = 4) -> Box:
    return Box((first, 0), (last, columns))


def _slot(box: Box, shard: str = "", container: tuple[int, ...] | None = None) -> Slot:
    return Slot(shard, "w", box, container or box.shape, (0,) * len(box.start))


def _piece(box: Box, shard: str = "", codec: Codec | None = None) -> Piece:
    codec = codec or Plain()
    file = f"{shard or 'model'}.safetensors"
    refs = [TensorRef(name, spec, file, 0, spec.nbytes) for name, spec in codec.specs(box.shape).items()]
    return Piece(_slot(box, shard), codec, tuple(refs))


def _region(codec: Codec, box: Box, container: tuple[int, ...] = (), at: tuple[int, ...] = ()) -> Region:
    container = container or box.shape
    specs, stated = codec.specs(container), codec.stated(container)
    parts = tuple(Part(name, "f", 0, spec) for name, spec in specs.items() if name not in stated)
    return Region(box, codec, parts, container, at or (0,) * len(container))


@pytest.mark.parametrize(
    ("pieces", "slots", "there"),
    [
        ([(0, 256)], [(0, 256)], True),
        ([(0, 128), (128, 256)], [(0, 256)], True),
        ([(0, 128)], [(0, 256)], False),
        ([(0, 128)], [(0, 128)], True),
        ([(0, 128)], [(0, 64), (64, 128)], True),
        ([(0, 128)], [(0, 64), (128, 192)], False),
        ([(0, 64), (128, 256)], [(0, 64), (128, 256)], True),
        ([(0, 64), (128, 256)], [(0, 256)], False),
        ([], [(0, 1)], False),
        ([], [], True),
    ],
)
def test_whether_pieces_hold_what_slots_want(
    pieces: list[tuple[int, int]], slots: list[tuple[int, int]], there: bool
) -> None:
    held = tuple(_piece(_band(*piece)) for piece in pieces)
    assert covers(held, SHAPE, tuple(_slot(_band(*slot)) for slot in slots)) is there


@given(st.lists(st.integers(1, 255), unique=True, max_size=6), st.data())
def test_pieces_that_tile_a_parameter_cover_any_slot_and_fewer_do_not(cuts: list[int], data: st.DataObject) -> None:
    edges = [0, *sorted(cuts), 256]
    boxes = [_band(first, last) for first, last in pairwise(edges)]
    assert tiles(boxes, Box.whole(SHAPE))
    first = data.draw(st.integers(0, 255))
    slot = _slot(_band(first, data.draw(st.integers(first + 1, 256))))
    assert covers(tuple(map(_piece, boxes)), SHAPE, (slot,))
    gone = data.draw(st.sampled_from(boxes))
    left = tuple(_piece(box) for box in boxes if box != gone)
    assert covers(left, SHAPE, (slot,)) == (slot.region.intersect(gone) is None)


def test_a_scalar_is_covered_by_itself() -> None:
    whole = Box.whole(())
    assert covers((_piece(whole),), (), (_slot(whole),)) and not covers((), (), (_slot(whole),))


def test_copies_of_what_is_read_are_compared_with_it() -> None:
    pieces = (_piece(_band(0, 128), "a"), _piece(_band(128, 256), "a"))
    held = (*pieces, _piece(_band(128, 256), "b"), _piece(_band(0, 128), "b"), _piece(_band(0, 128), "c"))
    found = list(twins("w", held, pieces))
    assert [(twin.of, twin.region.parts[0].file) for twin in found] == [
        (1, "b.safetensors"), (0, "b.safetensors"), (0, "c.safetensors"),
    ]  # fmt: skip


def test_no_copies_are_no_twins() -> None:
    pieces = (_piece(_band(0, 256)),)
    assert list(twins("w", pieces, pieces)) == [] and list(twins("w", (), pieces)) == []


def test_pieces_that_are_not_read_are_no_twins() -> None:
    read = (_piece(_band(0, 128), "a"),)
    assert list(twins("w", (*read, _piece(_band(128, 256), "a")), read)) == []


def test_copies_in_another_format_are_refused() -> None:
    one, other = _piece(_band(0, 256), "a"), _piece(_band(0, 256), "b", Plain("F32"))
    with pytest.raises(PlanError, match=r"^w: its copies in a\.safetensors and b\.safetensors have different formats$"):
        list(twins("w", (one, other), (one,)))


def _move(cut: int, codec: Codec = BLOCKS, how: str = "move", shape: tuple[int, int] = (512, 128)) -> Step:
    writes = [_region(codec, Box((0, 0), (cut, shape[1]))), _region(codec, Box((cut, 0), shape))]
    return Step("w", shape, how, (_region(codec, Box.whole(shape)),), tuple(writes))


@pytest.mark.parametrize("cut", [128, 256, 384])
def test_cuts_on_blocks_are_moved(cut: int) -> None:
    blocks = Blocks("published", False)
    step = _move(cut)
    assert blocks.checked(step, "w") is step and blocks.recoded == []
    blocks.refuse()


def test_cuts_through_blocks_are_refused() -> None:
    blocks = Blocks("published", False)
    blocks.checked(_move(100), "w")
    with pytest.raises(PlanError) as found:
        blocks.refuse()
    assert found.value.message == (
        "1 parameter would be cut through quantization blocks: "
        "w: a cut at 0 to 100 of 512 is not aligned with blocks of 128"
    )
    assert found.value.hint == "--recode quantizes these again"


def test_cuts_through_blocks_are_recoded_if_that_is_asked_for() -> None:
    blocks = Blocks("published", True)
    found = [blocks.checked(structs.replace(_move(100), name=name), "template", 3) for name in ("one", "two")]
    assert [(step.name, step.how, step.measured) for step in found] == [
        ("one", "recode", True),
        ("two", "recode", True),
    ]
    why = "a cut at 0 to 100 of 512 is not aligned with blocks of 128"
    assert blocks.recoded == [Recoded("template", 6, why)]
    blocks.refuse()


def test_a_step_that_recodes_anyway_is_no_matter_of_cuts() -> None:
    blocks = Blocks("published", False)
    step = _move(100, how="recode")
    assert blocks.checked(step, "w") is step
    blocks.refuse()


def test_plain_values_are_cut_anywhere() -> None:
    blocks = Blocks("published", False)
    blocks.checked(_move(1, Plain()), "w")
    blocks.refuse()


def test_refusals_are_counted_and_not_all_told() -> None:
    blocks = Blocks("published", False)
    for number in range(NAMED + 5):
        blocks.checked(structs.replace(_move(100), name=f"w{number}"), "w", 2)
    with pytest.raises(
        PlanError, match=f"^{2 * (NAMED + 5)} parameters would be cut through quantization blocks$"
    ) as found:
        blocks.refuse()
    assert len(found.value.issues) == NAMED


def test_a_scale_that_two_joined_matrices_would_share_is_refused() -> None:
    blocks = Blocks("fused", True)
    write = _region(BLOCKS, Box.whole((64, 128)), (128, 128), (64, 0))
    step = Step("w", (64, 128), "move", (_region(BLOCKS, Box.whole((64, 128))),), (write,))
    blocks.checked(step, "w")
    with pytest.raises(PlanError, match=r"^1 parameter cannot be stored in layout fused: w: ") as found:
        blocks.refuse()
    assert found.value.hint is None


@pytest.mark.parametrize(("name", "refused"), [("fp8-channel", True), ("fp8-block", False), ("int4-group", False)])
def test_a_scale_of_a_row_is_not_made_by_one_rank_alone(name: str, refused: bool) -> None:
    codec = CODECS[name]
    halves = [_region(codec, Box((0, column), (256, column + 128)), (256, 128)) for column in (0, 128)]
    step = Step("w", (256, 256), "recode", (_region(Plain(), Box.whole((256, 256))),), tuple(halves))
    blocks = Blocks("published", True)
    blocks.checked(step, "w")
    if refused:
        with pytest.raises(PlanError, match=f"would span several ranks: convert to {name} first, then shard"):
            blocks.refuse()
    else:
        blocks.refuse()


def _joined(first: int, last: int, rows: int = 4, tensor: str = "both") -> Slot:
    return Slot("", tensor, _band(0, last - first), (rows, 4), (first, 0))


def test_a_joined_tensor_must_be_filled() -> None:
    check_filled([_joined(0, 2), _joined(2, 4)], "fused")
    with pytest.raises(PlanError) as found:
        check_filled([_joined(0, 2)], "fused")
    assert found.value.message == "layout fused: both would be only partly filled"
    assert found.value.hint == "keep or drop all joined matrices together"


def test_several_joined_tensors_in_part_are_told_together() -> None:
    slots = [_joined(0, 2, tensor="one"), _joined(0, 4, tensor="whole"), _joined(0, 1, tensor="two")]
    with pytest.raises(PlanError, match=r"^layout fused: 2 joined tensors would be only partly filled$") as found:
        check_filled(slots, "fused")
    assert found.value.issues == ("one", "two")


def test_stacked_experts_must_all_be_there() -> None:
    stack = [Slot("rank", "all", Box.whole((2, 2)), (2, 2), (0, 0), (number, 3)) for number in range(3)]
    check_filled(stack, "stacked")
    with pytest.raises(PlanError, match=r"^layout stacked: rank/all would be only partly filled$"):
        check_filled(stack[:2], "stacked")


def test_a_tensor_of_its_own_is_always_filled() -> None:
    check_filled([_slot(_band(0, 3)), _slot(Box.whole(()))], "published")


def test_what_is_stated_for_a_parameter_as_a_whole_cannot_be_joined() -> None:
    packed = CODECS["int4-group"]
    assert packed.stated((4, 128))
    whole = Slot("", "w", Box.whole((4, 128)), (4, 128), (0, 0))
    check_joined("w", packed, whole)
    with pytest.raises(PlanError, match=r"^w: int4-group cannot be joined with other matrices in one tensor$"):
        check_joined("w", packed, structs.replace(whole, container=(8, 128)))
    with pytest.raises(PlanError, match=r"^w: int4-group cannot be joined with other matrices in one tensor$"):
        check_joined("w", packed, structs.replace(whole, stack=(0, 2)))
    check_joined("w", BLOCKS, structs.replace(whole, container=(8, 128)))
