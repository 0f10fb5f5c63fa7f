"""The formulae of attention's costs, of latent and of compressed attention, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from dsctl.core.attention import Compressed, Latent
from dsctl.look.costs import CompressedAttention, LatentAttention, attention, costs, kept
from dsctl.look.source import describe
from dsctl.models import MODELS

MILLION = 1 << 20


def compressed(name: str) -> CompressedAttention:
    found = attention(describe(name))
    assert isinstance(found, CompressedAttention)
    return found


@pytest.mark.parametrize(
    ("name", "entries", "keys", "whole"),
    # 146 and 17 bytes in a layer of ratio 4 (584 / 4, 68 / 4), 4.5625 in one of ratio 128 (584 / 128), 0 in others.
    [
        ("v4-flash", 3157.25, 357, 3514.25),
        ("v4-flash-0731", 3157.25, 357, 3514.25),
        ("v4-pro", 4521.4375, 510, 5031.4375),
    ],
)
def test_what_a_token_adds_to_the_cache(name: str, entries: float, keys: float, whole: float) -> None:
    one = compressed(name)
    assert (one.entry_bytes(), one.entry_bytes("bf16"), one.key_bytes()) == (584, 1024, 68)
    assert (one.cache_bytes("fp8"), one.index_bytes()) == (entries, keys)
    assert one.cache_bytes("fp8") + one.index_bytes() == whole


def test_v32_takes_what_the_report_compares_with() -> None:
    before = attention(describe("v3.2"))
    assert before is not None
    assert before.cache_bytes("fp8") + before.index_bytes() == 61 * (656 + 132) == 48_068


@pytest.mark.parametrize(
    ("name", "growing", "window", "state"),
    # Values and scores in float32: 8 x 1,024 and 8 x 256 of each in a layer of ratio 4, 128 x 512 in one of ratio 128.
    [
        ("v4-flash", 3_684_958_208, 43 * 128 * 584, 21 * 8 * (8 * 1024 + 8 * 256) + 20 * 8 * 128 * 512),
        ("v4-pro", 5_275_844_608, 61 * 128 * 584, 30 * 8 * (8 * 1024 + 8 * 256) + 31 * 8 * 128 * 512),
    ],
)
def test_what_a_sequence_keeps_of_a_million_tokens(name: str, growing: int, window: int, state: int) -> None:
    one = compressed(name)
    whole = kept(one, MILLION, "fp8")
    assert (whole.entries + whole.keys, whole.window, whole.state) == (growing, window, state)
    assert whole.nbytes == sum(one.kept(layer, MILLION, "fp8").nbytes for layer in range(one.layers))


@pytest.mark.parametrize(
    ("context", "plain", "four", "many"),
    [(1, 1, 1, 1), (3, 3, 3, 3), (4, 4, 5, 4), (127, 127, 158, 127), (128, 128, 160, 129), (4096, 128, 640, 160)],
)
def test_a_query_attends_to_a_window_and_to_entries(context: int, plain: int, four: int, many: int) -> None:
    one = compressed("v4-flash")
    assert [one.attended(ratio, context) for ratio in (0, 4, 128)] == [plain, four, many]
    assert one.read_bytes(context, "fp8") == 584 * (2 * plain + 21 * four + 20 * many) + 21 * 68 * (context // 4)
    attended = 2 * plain + 21 * four + 20 * many
    assert one.work(context) == 4 * 64 * 512 * attended + 21 * 2 * 64 * 128 * (context // 4)


@pytest.mark.parametrize(("name", "work", "cache"), [("v4-pro", 27, 10), ("v4-flash", 10, 7)])
def test_shares_of_v32_are_near_those_of_the_report(name: str, work: int, cache: int) -> None:
    """arXiv 2606.19348, section 1. It counts in equivalent FP8 operations: BF16 twice, the indexer's FP4 by half."""
    before, after, one = describe("v3.2"), describe(name), compressed(name)
    old = attention(before)
    assert isinstance(old, LatentAttention)
    plain = [2 * side.active_values + cost.work(MILLION) for side, cost in ((before, old), (after, one))]
    assert plain[1] / plain[0] == pytest.approx(work / 100, abs=0.025)
    indexed = [61 * 64 * 2 * 129 * MILLION, one.sizes.counted(4) * 64 * 2 * 128 * MILLION // 4]
    weighed = [
        2 * side.active_values + 2 * (cost.work(MILLION) - index) + index * share
        for side, cost, index, share in ((before, old, indexed[0], 1), (after, one, indexed[1], 0.5))
    ]
    assert weighed[1] / weighed[0] == pytest.approx(work / 100, abs=0.008)
    held = [kept(cost, MILLION, "fp8").nbytes for cost in (old, one)]
    assert held[1] / held[0] == pytest.approx(cache / 100, abs=0.006)


@pytest.mark.parametrize(
    "changed",
    [{"sliding_window": None}, {"compress_ratios": "4"}, {"num_hidden_layers": "43"}, {"compress_ratios": [-4] * 44}],
)
def test_a_config_that_does_not_give_the_sizes_has_no_costs(changed: dict[str, Any]) -> None:
    config = {**describe("v4-flash").config, **changed}
    found = MODELS["deepseek_v4"].attention(config)
    assert found is None or not found.layers
    assert costs(None) is None


def test_models_give_the_sizes_and_nothing_else() -> None:
    assert MODELS["deepseek_v3"].attention(describe("v3").config) == Latent(61, 128, 512, 64)
    indexed = MODELS["deepseek_v32"].attention(describe("v3.2").config)
    assert indexed == Latent(61, 128, 512, 64, tuple(range(61)), 64, 128, 2048)
    shared = MODELS["glm_moe_dsa"].attention(describe("glm-5.2").config)
    assert isinstance(shared, Latent) and len(shared.indexed) == 21
    ratios = (0, 0, *[4, 128] * 20, 4)
    assert MODELS["deepseek_v4"].attention(describe("v4-flash-0731").config) == Compressed(
        ratios, 4, 64, 512, 64, 128, 64, 128, 512
    )
