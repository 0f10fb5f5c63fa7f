"""What differences of V4 mean: said where they are true, with their numbers, and nothing false beside them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsctl.look.diff import Diff
from dsctl.look.meanings import meanings
from dsctl.look.source import describe

COSTS = "cache-compressed work-compressed"
TEXTS = "chat-template tokens-renumbered"
GAINED = "streams-gained grouped-output routed-by-token experts-narrowed scales-as-bytes copies-gone"


def said(a: str, b: str) -> dict[str, str]:
    return {one.key: one.text for one in meanings(Diff(describe(a), describe(b)))}


@pytest.mark.parametrize(
    ("a", "b", "keys"),
    [
        (
            "v3.2",
            "v4-pro",
            f"compression-gained {COSTS} {GAINED} experts context {TEXTS}",
        ),
        (
            "v4-pro",
            "v3.2",
            (
                f"routed-by-score compression-lost {COSTS} streams-lost experts-widened norms-widened experts context "
                f"{TEXTS}"
            ),
        ),
        ("v4-flash", "v4-pro", f"compression-changed {COSTS} experts heads"),
        ("v4-flash", "v4-flash-0731", "drafter-gained"),
        ("v4-flash-0731", "v4-flash", "drafter-lost"),
        ("v4-flash-base", "v4-flash", "experts-narrowed scales-as-bytes copies-gone"),
        ("v4-flash", "v4-flash-base", "experts-widened"),
        ("v4-flash-dspark", "v4-flash-0731", "training-only"),
        ("v4-flash-0731", "v4-flash-vision-exp", "vision-gained"),
        ("kimi-k2-thinking", "kimi-k2.5", "vision-gained prefixed"),
        ("kimi-k2.7-code", "kimi-k3", "experts state-gained context"),
    ],
)
def test_meanings_are_said_where_they_are_true(a: str, b: str, keys: str) -> None:
    assert list(said(a, b)) == keys.split()


def test_what_v4_is_beside_v32() -> None:
    told = said("v3.2", "v4-pro")
    compression = told["compression-gained"]
    assert "window of the last 128 tokens" in compression and "sink" in compression
    assert "in 30 layers a query attends to the 1,024 best of the entries that stand for 4 tokens each" in compression
    assert "in 31 layers a query attends to all of the entries that stand for 128 tokens each" in compression
    assert "Cache per token: 48,068 → 5,031 bytes" in told["cache-compressed"]
    assert "10.5 % of A." in told["cache-compressed"] and "The report says 10 %." in told["cache-compressed"]
    assert "26.0 % of A;" in told["work-compressed"] and "The report says 27 %" in told["work-compressed"]
    assert "After 4,096 tokens: " in told["work-compressed"]
    assert "<think> 128798 → 128821, </think> 128799 → 128822" in told["tokens-renumbered"]
    assert "4 residual streams" in told["streams-gained"] and "24 numbers" in told["streams-gained"]
    assert "16 groups" in told["grouped-output"] and "first 3 layers" in told["routed-by-token"]
    assert "4.25 bits" in told["experts-narrowed"] and "2^(e - 127)" in told["scales-as-bytes"]


def test_the_report_is_quoted_of_what_it_speaks_of() -> None:
    flash = said("v3.2", "v4-flash")
    assert "→ 3,514 bytes" in flash["cache-compressed"] and "The report says 7 %." in flash["cache-compressed"]
    assert "The report says 10 %" in flash["work-compressed"]
    assert "2 layers attend only to the window" in flash["compression-gained"]
    for a, b in (("v3", "v4-pro"), ("v4-flash", "v4-pro"), ("v4-pro", "v3.2"), ("glm-5", "v4-flash")):
        assert not any("report says" in text for text in said(a, b).values())


def test_a_drafter_is_counted_by_its_tensors() -> None:
    told = said("v4-flash", "v4-flash-0731")["drafter-gained"]
    assert "3 stages replaces the MTP layer" in told and "19.8 billion values" in told
    assert "5 tokens at a time from the states of layers 40, 41, 42" in told
    assert "num_nextn_predict_layers still says 1" in told
    assert "still says" not in said("v2", "v4-flash-vision-exp")["drafter-gained"]
    assert "3 stages is added" in said("v2", "v4-flash-0731")["drafter-gained"]
    assert "mtp-gained" not in said("v2", "v4-flash-0731") and "mtp-gained" in said("v2", "v4-flash")


def test_experts_that_take_more_than_four_bits_need_a_field_where_they_stay_quantized() -> None:
    assert "expert_dtype in config.json" in said("v4-flash", "v4-flash-base")["experts-widened"]
    assert "expert_dtype" not in said("v4-flash", "glm-5")["experts-widened"]


def test_queries_are_compressed_as_keys_only_where_keys_are() -> None:
    assert "like keys and values" in said("v2-lite", "v2")["queries-compressed"]
    assert "like keys" not in said("v2-lite", "v4-flash")["queries-compressed"]


def test_nothing_is_said_of_a_side_without_a_config() -> None:
    bare = replace(describe("v3.2"), config={}, model=None, release=None)
    for diff in (Diff(bare, describe("v4-pro")), Diff(describe("v4-pro"), bare)):
        keys = {one.key for one in meanings(diff)}
        assert not keys & {"compression-gained", "compression-lost", "streams-gained", "streams-lost", "drafter-lost"}
