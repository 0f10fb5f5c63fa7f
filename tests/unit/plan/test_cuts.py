"""Which cuts a format can make: whole heads, equal lengths, whole blocks; and the sizes at which all can be made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl.codecs import CODECS
from dsctl.codecs.codec import Codec
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.plain import Plain
from dsctl.core.params import Family, Unit
from dsctl.layouts.ranks import Ranks
from dsctl.plan.cuts import Cut, cut_of, illegal, legal_sizes

BLOCKS = Fp8Block()
ROWS = Family("up", (768, 256), "dense mlp", True, 0)
COLUMNS = Family("down", (256, 768), "dense mlp", True, 1)
HEADS = Family("q", (768, 256), "attention", True, 0)
WHOLE = Family("norm", (7,), "norm")
SIX = (Unit(6, "heads"),)
EXPERT = Family("{layer}.{expert}.up", (256, 128), "routed experts", True, 0, layers=(0,), experts=8)


@pytest.mark.parametrize(
    ("family", "codec", "parts", "units", "why", "blocks"),
    [
        (ROWS, BLOCKS, 1, (), None, False),
        (ROWS, BLOCKS, 2, (), None, False),
        (ROWS, BLOCKS, 4, (), "192 = 1.5 x 128", True),
        (ROWS, BLOCKS, 6, (), None, False),
        (ROWS, BLOCKS, 5, (), "768 / 5", False),
        (ROWS, Plain(), 768, (), None, False),
        (ROWS, Plain(), 769, (), "768 / 769", False),
        (COLUMNS, BLOCKS, 4, (), "192 = 1.5 x 128", True),
        (COLUMNS, Fp8Block((128, 64)), 4, (), None, False),
        (ROWS, Fp8Block((64, 128)), 4, (), None, False),
        (HEADS, BLOCKS, 2, SIX, None, False),
        (HEADS, Plain(), 4, SIX, "6 heads / 4", False),
        (HEADS, Plain(), 6, (*SIX, Unit(3, "groups")), "3 groups / 6", False),
        (HEADS, Plain(), 3, (*SIX, Unit(3, "groups")), None, False),
        (HEADS, Plain(), 4, (), None, False),
        (ROWS, Plain(), 4, SIX, None, False),
        (WHOLE, Plain(), 4096, (), None, False),
        (ROWS, CODECS["int8-channel"], 5, (), "768 / 5", False),
        (ROWS, CODECS["int8-channel"], 3, (), None, False),
    ],
)
def test_why_a_cut_cannot_be_made(
    family: Family, codec: Codec, parts: int, units: tuple[Unit, ...], why: str | None, blocks: bool
) -> None:
    found = cut_of(family, codec, parts, units)
    if why is None:
        assert found is None
    else:
        dimension = family.split or 0
        assert found == Cut(family.template, dimension, family.shape[dimension], parts, why, blocks)


def test_a_large_length_is_told_with_commas() -> None:
    found = cut_of(Family("w", (129280, 2), "head", split=0), Plain(), 3, ())
    assert found is not None and found.why == "129,280 / 3"


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 20))
def test_a_cut_into_blocks_can_be_made_if_every_part_is_of_whole_blocks(blocks: int, size: int, parts: int) -> None:
    family = Family("w", (blocks * size, size), "dense mlp", True, 0)
    can = cut_of(family, Fp8Block((size, size)), parts, ()) is None
    assert can == (parts == 1 or blocks % parts == 0)


@given(st.integers(1, 300), st.integers(2, 20), st.integers(1, 16))
def test_a_ragged_matrix_can_be_cut_where_all_cuts_are_on_blocks(length: int, parts: int, size: int) -> None:
    family = Family("w", (length, size), "dense mlp", True, 0)
    can = cut_of(family, Fp8Block((size, size)), parts, ()) is None
    assert can == (length % parts == 0 and length // parts % size == 0)


def test_of_a_family_the_first_cut_is_told() -> None:
    stored = [(ROWS, BLOCKS), (ROWS, Fp8Block((64, 64))), (COLUMNS, BLOCKS)]
    assert [cut.template for cut in illegal(stored, Ranks(4), ())] == ["up", "down"]
    assert [cut.template for cut in illegal(reversed(stored), Ranks(4), ())] == ["down", "up"]


def test_experts_are_cut_over_as_many_ranks_as_share_one() -> None:
    assert not list(illegal([(EXPERT, BLOCKS)], Ranks(8, 4), ()))
    assert [cut.parts for cut in illegal([(EXPERT, BLOCKS)], Ranks(8, 2), ())] == [4]


@pytest.mark.parametrize(
    ("stored", "ep", "units", "sizes"),
    [
        ([(ROWS, BLOCKS)], 1, (), [1, 2, 3, 6]),
        ([(ROWS, Plain())], 1, (), [size for size in range(1, 129) if 768 % size == 0]),
        ([(HEADS, BLOCKS)], 1, (Unit(4, "heads"),), [1, 2]),
        ([(WHOLE, Plain())], 1, (), list(range(1, 129))),
        ([(EXPERT, BLOCKS)], None, (), [1, 2, 4, 8]),
        ([(EXPERT, BLOCKS)], 4, (), [1, 2, 4, 8]),
        ([(EXPERT, BLOCKS)], 8, (), [1, 2, 4, 8, 16]),
        ([(EXPERT, BLOCKS)], 3, (), []),
        ([], 1, (), list(range(1, 129))),
    ],
)
def test_sizes_at_which_every_cut_can_be_made(
    stored: list[tuple[Family, Codec]], ep: int | None, units: tuple[Unit, ...], sizes: list[int]
) -> None:
    assert legal_sizes(stored, ep, units) == sizes


@given(st.integers(1, 40), st.sampled_from([1, 2, 4, 8]))
def test_a_size_is_legal_if_nothing_is_illegal_about_it(size: int, ep: int) -> None:
    stored = [(ROWS, BLOCKS), (COLUMNS, BLOCKS), (EXPERT, BLOCKS)]
    ranks = Ranks(size, ep)
    fits = max(size, ep) % min(size, ep) == 0 and not list(illegal(stored, ranks, ()))
    assert (size in legal_sizes(stored, ep, ())) == fits
