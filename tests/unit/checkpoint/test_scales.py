"""Scales are read as numbers, in few requests, and impossible ones are told with their block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl.checkpoint import scales
from dsctl.checkpoint.scales import (
    GAP_BYTES,
    LOOKED_AT,
    ScaleCounts,
    are_powers_of_two,
    as_float32,
    bad_scale,
    read_scales,
    refuse_bad_box,
    refuse_bad_scales,
    scales_to_check,
)
from dsctl.codecs import CODECS
from dsctl.core.boxes import Box
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorRef, TensorSpec
from dsctl.stores.local import LocalFolder

INF, NAN = math.inf, math.nan


class Kept:
    """A store of one file in memory, which remembers what it was asked for."""

    place = "kept"

    def __init__(self, raw: bytes, remote: bool = False) -> None:
        self.raw, self.remote = raw, remote
        self.asked: list[tuple[str, int, int]] = []

    def read(self, file: str, begin: int, end: int) -> bytes:
        self.asked.append((file, begin, end))
        return self.raw[begin:end]


def _ref(begin: int, count: int = 4, file: str = "a", dtype: str = "F32") -> TensorRef:
    spec = TensorSpec(dtype, (count, 1))
    return TensorRef(f"{file}:{begin}", spec, file, begin, begin + spec.nbytes)


@pytest.mark.parametrize(
    ("raw", "dtype", "value"),
    [
        (b"\x00\x00\x80\x3f", "F32", 1.0),
        (b"\x00\x3c", "F16", 1.0),
        (b"\x80\x3f", "BF16", 1.0),
        (b"\x7f", "F8_E8M0", 1.0),
        (b"\x80", "U8", 2.0),
        (b"\x00", "F8_E8M0", 2.0**-127),
        (b"\xfe", "F8_E8M0", 2.0**127),
        (b"\xff", "F8_E8M0", NAN),
        (b"\xff", "U8", NAN),
        (b"\x38", "F8_E4M3", 1.0),
        (b"\x7e", "F8_E4M3", 448.0),
        (b"\x01", "F8_E4M3", 2.0**-9),
        (b"\x00", "F8_E4M3", 0.0),
        (b"\xb8", "F8_E4M3", -1.0),
        (b"\x7f", "F8_E4M3", NAN),
        (b"\xff", "F8_E4M3", NAN),
        (b"\x80\x7f", "BF16", INF),
    ],
)
def test_what_a_stored_scale_means(raw: bytes, dtype: str, value: float) -> None:
    (found,) = as_float32(raw, dtype)
    assert found.dtype == np.float32
    assert np.isnan(found) if math.isnan(value) else found == value


@pytest.mark.parametrize("dtype", ["I32", "F64", "F8_E5M2"])
def test_scales_of_another_dtype_are_refused(dtype: str) -> None:
    with pytest.raises(FormatError, match=f"^scales stored as {dtype} are not supported$"):
        as_float32(b"\0" * 8, dtype)


def test_neighbours_are_read_together() -> None:
    store = Kept(bytes(1 << 20))
    refs = [_ref(16), _ref(0), _ref(32 + GAP_BYTES), _ref(49 + 2 * GAP_BYTES)]
    found = list(read_scales(store, refs))  # type: ignore[arg-type]
    assert [ref.begin for ref, _ in found] == sorted(ref.begin for ref in refs)
    assert store.asked == [("a", 0, 48 + GAP_BYTES), ("a", 49 + 2 * GAP_BYTES, 65 + 2 * GAP_BYTES)]


def test_no_run_is_longer_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scales, "RUN_BYTES", 40)
    store = Kept(bytes(1 << 10))
    list(read_scales(store, [_ref(16 * number) for number in range(5)]))  # type: ignore[arg-type]
    assert store.asked == [("a", 0, 32), ("a", 32, 64), ("a", 64, 80)]


def test_files_are_read_apart() -> None:
    store = Kept(bytes(64))
    list(read_scales(store, [_ref(0, file="b"), _ref(16), _ref(0)]))  # type: ignore[arg-type]
    assert store.asked == [("a", 0, 32), ("b", 0, 16)]


def test_nothing_is_read_for_no_scales() -> None:
    store = Kept(b"")
    assert list(read_scales(store, [])) == [] and store.asked == []  # type: ignore[arg-type]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 6)), max_size=20), st.booleans())
def test_each_scale_has_the_values_of_its_place(gaps: list[tuple[int, int]], remote: bool) -> None:
    numbers = np.arange(1 << 14, dtype="<f4")
    refs, at = [], 0
    for gap, count in gaps:
        refs.append(_ref(at + 4 * gap, count))
        at = refs[-1].end
    found = dict(read_scales(Kept(numbers.tobytes(), remote), reversed(refs)))  # type: ignore[arg-type]
    assert set(found) == set(refs)
    for ref, values in found.items():
        assert values.shape == ref.spec.shape
        assert values.ravel().tolist() == numbers[ref.begin // 4 : ref.end // 4].tolist()


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ([[1, 2], [3, 4]], None),
        ([[1, 0], [3, 4]], (0, 1)),
        ([[1, 2], [-3, 0]], (1, 0)),
        ([[1, 2], [3, INF]], (1, 1)),
        ([[NAN, 2], [3, 4]], (0, 0)),
        ([1, 2, -1], (2, 0)),
        ([1e-40], None),
        (np.zeros((0, 3)), None),
    ],
)
def test_the_first_scale_that_cannot_be_one(values: Sequence[float], place: tuple[int, int] | None) -> None:
    array = np.array(values, dtype=np.float32)
    ref = TensorRef("s", TensorSpec("F32", array.shape), "f", 0, array.nbytes)
    found = bad_scale(ref, array)
    assert (None if found is None else (found.row, found.column)) == place


def test_only_nvfp4_s_scales_may_be_zero() -> None:
    array = np.zeros((2, 2), np.float32)
    assert bad_scale(_ref(0, dtype="F8_E4M3"), array) is None
    assert bad_scale(_ref(0), array) is not None
    assert bad_scale(_ref(0, dtype="F8_E4M3"), -np.ones((2, 2), np.float32)) is not None


def test_bad_scales_are_refused_with_all_of_them(tmp_path: Path) -> None:
    values = np.array([1, 0, 1, 1, 1, 1, NAN, 1, 1, 1, 1, 1], "<f4")
    (tmp_path / "a").write_bytes(values.tobytes())
    refs = [_ref(0), _ref(16), _ref(32)]
    with pytest.raises(FormatError, match=r"^2 scale tensors hold impossible scales$") as found:
        refuse_bad_scales(LocalFolder.at(tmp_path), refs)
    assert found.value.issues == (
        "a:0: scale of block [1, 0] is 0 (in a)",
        "a:16: scale of block [2, 0] is nan (in a)",
    )
    with pytest.raises(FormatError, match=r"^a:0: scale of block \[1, 0\] is 0 \(in a\)$"):
        refuse_bad_scales(LocalFolder.at(tmp_path), refs[:1])
    refuse_bad_scales(LocalFolder.at(tmp_path), refs[2:])


@pytest.mark.parametrize(
    ("values", "powers"),
    [
        ([1, 2, 0.25, 2.0**-149, 2.0**127], True),
        ([1, 3], False),
        ([0.0], False),
        ([NAN], False),
        ([-2], False),
        ([], True),
    ],
)
def test_powers_of_two(values: list[float], powers: bool) -> None:
    assert are_powers_of_two(np.array(values, np.float32)) is powers


def test_counts_by_the_power_of_two_below() -> None:
    found = ScaleCounts.of(np.array([1, 1.5, 2, 0.3, 0, INF, NAN, -1], np.float32))
    assert (found.number, found.powers, found.bins) == (8, 2, {0: 2, 1: 1, -2: 1})


@given(st.lists(st.floats(2**-100, 2**100, width=32), max_size=20), st.integers(0, 20))
def test_counts_add_up(values: list[float], cut: int) -> None:
    array = np.array(values, np.float32)
    both = ScaleCounts.of(array[:cut])
    both.add(ScaleCounts.of(array[cut:]))
    assert both == ScaleCounts.of(array) and sum(both.bins.values()) == len(values)


@pytest.mark.parametrize(
    ("dtype", "raw", "told"),
    [
        ("F8_E8M0", b"\x01\xfe\x00\xff", r"scale of block \[5, 3\] is nan \(the byte 255\) \(in f\)$"),
        ("U8", b"\x01\xff\x00\x01", r"scale of block \[4, 3\] is nan \(the byte 255\)"),
        ("F32", np.array([1, 2, -4, 1], "<f4").tobytes(), r"scale of block \[5, 2\] is -4"),
        ("BF16", np.array([1, 2, INF, 1], "<f4").view("<u2")[1::2].tobytes(), r"scale of block \[5, 2\] is inf"),
        ("F32", np.array([120, 121, 119, 120], "<f4").tobytes(), "holds the bytes of E8M0 scales as F32 numbers"),
    ],
)
def test_a_bad_scale_of_a_box_is_told_by_its_place_in_the_whole(dtype: str, raw: bytes, told: str) -> None:
    ref = TensorRef("s", TensorSpec(dtype, (8, 4)), "f", 0, 0)
    with pytest.raises(FormatError, match=told) as found:
        refuse_bad_box(ref, Box((4, 2), (6, 4)), memoryview(raw))
    assert found.value.hint


def test_good_scales_of_a_box_are_no_reason_to_refuse() -> None:
    box = Box((4, 2), (6, 4))
    for dtype, raw in (("F8_E8M0", b"\x00\xfe\x7f\x01"), ("F8_E4M3", b"\x00\x01\x7e\x38"), ("F32", np.ones(4, "<f4"))):
        ref = TensorRef("s", TensorSpec(dtype, (8, 4)), "f", 0, 0)
        refuse_bad_box(ref, box, memoryview(raw).cast("B"))
    refuse_bad_box(TensorRef("s", TensorSpec("U8", (0, 4)), "f", 0, 0), Box((0, 0), (0, 4)), memoryview(b""))


@pytest.mark.parametrize(
    ("each", "looked_at"), [(LOOKED_AT // 2, {"block", "group", "another", "whole"}), (LOOKED_AT, {"block", "whole"})]
)
def test_group_scales_are_left_out_only_where_there_are_too_many(each: int, looked_at: set[str]) -> None:
    groups, blocks = CODECS["mxfp4"], CODECS["fp8-block"]
    refs = {
        TensorRef("block", TensorSpec("F32", (2 * LOOKED_AT // 4,)), "f", 0, 2 * LOOKED_AT): blocks,
        TensorRef("group", TensorSpec("U8", (each,)), "f", 0, each): groups,
        TensorRef("another", TensorSpec("U8", (each,)), "f", 0, each): groups,
        TensorRef("whole", TensorSpec("F32", (1,)), "f", 0, 4): CODECS["nvfp4"],
    }
    assert {ref.name for ref in scales_to_check(refs)} == looked_at
