"""Verdicts and tokens that fit, recomputed from closed formulas; and the search for a split that fits."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import ceil

import pytest

from dsctl.layouts.ranks import Ranks, check
from dsctl.look.accelerators import ACCELERATORS, GIB, USUAL, Accelerator
from dsctl.look.capacity import Cache
from dsctl.look.description import Description
from dsctl.look.fitting import FITS, NO, SPLIT, TIGHT, Fit, Reserve, Subject, best, fit
from dsctl.look.source import describe
from dsctl.plan.formats import known_formats
from dsctl.plan.request import KEEP, Request

H200 = ACCELERATORS["h200"]
V32, FLASH = describe("v3.2"), describe("v4-flash")
# Bytes that V3.2 caches per token and layer: 512 + 64 values in BF16; an FP8 key of 128 with a float32 scale.
TOKEN = 2 * (512 + 64) + 128 + 4


def subject(
    description: Description, to: str = KEEP, context: int | None = None, batch: int = 1, reserve: Reserve | None = None
) -> Subject:
    formats = known_formats(description.contents, Request(to))
    return Subject.of(description, formats, Cache.of(description, context, batch, None), reserve or Reserve())


def fitted(one: Subject, ranks: Ranks, memory: int = H200.memory) -> Fit:
    return fit(one.load(ranks), one.cuts(ranks), one.cache, memory, one.reserve.of(memory))


def weights(description: Description, ranks: Ranks, layers: range | None = None) -> int:
    """Bytes of weights on a rank: cut once by TP or EP, whole if neither cuts; of these layers, or of all."""
    total = 0
    for group in description.known:
        share = 1 if group.family.split is None else ranks.tp
        if group.family.experts:
            share = ranks.ep * max(1, ranks.tp // ranks.ep)
        each = group.nbytes // group.count // (1 if group.family.experts else share)
        if group.family.experts:
            each = each * group.family.experts // share
        if not group.layers:
            first, last = layers is None or 0 in layers, layers is None or 60 in layers
            total += each if (last if group.family.last else first) else 0
        for layer in group.layers:
            # The MTP layer, number 61, belongs to the last stage.
            total += each if layers is None or min(layer, 60) in layers else 0
    return total


@pytest.mark.parametrize(("ranks", "copies"), [(Ranks(8), 1), (Ranks(8, 8), 1), (Ranks(4, 32), 8), (Ranks(1, 16), 16)])
def test_tokens_fill_what_weights_and_reserve_leave(ranks: Ranks, copies: int) -> None:
    """Each rank keeps 61 layers of every token of its copy; TP ranks of a copy keep the same ones."""
    room = H200.memory - ceil(H200.memory / 10) - weights(V32, ranks)
    found = fitted(subject(V32, context=4096), ranks)
    assert found.tokens == copies * (room // (61 * TOKEN)) > 0
    assert found.sequences == copies * (room // (61 * TOKEN * 4096)) > 0
    assert found.verdict == FITS


@pytest.mark.parametrize("pp", [2, 4, 8])
def test_the_fullest_stage_limits_the_tokens(pp: int) -> None:
    """61 layers over 4 stages are 16, 15, 15, 15: each stage keeps its layers of every token."""
    size, longer = divmod(61, pp)
    starts = [stage * size + min(stage, longer) for stage in range(pp + 1)]
    parts = [range(first, end) for first, end in zip(starts, starts[1:], strict=False)]
    rooms = [H200.memory - 4 * GIB - weights(V32, Ranks(8), layers) for layers in parts]
    found = fitted(subject(V32, context=1000, reserve=Reserve(4 * GIB)), Ranks(8, 1, pp))
    each = [room // (len(layers) * TOKEN) for room, layers in zip(rooms, parts, strict=True)]
    assert found.tokens == min(each)
    assert found.sequences == min(
        room // (len(layers) * TOKEN * 1000) for room, layers in zip(rooms, parts, strict=True)
    )
    assert sum(map(len, parts)) == 61 and weights(V32, Ranks(8)) == sum(weights(V32, Ranks(8), one) for one in parts)


def flash_sequence(context: int) -> int:
    """Bytes of a sequence of V4-Flash: 21 layers of ratio 4 with an indexer, 20 of ratio 128, 43 windows, states."""
    entries = 584 * (21 * (context // 4) + 20 * (context // 128))
    keys = 68 * 21 * (context // 4)
    window = 43 * 584 * min(context, 128)
    return entries + keys + window + 21 * 8 * (8 * 1024 + 8 * 256) + 20 * 8 * 128 * 512


@pytest.mark.parametrize("context", [100, 4096, 131_072, 1_048_576])
@pytest.mark.parametrize(("ranks", "copies"), [(Ranks(4), 1), (Ranks(4, 4), 1), (Ranks(2, 8), 4)])
def test_sequences_of_v4_have_a_fixed_part(context: int, ranks: Ranks, copies: int) -> None:
    one = subject(FLASH, context=context)
    room = H200.memory - ceil(H200.memory / 10) - one.load(ranks).weights
    found = fitted(one, ranks)
    assert found.sequences == copies * (room // flash_sequence(context)) > 0
    assert found.tokens == found.sequences * context


@pytest.mark.parametrize("description", [V32, FLASH], ids=["v3.2", "v4-flash"])
@pytest.mark.parametrize("ranks", [Ranks(8), Ranks(4, 8), Ranks(4, 8, 2)])
def test_the_sequences_that_fit_are_the_largest_batch_that_fits(description: Description, ranks: Ranks) -> None:
    many = fitted(subject(description), ranks).sequences
    assert many
    assert fitted(subject(description, batch=many), ranks).verdict == FITS
    assert fitted(subject(description, batch=many + ranks.copies), ranks).verdict != FITS


def test_fits_is_with_the_reserve_and_tight_without() -> None:
    one = subject(V32, reserve=Reserve(1000))
    need = one.load(Ranks(8)).nbytes
    verdicts = [fitted(one, Ranks(8), need + more) for more in (1000, 999, 0, -1)]
    assert [(each.verdict, each.left) for each in verdicts] == [(FITS, 1000), (TIGHT, 999), (TIGHT, 0), (NO, -1)]
    # The batch is one sequence: with less than the reserve left there is no room for it.
    assert [each.sequences for each in verdicts] == [1, 0, 0, 0]


@pytest.mark.parametrize("tp", [3, 32])
def test_what_cannot_be_split_never_fits(tp: int) -> None:
    found = fitted(subject(V32), Ranks(tp), 1 << 50)
    assert (found.verdict, found.tokens, found.sequences) == (SPLIT, None, None)


def test_the_best_fit_has_the_fewest_ranks() -> None:
    one = subject(V32)
    fits = {tp: fitted(one, Ranks(tp)) for tp in (2, 4, 8, 16, 32)}
    assert [each.verdict for each in fits.values()] == [NO, NO, FITS, FITS, SPLIT]
    assert best(list(fits.values())) is fits[8]
    assert best([fits[2], fits[4], fits[32]]) is fits[4]
    assert best([fits[32]]) is fits[32]
    tight = fits[4]._replace(verdict=TIGHT)
    assert best([fits[2], tight, fits[32]]) is tight and best([tight, fits[16]]) is fits[16]


def test_without_sizes_of_attention_there_are_no_tokens() -> None:
    one = subject(V32)
    unknown = replace(one, cache=replace(one.cache, attention=None))
    found = fitted(unknown, Ranks(8))
    assert (found.verdict, found.tokens, found.sequences) == (FITS, None, None)


@pytest.mark.parametrize("count", [1, 3, 6, 8, 12, 61, 64])
def test_every_possible_split_is_tried_once(count: int) -> None:
    one, found = subject(V32), []
    for tp, ep, pp in product(range(1, count + 1), repeat=3):
        ranks = Ranks(tp, ep, pp)
        if ranks.world == count and not max(tp, ep) % min(tp, ep) and not 256 % ep and pp <= 61:
            check((group.family for group in V32.known), ranks, "")
            found.append(ranks)
    splits = list(one.splits(count))
    assert len(splits) == len(set(splits)) and set(splits) == set(found)
    assert [ranks.pp for ranks in splits] == sorted(ranks.pp for ranks in splits)


def test_the_first_split_that_fits_is_chosen() -> None:
    one = subject(V32)
    assert one.hold(H200, one.splits(8)).ranks == Ranks(8)
    # TP 32 goes through the blocks of dense layers, whatever EP is.
    wide = one.hold(ACCELERATORS["l40s"], one.splits(32))
    assert wide.verdict == FITS and not one.cuts(wide.ranks) and wide.ranks.world == 32
    tried = [ranks for ranks in one.splits(32) if fitted(one, ranks, ACCELERATORS["l40s"].memory).verdict == FITS]
    assert tried[0] == wide.ranks


def test_the_nearest_split_is_chosen_if_none_fits() -> None:
    one = subject(V32)
    found = one.hold(ACCELERATORS["h100"], one.splits(8))
    tried = [fitted(one, ranks, ACCELERATORS["h100"].memory) for ranks in one.splits(8)]
    assert found.verdict == NO and found.left == max(each.left for each in tried if each.verdict != SPLIT)
    more = one.enough(ACCELERATORS["h100"], 8)
    assert more and more.verdict == FITS and more.ranks.world == 16
    assert one.enough(replaced(1 << 20), 8) is None


def test_a_split_with_cuts_is_no_fit() -> None:
    one = subject(V32)
    found = one.hold(replaced(1 << 50), [Ranks(3)])
    assert (found.verdict, found.tokens, found.sequences) == (SPLIT, None, None)


def replaced(memory: int) -> Accelerator:
    return H200.holding(memory, "given")


def test_sizes_that_work_have_no_cuts() -> None:
    one = subject(V32)
    assert one.sizes(1) == [1, 2, 4, 8, 16]
    assert one.sizes(32) == [1, 2, 4, 8, 16]
    assert all(not one.cuts(Ranks(tp)) for tp in one.sizes(1))


@pytest.mark.parametrize(
    ("reserve", "memory", "free"),
    [(Reserve(), 1005, 101), (Reserve(5), 1000, 5), (Reserve(share=Fraction(0)), 7, 0), (Reserve(0), 7, 0)],
)
def test_a_reserve_is_bytes_or_a_share(reserve: Reserve, memory: int, free: int) -> None:
    assert reserve.of(memory) == free


def test_the_table_of_accelerators_has_sources_and_sensible_numbers() -> None:
    assert len(ACCELERATORS) >= 20 and set(USUAL) < set(ACCELERATORS)
    for key, one in ACCELERATORS.items():
        assert key == one.key == key.lower() and one.source and one.label and one.bandwidth
        # A label is GB or GiB in name; a process gets at most the GiB, and not much less than the GB.
        assert 0.92 * one.label * 10**9 < one.memory <= 1.01 * one.label * GIB, key
        assert one.fp8 or not one.fp4
        words = one.source.startswith(("total capacity in an out-of-memory message", "the limit that XLA prints"))
        assert words != one.source.startswith("estimated:")
    names = [one.name for one in ACCELERATORS.values()]
    assert len(set(names)) == len(names)
    assert ACCELERATORS["h100"].memory == round(79.18 * GIB) and ACCELERATORS["gh200-144"].memory == 153_008_209_920
    assert ACCELERATORS["gaudi3"].memory == (131_072 - 4096) << 20
