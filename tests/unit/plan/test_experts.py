"""A map that places experts: read from a file, and dealt out to ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl.core.errors import FormatError, SourceError
from dsctl.plan.experts import MAX_BYTES, dealt_out, placement


def _file(folder: Path, text: str) -> str:
    (folder / "map.json").write_text(text)
    return str(folder / "map.json")


def test_a_map_is_read_with_all_else_in_the_file(tmp_path: Path) -> None:
    text = json.dumps({"physical_to_logical_map": [[0, 1], [1, 0]], "logcnt": [[1, 1]]})
    assert placement(_file(tmp_path, text)) == ((0, 1), (1, 0))


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"physical_to_logical_map": [0]}', '{"physical_to_logical_map": [[-1]]}',
        '{"physical_to_logical_map": [[65536]]}', '{"physical_to_logical_map": [[1.5]]}', "[" * 100_000,
        '{"physical_to_logical_map": [["0"]]}', '{"physical_to_logical_map": null}',
    ],
)  # fmt: skip
def test_another_file_is_no_map(tmp_path: Path, text: str) -> None:
    with pytest.raises(FormatError, match="is not a map of experts") as found:
        placement(_file(tmp_path, text))
    assert found.value.exit_code == 20 and found.value.hint is not None


def test_a_map_needs_rows(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="the map has no rows"):
        placement(_file(tmp_path, '{"physical_to_logical_map": []}'))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as found:
        placement(str(tmp_path / "none.json"))
    assert found.value.exit_code == 10


def test_a_file_too_long_is_not_read(tmp_path: Path) -> None:
    with pytest.raises((FormatError, SourceError)):
        placement(_file(tmp_path, " " * (MAX_BYTES + 1)))


ROW = (0, 1, 2, 3)
# A model of four main layers, the first two of them dense, and an MTP layer.
MODEL = {"layers": (2, 3, 4), "main": 4, "experts": 4}


@pytest.mark.parametrize(("count", "layers"), [(2, (2, 3)), (3, (2, 3, 4)), (4, (2, 3))])
def test_a_row_for_each_moe_layer_with_or_without_mtp_or_for_each_layer(count: int, layers: tuple[int, ...]) -> None:
    assert tuple(dealt_out((ROW,) * count, parts=2, **MODEL)) == layers  # type: ignore[arg-type]


def test_if_the_mtp_layers_are_as_many_as_the_dense_ones_rows_for_both_are_refused() -> None:
    with pytest.raises(FormatError, match=r"^expert map: 3 rows match both the MoE layers") as told:
        dealt_out((ROW,) * 3, (1, 2, 3), 3, 4, 2)
    assert told.value.hint == "write 2 rows, one per MoE layer"
    assert dealt_out((ROW,) * 2, (1, 2, 3), 3, 4, 2).keys() == {1, 2}


def test_without_dense_and_mtp_layers_both_readings_are_one() -> None:
    assert dealt_out((ROW,) * 2, (0, 1), 2, 4, 2).keys() == {0, 1}


def test_a_row_for_each_main_layer_passes_over_the_dense_ones() -> None:
    rows = ((9, 9), ROW, (3, 2, 1, 0), ROW)
    assert dealt_out(rows, (1, 2), 4, 4, 2) == {
        1: (frozenset({0, 1}), frozenset({2, 3})),
        2: (frozenset({2, 3}), frozenset({0, 1})),
    }


@pytest.mark.parametrize("count", [1, 5, 6])
def test_another_number_of_rows_is_refused(count: int) -> None:
    with pytest.raises(FormatError, match=f"^expert map: {count} rows do not match 2 MoE layers$"):
        dealt_out((ROW,) * count, parts=1, **MODEL)  # type: ignore[arg-type]


def test_an_expert_may_have_several_places() -> None:
    assert dealt_out(((0, 1, 0, 2, 0, 3),), (0,), 1, 4, 3) == {
        0: (frozenset({0, 1}), frozenset({0, 2}), frozenset({0, 3}))
    }


@pytest.mark.parametrize(
    ("row", "parts", "words"),
    [
        ((0, 1, 2, 3), 3, "layer 0: 4 places do not divide into 3 equal parts"),
        ((0, 1, 2), 1, "layer 0: expert 3 has no place, or is not one of the 4 experts"),
        ((0, 1, 2, 3, 4), 1, "layer 0: expert 4 has no place, or is not one of the 4 experts"),
        ((), 1, "layer 0: expert 0 has no place, or is not one of the 4 experts"),
    ],
)
def test_a_row_that_is_not_of_this_model(row: tuple[int, ...], parts: int, words: str) -> None:
    with pytest.raises(FormatError) as found:
        dealt_out((row,), (0,), 1, 4, parts)
    assert found.value.message == f"expert map: {words}"


@given(st.permutations(range(8)), st.sampled_from([1, 2, 4, 8]))
def test_every_place_is_dealt_out_once(row: list[int], parts: int) -> None:
    (found,) = dealt_out((tuple(row),), (0,), 1, 8, parts).values()
    assert len(found) == parts and {len(part) for part in found} == {8 // parts}
    assert frozenset().union(*found) == frozenset(range(8))
