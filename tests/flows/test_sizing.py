"""`dsctl plan`: bytes per rank add up, cuts agree with the codecs, and disk with what a conversion plans."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsctl.checkpoint.checkpoint import ORIGINAL
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.codecs import CODECS
from dsctl.core.errors import PlanError, UsageError
from dsctl.layouts.ranks import Ranks
from dsctl.look.accelerators import ACCELERATORS
from dsctl.look.capacity import Cache, cuts, disk, kept_scales, load, nbytes, stage_of, stored
from dsctl.look.description import Description
from dsctl.look.source import describe
from dsctl.plan.formats import Formats, known_formats
from dsctl.plan.planner import make_plan
from dsctl.plan.recipes import ready
from dsctl.plan.request import KEEP, Request
from dsctl.stores.local import LocalFolder
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl, dsctl_fails

V32 = describe("v3.2")
MLP = "model.layers.{layer}.mlp."


def chosen(described: Description, to: str = KEEP) -> Formats:
    return known_formats(described.contents, Request(to))


def facts(*words: str) -> dict[str, Any]:
    return json.loads(dsctl("plan", *words, "--json"))


def cache(batch: int = 1, context: int = 1000, format_: str = "bf16") -> Cache:
    return Cache.of(V32, context, batch, format_)


@pytest.mark.parametrize("to", ["bf16", "fp8-block"])
@pytest.mark.parametrize("bf16", [False, True])
def test_disk_is_what_a_conversion_plans(to: str, bf16: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tiny(tmp_path_factory, bf16=bf16)
    plan = make_plan(open_checkpoint(LocalFolder.at(folder)), Request(to=to))
    described, weights = describe(str(folder)), [file for file in plan.files if file.name != ORIGINAL]
    kept_aside = kept_scales(described, chosen(described, to))
    tensors = sum(file.size - len(file.header) for file in weights)
    assert disk(described, chosen(described, to)) == tensors + kept_aside
    assert bool(kept_aside) == (len(weights) < len(plan.files))


RECIPE = """
[[rule]]
match = "model.layers.1.*"
format = "int8-group"

[[rule]]
role = "attention"
format = "{0}"

