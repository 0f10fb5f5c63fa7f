"""Rows of a table are read in bands, and nothing depends on where a band ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl.core.header import TensorRef, TensorSpec
from dsctl.verify import rows
from dsctl.verify.rows import RowsRead


def read(values: np.ndarray[tuple[int, int], np.dtype[np.uint8]], cuts: list[int]) -> RowsRead:
    ref = TensorRef("table", TensorSpec("F8_E4M3", values.shape), "file", 0, values.nbytes)
    found = RowsRead(ref)
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(values)}), len(values)]
    for begin, end in zip(edges, edges[1:], strict=False):
        found.take(np.ascontiguousarray(values[begin:end]).reshape(-1), begin)
    return found


def longest(zero: list[bool]) -> tuple[int, int]:
    """The length and the first row of the first longest run of zeros, counted one by one."""
    best, run = (0, 0), 0
    for row, is_zero in enumerate(zero):
        run = run + 1 if is_zero else 0
        if run > best[0]:
            best = run, row - run + 1
    return best


@given(st.lists(st.sampled_from([0, 0x80, 1, 0x7F, 0xFF]), min_size=1, max_size=60), st.lists(st.integers(0, 60)))
def test_runs_of_zeros_and_what_is_no_number(codes: list[int], cuts: list[int]) -> None:
    values = np.zeros((len(codes), 3), np.uint8)
    values[:, 1] = codes
    found = read(values, cuts)
    assert (found.hole, found.begin) == longest([code in (0, 0x80) for code in codes]) or not found.hole
    wrong = [row for row, code in enumerate(codes) if code in (0x7F, 0xFF)]
    assert found.bad == len(wrong)
    assert not wrong or found.first == wrong[0]


def test_only_long_runs_are_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "HOLE_ROWS", 4)
    values = np.ones((12, 8), np.uint8)
    values[3:6] = 0
    assert not list(read(values, [4]).findings())
    values[6] = 0
    (found,) = read(values, [4, 5]).findings()
    assert (found.code, found.what) == ("zero-part", "4 of 12 rows one after the other are zero: rows 3 to 6")
    values[:] = 0
    assert [one.code for one in read(values, []).findings()] == ["all-zero"]
