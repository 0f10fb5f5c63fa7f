"""The formulae of attention whose layers share caches, against published figures and numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsctl.core.attention import SharedCaches
from dsctl.core.errors import UsageError
from dsctl.look.cache_formats import CACHE_FORMATS
from dsctl.look.capacity import Cache
from dsctl.look.costs import attention, costs, kept
from dsctl.look.halves import passed_layers, prompt_values
from dsctl.look.shared_costs import SharedAttention
from dsctl.look.source import describe
from dsctl.models import MODELS

MILLION = 1 << 20
OWNERS, INDEXERS = (2, 8, 14, 20), (2, 8, 14, 20, 24, 28, 32, 36)
FLASH = describe("v4.1-flash")


@pytest.fixture
def one() -> SharedAttention:
    found = attention(FLASH)
    assert isinstance(found, SharedAttention)
    return found


def test_the_model_gives_the_sizes() -> None:
    ratios = (0, 0, *[2] * 18, *[1] * 20)
    sizes = SharedCaches(ratios, OWNERS, INDEXERS, 20, 16_384, 64, 512, 64, 128, 32, 128, 512)
    assert MODELS["deepseek_v41"].attention(FLASH.config) == sizes


def test_a_token_adds_the_published_890_bytes(one: SharedAttention) -> None:
    """Model card of DeepSeek-V4.1-Flash. Three owners have half an entry per token, one has one."""
    assert (one.entry_bytes("fp4"), one.key_bytes()) == (512 // 2 + 512 // 16, 128 // 2 + 128 // 32) == (288, 68)
    assert one.cache_bytes("fp4") == 3 * 288 / 2 + 288 == 720
    assert one.index_bytes() == 3 * 68 / 2 + 68 == 170
    assert one.cache_bytes(one.usual) + one.index_bytes() == 890
    assert all(isinstance(each, int) for each in (one.cache_bytes("fp4"), one.index_bytes()))


@pytest.mark.parametrize(("format_", "entry", "window"), [("fp4", 288, 528), ("fp8", 528, 528), ("bf16", 1024, 1024)])
def test_formats_of_entries_and_of_the_window(one: SharedAttention, format_: str, entry: int, window: int) -> None:
    assert (one.entry_bytes(format_), one.window_bytes(format_)) == (entry, window)
    assert one.cache_bytes(format_) == 2.5 * entry
    whole = kept(one, MILLION, format_)
    assert (whole.window, whole.state) == (40 * 128 * window, 3 * 2 * 2 * 512 * 4)
    assert (whole.entries, whole.keys) == (MILLION * 5 * entry // 2, MILLION * 170)


def test_only_owners_keep_entries(one: SharedAttention) -> None:
    keep = [layer for layer in range(40) if one.kept(layer, 1000, "fp4").entries]
    assert tuple(keep) == OWNERS
    assert one.kept(2, 999, "fp4")[:2] == (288 * 499, 68 * 499)
    assert one.kept(20, 999, "fp4") == (288 * 999, 68 * 999, 528 * 128, 0)
    assert one.kept(0, 100, "fp4") == (0, 0, 528 * 100, 0)


@pytest.mark.parametrize(
    ("context", "scan", "read"),
    # GFLOP of full indexers, and MiB of cache read, of a public profile of the release for 8 K to 1 M tokens. It counts
    # the windows of 43 layers, the drafter's too.
    [(8192, 0.17, 13.69), (32_768, 0.67, 17.68), (131_072, 2.68, 33.62), (MILLION, 21.47, 182.37)],
)
def test_work_and_reads_are_those_of_a_profile(one: SharedAttention, context: int, scan: float, read: float) -> None:
    full = [layer for layer in INDEXERS if layer <= 20]
    scanned = 2 * 32 * 128 * sum(one.scored(layer, context) for layer in full)
    assert scanned == 2 * 32 * 128 * (3 * context // 2 + context)
    assert scanned / 1e9 == pytest.approx(scan, abs=0.006)
    shared = [layer for layer in range(40) if one.sizes.ratios[layer]]
    core = 4 * 64 * 512 * sum(one.attended(layer, context) for layer in shared)
    assert core == 38 * 4 * 64 * 512 * 640 and core / 1e9 == pytest.approx(3.19, abs=0.003)
    pool = 2 * 32 * 128 * sum(one.scored(layer, context) for layer in INDEXERS if layer > 20)
    assert pool == 2 * 32 * 128 * 4 * min(context, 16_384)
    # Layers 0 and 1 attend to the window alone.
    assert one.work(context) == scanned + core + pool + 2 * 4 * 64 * 512 * 128
    drafter = 3 * 128 * 528
    candidates = 4 * 68 * (16_384 - min(context, 16_384))
    assert (one.read_bytes(context, "fp4") + drafter + candidates) / 2**20 == pytest.approx(read, abs=0.006)


@pytest.mark.parametrize(
    ("context", "halved", "single"), [(1, 1, 2), (3, 4, 6), (127, 190, 254), (1000, 628, 640), (1024, 640, 640)]
)
def test_a_query_attends_to_the_window_and_the_best(
    one: SharedAttention, context: int, halved: int, single: int
) -> None:
    assert [one.attended(layer, context) for layer in (0, 5, 30)] == [min(context, 128), halved, single]


def test_a_config_without_a_second_half_passes_every_layer(one: SharedAttention) -> None:
    assert one.passed == 20
    assert replace(one, sizes=replace(one.sizes, pool_source=40)).passed == 40
    assert replace(one, sizes=replace(one.sizes, pool_source=0)).passed == 40


def test_a_prompt_passes_half_of_the_layers() -> None:
    """The published figures are 8 and 16 billion; a profile has 7,894,958,080 and 16,129,720,320 without norms,
    biases, and the keys of indexers."""
    assert passed_layers(FLASH) == 20
    prompt = prompt_values(FLASH)
    assert prompt is not None
    keys, q_weights = 4 * 128 * 512, 2 * 2 * 4 * 5120
    assert 0 < prompt - 7_894_958_080 - keys - q_weights < 500_000
    assert 0 < FLASH.active_values - 16_129_720_320 - keys - q_weights < 700_000


@pytest.mark.parametrize("name", ["v3", "v3.2", "v4-flash", "glm-5.2"])
def test_other_models_pass_every_layer(name: str) -> None:
    found = attention(describe(name))
    assert found is not None and found.passed == found.layers
    assert passed_layers(describe(name)) is None and prompt_values(describe(name)) is None


def test_a_format_in_which_no_engine_stores_the_cache_is_refused() -> None:
    for name in ("v3", "v3.2", "v4-pro"):
        with pytest.raises(UsageError, match="its KV cache is not stored in fp4") as refused:
            Cache.of(describe(name), None, 1, "fp4")
        assert refused.value.hint == "choose bf16 or fp8"
    for format_ in CACHE_FORMATS:
        assert Cache.of(FLASH, None, 1, format_).format == format_
    assert Cache.of(FLASH, None, 1, None).format == "fp4"


def test_a_config_that_does_not_give_the_sizes_has_no_costs() -> None:
    for changed in ({"candidate_block_size": None}, {"kv_source_layer_ids": [40]}, {"index_source_layer_ids": [0]}):
        assert MODELS["deepseek_v41"].attention({**FLASH.config, **changed}) is None
    assert costs(None) is None