[[rule]]
role = "indexer"
format = "bf16"
"""


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("asked", [*ready(), "bf16", "fp8-block-ct", "int4-group", "mxfp8", "nvfp4"])
def test_bytes_by_role_are_what_a_conversion_plans(
    asked: str, bf16: bool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, recipe = tiny(tmp_path_factory, bf16=bf16), tmp_path / "some.toml"
    recipe.write_text(RECIPE.format(asked))
    options = ("--recipe", asked) if asked in ready() else ("--recipe", recipe)
    planned, name = json.loads(dsctl("convert", folder, tmp_path / "out", *options, "--dry-run", "--json")), options[1]
    told = facts(str(folder), *map(str, options))["formats"][Path(name).stem]
    assert told["roles"] == planned["roles"]


def test_a_recipe_that_a_conversion_would_refuse_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "split.toml"
    recipe.write_text('[[rule]]\nmatch = "*.gate_proj.weight"\nformat = "int4-group"\n')
    assert dsctl_fails("plan", "v3", "--recipe", recipe) == PlanError.exit_code
    recipe.write_text('[[rule]]\nmatch = "nothing"\nformat = "int4-group"\n')
    assert dsctl_fails("plan", "v3", "--recipe", recipe) == PlanError.exit_code
    assert dsctl_fails("plan", "v3", "--recipe", "unknown") == UsageError.exit_code


def test_one_rank_holds_everything() -> None:
    assert load(V32, Ranks(), chosen(V32), cache()).weights == V32.nbytes
    assert load(V32, Ranks(), chosen(V32), cache(3, 500)).cache == 61 * (1152 + 132) * 1500


@pytest.mark.parametrize("tp", [2, 4, 8, 16])
def test_ranks_together_hold_what_is_cut_once_and_the_rest_on_each(tp: int) -> None:
    whole = sum(group.nbytes for group in V32.groups if group.family.split is None)
    cut = sum(group.nbytes for group in V32.groups if group.family.split is not None)
    assert load(V32, Ranks(tp), chosen(V32), cache()).weights == whole + cut // tp


def test_latents_are_whole_on_every_tensor_parallel_rank() -> None:
    assert load(V32, Ranks(8), chosen(V32), cache()).cache == load(V32, Ranks(), chosen(V32), cache()).cache
    copies = load(V32, Ranks(4, 32), chosen(V32), cache(batch=16))
    assert copies.ranks.copies == 8 and copies.cache == 2 * 1000 * 61 * (1152 + 132)


@pytest.mark.parametrize(("tp", "ep", "experts"), [(8, 8, 32), (8, 2, 128), (4, 64, 4), (1, 16, 16)])
def test_experts_are_dealt_out_whole_or_cut_over_what_is_left(tp: int, ep: int, experts: int) -> None:
    ranks = Ranks(tp, ep)
    whole = sum(g.nbytes for g in V32.groups if g.family.split is None)
    dense = sum(g.nbytes for g in V32.groups if g.family.split is not None and not g.family.experts)
    routed = sum(g.nbytes for g in V32.groups if g.family.experts)
    cut = max(1, tp // ep)
    assert load(V32, ranks, chosen(V32), cache()).weights == whole + dense // tp + routed * experts // 256 // cut


def test_stages_are_runs_of_layers_as_equal_as_can_be() -> None:
    stages = stage_of(V32, 4)
    assert [sum(stage == n for stage in stages.values()) for n in range(4)] == [16, 15, 15, 15]
    assert list(stages.values()) == sorted(stages.values())
    loads = [load(V32, Ranks(pp=pp), chosen(V32), cache()).weights for pp in (1, 2, 4, 61)]
    assert loads == sorted(loads, reverse=True)
    assert loads[1] >= V32.nbytes / 2


def test_tp_32_cuts_blocks_and_names_the_tensors() -> None:
    found = {cut.template.removeprefix(MLP): cut for cut in cuts(V32, Ranks(32), chosen(V32))}
    dense = {f"{name}_proj.weight" for name in ("gate", "up", "down")}
    nested = {f"{part}{name}" for part in ("shared_experts.", "experts.{expert}.") for name in dense}
    assert set(found) == dense | nested
    assert found["down_proj.weight"][1:] == (1, 18432, 32, "576 = 4.5 x 128", True)
    assert not list(cuts(V32, Ranks(32), chosen(V32, "bf16")))


@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16])
def test_smaller_sizes_cut_no_block(tp: int) -> None:
    assert not list(cuts(V32, Ranks(tp), chosen(V32)))


def test_expert_parallel_keeps_experts_whole() -> None:
    assert not [cut for cut in cuts(V32, Ranks(32, 32), chosen(V32)) if "experts.{expert}" in cut.template]


def test_heads_are_never_cut() -> None:
    lite = describe("v2-lite")
    assert {cut.why for cut in cuts(lite, Ranks(32), chosen(lite))} == {"16 heads / 32"}


def test_a_ragged_last_block_stays_with_the_last_rank() -> None:
    """576 rows in blocks of 128 are four and a half: cut in two at 288 they are refused, whole they are not."""
    family = next(g for g in V32.groups if "kv_a_proj_with_mqa" in g.family.template)
    assert nbytes(family.codec, (576, 7168)) == 576 * 7168 + 5 * 56 * 4
    assert {codec for group, codec in stored(V32, chosen(V32, "bf16")) if group is family} == {CODECS["bf16"]}


def test_the_report_agrees_with_itself() -> None:
    found = facts("v3.2", "--context", "32768", "--batch", "4", "--gpu", "h200", "--to", "bf16")
    assert found["cache"] == {
        "format": "bf16",
        "index_format": "fp8",
        "latent_bytes_per_token": 70_272,
        "index_bytes_per_token": 8_052,
        "latent_bytes": 70_272 * 131_072,
        "index_bytes": 8_052 * 131_072,
        "window_bytes_per_sequence": 0,
        "state_bytes_per_sequence": 0,
        "window_bytes": 0,
        "state_bytes": 0,
        "bytes": (70_272 + 8_052) * 131_072,
    }
    ranks = found["formats"]["as stored"]["ranks"]
    assert [rank["tp"] for rank in ranks] == [1, 2, 4, 8, 16, 32]
    (h200,) = found["accelerators"]
    fit = h200["formats"]["as stored"]
    chosen = next(rank for rank in ranks if rank["tp"] == fit["tp"])
    assert fit["fits"] and fit["left_bytes"] == h200["memory_bytes"] - chosen["bytes"] >= 0
    assert all(rank["bytes"] > h200["memory_bytes"] for rank in ranks if rank["tp"] < fit["tp"])


def test_what_does_not_fit_says_by_how_much() -> None:
    found = facts("v3.2", "--tp", "2", "--gpu", "h100")
    fit = found["accelerators"][0]["formats"]["as stored"]
    (rank,) = found["formats"]["as stored"]["ranks"]
    assert fit == {"fits": False, "why": "memory", "short_bytes": rank["bytes"] - ACCELERATORS["h100"].memory}


def test_what_cannot_be_cut_does_not_fit_whatever_its_bytes() -> None:
    """V3.2 over three ranks: 128 heads and 129,280 rows do not divide, though 231 GB each would go into an MI325X."""
    found = facts("v3.2", "--tp", "3")
    (rank,) = found["formats"]["as stored"]["ranks"]
    assert rank["cuts"] and rank["bytes"] < ACCELERATORS["mi325x"].memory
    fits = {one["name"]: one["formats"]["as stored"] for one in found["accelerators"]}
    assert all(fit["fits"] is False and fit["why"] == "cuts" for fit in fits.values())
    assert fits["MI325X"]["short_bytes"] == 0 < fits["H100 SXM"]["short_bytes"]
    text = dsctl("plan", "v3.2", "--tp", "3")
    assert "no, cannot be cut so" in text and " left" not in text.replace("what is left", "")


def test_a_size_with_cuts_gives_way_to_a_larger_one_without() -> None:
    """V2-Lite as FP8 blocks is cut through blocks at every TP but one."""
    found = facts("v2-lite", "--to", "fp8-block", "--context", "1024", "--gpu", "h100")
    fit = found["accelerators"][0]["formats"]["fp8-block"]
    assert fit["fits"] and fit["tp"] == 1
    refused = facts("v2-lite", "--to", "fp8-block", "--tp", "2", "--gpu", "h100")["accelerators"][0]["formats"]
    assert refused["fp8-block"] == {"fits": False, "why": "cuts", "short_bytes": 0} and refused["as stored"]["fits"]


@pytest.mark.parametrize(
    ("source", "published"), [("v2", 131_072), ("v2-lite", 32_768), ("v3", 131_072), ("r1", 131_072), ("v3.2", 131_072)]
)
def test_the_published_context_is_the_default_and_both_figures_are_named(source: str, published: int) -> None:
    found = facts(source)
    assert (found["context"], found["context_from"]) == (published, "published")
    assert (found["published_context"], found["max_position_embeddings"]) == (published, 163_840)
    text = dsctl("plan", source)
    assert f"{published:,} tokens are published" in text and "163,840" in text and "max_position_embeddings" in text


def test_a_context_that_is_not_published_is_that_of_the_config(tmp_path_factory: pytest.TempPathFactory) -> None:
    asked = facts("v3.2", "--context", "1000")
    assert (asked["context"], asked["context_from"], asked["published_context"]) == (1000, "asked", 131_072)
    folder = facts(str(tiny(tmp_path_factory)))
    assert (folder["context"], folder["context_from"]) == (163_840, "max_position_embeddings")
    assert folder["published_context"] is None
    shorter = Cache.of(replace(V32, config={**V32.config, "max_position_embeddings": 4_000}), None, 1, "bf16")
    assert (shorter.context, shorter.why) == (4_000, "max_position_embeddings")
    unsaid = Cache.of(replace(V32, release=None, config={}), None, 1, "bf16")
    assert (unsaid.context, unsaid.why) == (4_096, "default")


@pytest.mark.parametrize(("source", "row"), [("v3", 576), ("r1", 576), ("v3.1", 576), ("v3.2", 656), ("v2", 576)])
def test_fp8_caches_have_a_row_per_kind_of_attention(source: str, row: int) -> None:
    """vLLM 0.32: mla_attention.py, one byte for each of 512 + 64 values; flashmla_sparse.py, 512 + 4 x 4 + 2 x 64."""
    layers = describe(source).config["num_hidden_layers"]
    assert facts(source, "--kv", "fp8")["cache"]["latent_bytes_per_token"] == row * layers


@pytest.mark.parametrize(
    ("source", "latents", "keys", "window", "state"),
    [
        ("v4-flash", 3157.25, 357, 43 * 128 * 584, 12_206_080),
        ("v4-pro", 4521.4375, 510, 61 * 128 * 584, 18_710_528),
    ],
)
def test_compressed_caches_grow_and_have_a_fixed_part(
    source: str, latents: float, keys: float, window: int, state: int
) -> None:
    found = facts(source, "--tp", "8", "--batch", "3")
    tokens, kept = 3 * 1_048_576, found["cache"]
    assert found["context"] == 1_048_576 and (kept["format"], kept["index_format"]) == ("fp8", "fp4")
    assert (kept["latent_bytes_per_token"], kept["index_bytes_per_token"]) == (latents, keys)
    assert (kept["latent_bytes"], kept["index_bytes"]) == (latents * tokens, keys * tokens)
    assert (kept["window_bytes"], kept["state_bytes"]) == (3 * window, 3 * state)
    # All heads share it: every tensor-parallel rank keeps the whole.
    (rank,) = found["formats"]["as stored"]["ranks"]
    assert rank["cache_bytes"] == kept["bytes"] == (latents + keys) * tokens + 3 * (window + state)
    assert facts(source, "--tp", "8", "--kv", "bf16")["cache"]["latent_bytes_per_token"] > latents


@pytest.mark.parametrize("source", ["v4-flash", "v4-pro", "v4-flash-0731"])
def test_ranks_of_v4_hold_their_part_of_what_is_cut(source: str) -> None:
    """Dimensions and ranges of experts as deepseek-ai/DeepSeek-V4-Flash inference/convert.py cuts them."""
    described = describe(source)
    names = ("embed.weight", "head.weight", "wq_b.weight", "wo_a.weight", "wo_b.weight", "attn_sink")
    cut = ("weights_proj.weight", "markov_w1.weight", "markov_w2.weight", *names)
    apart = [g for g in described.groups if g.family.experts or g.family.template.endswith(cut)]
    whole = described.nbytes - sum(group.nbytes for group in apart)
    for ranks in (Ranks(8), Ranks(8, 8)):
        held = load(described, ranks, chosen(described), Cache.of(described, 1, 1, None)).weights
        assert held == whole + sum(group.nbytes for group in apart) // 8


def test_each_copy_keeps_the_caches_of_its_share_of_the_batch() -> None:
    """With more expert-parallel ranks than tensor-parallel ones, each copy serves a share of the batch."""
    described = describe("v4-flash")
    one = Cache.of(described, 4096, 1, None)
    each = load(described, Ranks(), chosen(described), one).cache
    many = Cache.of(described, 4096, 16, None)
    assert load(described, Ranks(4, 32), chosen(described), many).cache == 2 * each == 2 * one.sequence.nbytes


def test_scales_that_follow_from_values_are_not_kept() -> None:
    """The scales of V4-Flash's experts would be 8.9 GB; its BF16 values take 581,975,531,080 bytes."""
    described = describe("v4-flash")
    to = chosen(described, "bf16")
    assert disk(described, to) - kept_scales(described, to) == 581_975_531_080
    assert kept_scales(described, to) < 1 << 20


def test_every_accelerator_has_its_source() -> None:
    assert all(one.source and one.memory % 10**9 == 0 for one in ACCELERATORS.values())


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("v3.2", "--tp", "8", "--ep", "3"), 2),
        (("v3.2", "--ep", "512"), 30),
        (("v3.2", "--pp", "62"), 30),
        (("v3.2", "--gpu", "abacus"), 2),
        (("v3.2", "--to", "fp7"), 2),
        (("v3.2", "--kv", "int1"), 2),
        (("not-there",), 10),
    ],
)
def test_impossible_wishes_are_refused(words: tuple[str, ...], code: int) -> None:
    assert dsctl_fails("plan", *words) == code


def test_a_folder_is_planned_like_a_release(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder: Path = tiny(tmp_path_factory)
    found = facts(str(folder))
    assert found["formats"]["as stored"]["disk_bytes"] == describe(str(folder)).nbytes


@pytest.mark.parametrize(("option", "fits"), [(("--ep", 7), "8, 16"), (("--pp", 62), "--pp 61")])
def test_sizes_that_do_not_fit_get_those_that_do(option: tuple[str, int], fits: str) -> None:
    done = call("plan", "v3", *option)
    assert done.returncode == 30 and fits in done.stderr.partition("hint: ")[2]
