"""What differences of V4.1 mean: said where they are true, with their numbers, and nothing false beside them."""

from __future__ import annotations

import pytest

from dsctl.look.diff import Diff
from dsctl.look.meanings import meanings
from dsctl.look.source import describe

COSTS = "cache-compressed work-compressed"
NEW = "halves-gained caches-shared candidates-gained entries-narrowed tables-gained"
OLD = "halves-lost caches-own tables-lost"


def said(a: str, b: str) -> dict[str, str]:
    return {one.key: one.text for one in meanings(Diff(describe(a), describe(b)))}


@pytest.mark.parametrize(
    ("a", "b", "keys"),
    [
        (
            "v4-flash",
            "v4.1-flash",
            (
                f"{NEW} head-streams-lost routed-by-score blocks-changed drafter-experts {COSTS} drafter-gained "
                "vision-gained experts chat-template"
            ),
        ),
        (
            "v4-flash-vision-exp",
            "v4.1-flash",
            f"{NEW} head-streams-lost routed-by-score blocks-changed drafter-experts {COSTS} experts",
        ),
        (
            "v4.1-flash",
            "v4-flash-0731",
            (
                f"{OLD} head-streams-gained blocks-changed drafter-experts vision-lost {COSTS} routed-by-token experts "
                "chat-template"
            ),
        ),
        (
            "v3.2",
            "v4.1-flash",
            (
                f"{NEW} blocks-changed drafter-experts {COSTS} streams-gained grouped-output experts-narrowed "
                "scales-as-bytes drafter-gained copies-gone vision-gained experts heads context chat-template"
            ),
        ),
        (
            "v4.1-flash",
            "v3.2",
            (
                f"{OLD} blocks-changed drafter-experts vision-lost {COSTS} streams-lost experts-widened drafter-lost "
                "norms-widened experts heads context chat-template"
            ),
        ),
        ("v4.1-flash", "v4.1-flash", ""),
    ],
)
def test_meanings_are_said_where_they_are_true(a: str, b: str, keys: str) -> None:
    assert list(said(a, b)) == keys.split()


def test_what_v41_is_beside_v4() -> None:
    told = said("v4-flash", "v4.1-flash")
    halves = told["halves-gained"]
    assert "only the first 20 of 40 layers" in halves and "7.9 B active values, a generated one 16.1 B" in halves
    caches = told["caches-shared"]
    assert "layers 2, 8, 14, 20 keep compressed entries, and 38 layers attend to them; in A, 41 layers" in caches
    assert "2 tokens in the caches of layers 2, 8, 14 and for one token in the cache of layer 20" in caches
    assert "of 8 layers choose, with 32 small heads" in caches and "2 layers attend only to the window" in caches
    candidates = told["candidates-gained"]
    assert "of layer 20 also chooses 16,384 candidates, and those of layers 24, 28, 32, 36 score only" in candidates
    assert "288 bytes each" in told["entries-narrowed"] and "528 bytes per token" in told["entries-narrowed"]
    tables = told["tables-gained"]
    assert "layers 1, 14" in tables and "384,006,168 and 384,016,682 rows" in tables and "202.8 GB, 40 %" in tables
    assert "24 rows of 256 values in each, 12,672 bytes in all" in tables
    assert "Cache per token: 3,514 → 890 bytes (FP8 → FP4, with indexer keys), 25.3 % of A" in told["cache-compressed"]
    assert "32 x 32 instead of 128 x 128" in told["blocks-changed"]
    assert "256 → 128; active per token: 6 → 3. Main layers of B have 384 with 6" in told["drafter-experts"]
    assert "name in config.json" not in told["vision-gained"]
    assert "3 layers of A look up" in told["routed-by-score"]


def test_the_way_back_says_what_is_lost() -> None:
    told = said("v4.1-flash", "v4-flash")
    assert "only the first 20 of 40, with 7.9 B of 16.1 B" in told["halves-lost"]
    assert "41 layers keep their own. In A, 38 layers attend to those of 4" in told["caches-own"]
    assert "layers 1, 14 are removed (202.8 GB, 40 %" in told["tables-lost"]
    assert "485 million values" in told["vision-lost"]


def test_every_meaning_has_a_source() -> None:
    diff = Diff(describe("v4-flash"), describe("v4.1-flash"))
    assert all(one.source for one in meanings(diff))
