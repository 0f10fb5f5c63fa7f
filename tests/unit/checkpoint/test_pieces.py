"""Copies of a region are held once: of equal ones the first, in the order in which the first of each stands."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from dsctl.checkpoint.pieces import Fault, Piece, cover
from dsctl.codecs.plain import Plain
from dsctl.core.boxes import Box
from dsctl.core.header import TensorRef, TensorSpec
from dsctl.layouts.layout import Slot


def _piece(first: int, last: int, shard: str = "") -> Piece:
    region = Box((first, 0), (last, 2))
    spec = TensorSpec("BF16", (last - first, 2))
    ref = TensorRef("w", spec, f"{shard}.safetensors", 8, 8 + spec.nbytes)
    return Piece(Slot(shard, "w", region, region.shape, (0, 0)), Plain(), (ref,))


def test_one_piece_is_itself() -> None:
    pieces = (_piece(0, 4),)
    assert cover(pieces) is pieces


def test_of_copies_the_first_is_taken() -> None:
    pieces = (_piece(0, 2, "a"), _piece(2, 4, "a"), _piece(0, 2, "b"), _piece(2, 4, "b"))
    assert [piece.slot.shard for piece in cover(pieces)] == ["a", "a"]


def test_nothing_covers_nothing() -> None:
    assert cover(()) == ()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=12))
def test_every_region_once_and_the_first_copy_of_each(numbers: list[tuple[int, int]]) -> None:
    pieces = tuple(_piece(band, band + 1, str(shard)) for band, shard in numbers)
    found = cover(pieces)
    assert {piece.slot.region for piece in found} == {piece.slot.region for piece in pieces}
    assert len({piece.slot.region for piece in found}) == len(found)
    assert all(next(one for one in pieces if one.slot.region == piece.slot.region) == piece for piece in found)


@given(st.permutations(list(range(5))))
def test_pieces_apart_stay_as_many(order: list[int]) -> None:
    pieces = tuple(_piece(band, band + 1) for band in order)
    assert sorted(cover(pieces), key=lambda piece: piece.slot.region.start) == sorted(
        pieces, key=lambda piece: piece.slot.region.start
    )


def test_a_piece_takes_what_its_tensors_take() -> None:
    piece = _piece(0, 3)
    assert piece.nbytes == 12
    assert structs.replace(piece, refs=piece.refs * 2).nbytes == 24


def test_a_fault_says_where_and_what_but_not_its_code() -> None:
    assert str(Fault("wrong-shape", "w", "is [1]", ("more",))) == "w: is [1]"
