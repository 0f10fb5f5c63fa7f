"""Bars of a page: an axis that fits them, lines that are on it, every part of a whole."""

from __future__ import annotations

import pytest

from dsctl.show.drawing.lengths import fitted, rules, share, shares, stacked

GB = 10**9
MEMORIES = [80 * GB, 141 * GB, 180 * GB, 192 * GB, 256 * GB, 288 * GB]


@pytest.mark.parametrize(
    "sizes",
    [
        [700, 356, 184, 98, 55, 34],  # some longer than every line
        [98], [34], [1400, 700], [163, 85, 45, 26], [288], [12], [80], [81],
    ],
)  # fmt: skip
def test_bars_fill_more_than_half_of_the_axis(sizes: list[int]) -> None:
    held = [size * GB for size in sizes]
    axis = fitted(held, MEMORIES)
    assert min(max(held), axis) >= 0.55 * axis
    # What fits on an accelerator is never cut off.
    assert all(size <= axis for size in held if size <= max(MEMORIES))


def test_a_large_line_does_not_squash_small_bars() -> None:
    axis = fitted([70 * GB, 36 * GB], MEMORIES)
    assert 80 * GB <= axis < 90 * GB
    assert [rule.words for rule in rules({"80": 80.0 * GB, "288": 288.0 * GB}, axis)] == ["80"]


def test_bars_beyond_every_line_are_cut_where_others_are_not() -> None:
    axis = fitted([700 * GB, 184 * GB], MEMORIES)
    assert 288 * GB < axis < 330 * GB
    colours = {"weights": "red", "cache": "blue"}
    long, short = stacked(
        {"1 rank": {"weights": 690 * GB, "cache": 10 * GB}, "TP 4": {"weights": 174 * GB, "cache": 10 * GB}},
        lambda value: f"{value / GB:.0f} GB", colours, axis,
    )  # fmt: skip
    assert long.cut and not short.cut and long.words == "700 GB"
    assert sum(part.percent for part in long.parts) == pytest.approx(100)
    # A part that is cut still says its whole size.
    assert long.parts[0].words == "weights: 690 GB" and len(long.parts) == 1
    assert sum(part.percent for part in short.parts) == pytest.approx(100 * 184 * GB / axis, abs=0.01)


def test_lines_are_where_their_values_are_and_equal_ones_are_one() -> None:
    found = rules({"B": 50.0, "A": 25.0, "C": 50.0, "D": 101.0}, 100.0)
    assert [(rule.words, rule.percent) for rule in found] == [("A", 25.0), ("B, C", 50.0)]


def test_every_part_of_a_whole_has_a_bar_however_small() -> None:
    sizes = {"experts": 1e12, "attention": 1e9, "norm": 1e3, "nothing": 0.0}
    found = shares(sizes, lambda value: f"{value:.0f}", dict.fromkeys(sizes, "red"))
    assert [bar.name for bar in found] == ["experts", "attention", "norm"]
    assert found[-1].words == "1000, < 0.01 %" and all(len(bar.parts) == 1 for bar in found)
    assert (share(1, 3), share(1, 3000), share(1, 10**6)) == ("33.3 %", "0.03 %", "< 0.01 %")
