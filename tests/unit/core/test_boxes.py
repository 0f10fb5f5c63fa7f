"""Boxes are sets of indices: what is said of them is checked against the sets."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl.core.boxes import Box, tiles


def indices(box: Box) -> set[tuple[int, ...]]:
    return set(product(*(range(a, b) for a, b in zip(box.start, box.stop, strict=True))))


class Some(NamedTuple):
    """Boxes and moves of one number of dimensions."""

    boxes: tuple[Box, ...]
    by: tuple[int, ...]


@st.composite
def some(draw: st.DrawFn, count: int = 2, least: int = 0) -> Some:
    dimensions = draw(st.integers(least, 3))
    spans = st.tuples(st.integers(0, 5), st.integers(0, 5)).map(sorted)

    def box() -> Box:
        drawn = [draw(spans) for _ in range(dimensions)]
        return Box(tuple(a for a, _ in drawn), tuple(b for _, b in drawn))

    return Some(tuple(box() for _ in range(count)), tuple(draw(st.integers(-3, 3)) for _ in range(dimensions)))


@given(some())
def test_a_box_is_its_indices(drawn: Some) -> None:
    box, other = drawn.boxes
    assert box.size == len(indices(box))
    both = box.intersect(other)
    assert (indices(both) if both else set()) == indices(box) & indices(other)
    assert both == other.intersect(box)
    if indices(other):
        assert box.contains(other) == (indices(other) <= indices(box))


@given(some(1))
def test_moving(drawn: Some) -> None:
    (box,), by = drawn
    assert indices(box.moved(by)) == {tuple(i + d for i, d in zip(index, by, strict=True)) for index in indices(box)}
    assert box.moved(by).relative_to(by) == box
    assert box.relative_to(box.start) == Box.whole(box.shape)


@given(some(1, least=1), st.data())
def test_parts_tile_a_box_and_are_equal(drawn: Some, data: st.DataObject) -> None:
    box = drawn.boxes[0]
    dimension = data.draw(st.integers(0, len(box.start) - 1))
    count = data.draw(st.integers(1, 6))
    if box.shape[dimension] % count:
        with pytest.raises(ValueError, match="does not divide"):
            box.part(dimension, 0, count)
        return
    parts = [box.part(dimension, index, count) for index in range(count)]
    assert len({part.shape for part in parts}) == 1
    assert set().union(*map(indices, parts)) == indices(box) and sum(part.size for part in parts) == box.size
    assert tiles(parts, box)


@given(some(1), st.integers(1, 7))
def test_bands_tile_a_box_in_order(drawn: Some, rows: int) -> None:
    box = drawn.boxes[0]
    bands = list(box.bands(rows))
    assert tiles(bands, box)
    if box.start:
        assert all(band.shape[0] <= rows for band in bands)
        assert [band.start[0] for band in bands] == sorted(band.start[0] for band in bands)


@given(some(4))
def test_tiling_is_covering_once(drawn: Some) -> None:
    whole, *boxes = drawn.boxes
    covered = [index for box in boxes for index in indices(box)]
    exactly = sorted(covered) == sorted(indices(whole))
    if all(indices(box) for box in boxes):
        assert tiles(boxes, whole) == exactly


def test_a_scalar_is_one_element_without_dimensions() -> None:
    box = Box.whole(())
    assert box.size == 1 and list(box.bands(1)) == [box] and box.intersect(box) == box and tiles([box], box)
