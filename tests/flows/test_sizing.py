"""`dsctl plan`: bytes per rank add up, cuts agree with the codecs, and disk with what a conversion plans."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dsctl.checkpoint.checkpoint import ORIGINAL
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.codecs import CODECS
from dsctl.core.errors import PlanError, UsageError, VerifyFailed
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
from tests.support.checkpoints import smaller
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
    folder = smaller(tmp_path_factory, bf16=bf16)
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
    folder, recipe = smaller(tmp_path_factory, bf16=bf16), tmp_path / "some.toml"
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
        "window_format": None,
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
    assert fit["fits"] and fit["left_bytes"] == h200["memory_bytes"] - chosen["bytes"] >= h200["reserve_bytes"]
    assert all(rank["bytes"] > h200["memory_bytes"] for rank in ranks if rank["tp"] < fit["tp"])
    assert [one["tp"] for one in fit["spreads"]] == [rank["tp"] for rank in ranks]
    assert {**fit["spreads"][3], "spreads": fit["spreads"]} == fit and fit["verdict"] == "fits"
    assert h200["reserve_bytes"] == -(-h200["memory_bytes"] // 10)
    assert found["reserve"] == {"bytes": None, "share": 0.1, "from": "default"}


def test_what_does_not_fit_says_by_how_much() -> None:
    found = facts("v3.2", "--tp", "2", "--gpu", "h100")
    fit = found["accelerators"][0]["formats"]["as stored"]
    (rank,) = found["formats"]["as stored"]["ranks"]
    assert fit.pop("spreads") == [fit]
    assert fit == {
        "verdict": "no",
        "fits": False,
        "why": "memory",
        "tp": 2,
        "ep": 1,
        "pp": 1,
        "world": 2,
        "left_bytes": None,
        "short_bytes": rank["bytes"] - ACCELERATORS["h100"].memory,
        "tokens": 0,
        "sequences": 0,
    }


def test_what_cannot_be_split_does_not_fit_in_any_memory() -> None:
    """V3.2 over three ranks: 128 heads and 129,280 rows do not divide, though 231 GB each would go into an MI355X."""
    done = call("plan", "v3.2", "--tp", "3", "--gpu", "mi355x", "--gpu", "h100", "--json")
    found = json.loads(done.stdout)
    (rank,) = found["formats"]["as stored"]["ranks"]
    assert rank["cuts"] and rank["bytes"] < ACCELERATORS["mi355x"].memory
    fits = {one["name"]: one["formats"]["as stored"] for one in found["accelerators"]}
    assert all((fit["verdict"], fit["fits"], fit["why"]) == ("cannot be split", False, "cuts") for fit in fits.values())
    assert all(fit["left_bytes"] is fit["tokens"] is fit["sequences"] is None for fit in fits.values())
    assert fits["MI355X"]["short_bytes"] == 0 < fits["H100 SXM"]["short_bytes"]
    for words in ((), ("--gpu", "h100")):
        text = call("plan", "v3.2", "--tp", "3", *words).stdout
        assert "cannot be split" in text and " left" not in text and "Per rank" not in text


@pytest.mark.parametrize(
    ("words", "reason", "sizes"),
    [
        (("v3.2", "--tp", "3"), "TP 3: 129,280 / 3, 128 heads / 3, 2,048 / 3", "as stored: 1, 2, 4, 8, 16; bf16: 1"),
        (("v3.2", "--tp", "32", "--to", "fp8-block"), "576 = 4.5 x 128", "fp8-block: 1, 2, 4, 8, 16"),
        (("v4-flash", "--tp", "16"), "8 output groups / 16", "as stored: 1, 2, 4, 8; bf16: 1, 2, 4, 8; fp8-block"),
    ],
)
def test_sizes_that_split_no_format_are_refused_after_the_report(
    words: tuple[str, ...], reason: str, sizes: str
) -> None:
    done, in_json = call("plan", *words), call("plan", *words, "--json")
    assert done.returncode == in_json.returncode == PlanError.exit_code and done.stdout and in_json.stdout
    error, _, hint = done.stderr.partition("hint: ")
    assert reason in error and sizes in hint
    error = json.loads(in_json.stderr)["error"]
    assert reason in error["message"] and sizes in error["hint"]


def test_one_format_that_can_be_split_is_enough() -> None:
    """TP 32 goes through the blocks of FP8, but BF16 has none; and the usual sizes were not asked for."""
    assert "Fits as stored?   no: TP 32 cannot be split" in dsctl("plan", "v3.2", "--tp", "32")
    assert "23.7 GB*" in dsctl("plan", "v3.2")


def test_a_size_with_cuts_gives_way_to_a_larger_one_without() -> None:
    """V2-Lite as FP8 blocks is cut through blocks at every TP but one."""
    found = facts("v2-lite", "--to", "fp8-block", "--context", "1024", "--gpu", "h100")
    fit = found["accelerators"][0]["formats"]["fp8-block"]
    assert fit["fits"] and fit["tp"] == 1
    refused = facts("v2-lite", "--to", "fp8-block", "--tp", "2", "--gpu", "h100")["accelerators"][0]["formats"]
    assert (refused["fp8-block"]["why"], refused["fp8-block"]["short_bytes"]) == ("cuts", 0)
    assert refused["as stored"]["fits"]


@pytest.mark.parametrize(
    ("source", "published"), [("v2", 131_072), ("v2-lite", 32_768), ("v3", 131_072), ("r1", 131_072), ("v3.2", 131_072)]
)
def test_the_published_context_is_the_default_and_both_figures_are_named(source: str, published: int) -> None:
    found = facts(source)
    assert (found["context"], found["context_from"]) == (published, "published")
    assert (found["published_context"], found["max_position_embeddings"]) == (published, 163_840)
    text = dsctl("plan", source)
    assert f"publishes {published:,} tokens" in text and "163,840" in text and "max_position_embeddings" in text


def test_a_context_that_is_not_published_is_that_of_the_config(tmp_path_factory: pytest.TempPathFactory) -> None:
    asked = facts("v3.2", "--context", "1000")
    assert (asked["context"], asked["context_from"], asked["published_context"]) == (1000, "asked", 131_072)
    folder = facts(str(smaller(tmp_path_factory)))
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


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("v3.2", "--tp", "8", "--ep", "3"), 2),
        (("v3.2", "--ep", "512"), 30),
        (("v3.2", "--pp", "62"), 30),
        (("v3.2", "--gpu", "abacus"), 2),
        (("v3.2", "--to", "fp7"), 2),
        (("v3.2", "--kv", "int1"), 2),
        (("v3.2", "--gpu", "mycard"), 2),
        (("v3.2", "--gpu", "=96"), 2),
        (("v3.2", "--gpu", "mycard="), 2),
        (("v3.2", "--gpu", "mycard=0"), 2),
        (("v3.2", "--gpu", "mycard=96GX"), 2),
        (("v3.2", "--reserve", "100%"), 2),
        (("v3.2", "--reserve", "-1%"), 2),
        (("v3.2", "--reserve", "some"), 2),
        (("v3.2", "--reserve", "8"), 2),
        (("v3.2", "--must-fit", "h200"), 2),
        (("v3.2", "--must-fit", "h200x0"), 2),
        (("v3.2", "--must-fit", "h200x99999"), 2),
        (("v3.2", "--must-fit", "abacusx8"), 2),
        (("v3.2", "--must-fit", "h200x8", "--to", "bf16", "--recipe", "int8"), 2),
        (("v3.2", "--must-fit", "h200x8", "--tp", "4"), 2),
        (("v3.2", "--context", "0"), 2),
        (("v3.2", "--context", "128g"), 2),
        (("v3.2", "--context", "1.5m"), 2),
        (("v3.2", "--context", "k"), 2),
        (("v3.2", "--context", "4097m"), 2),
        (("not-there",), 10),
    ],
)
def test_impossible_wishes_are_refused(words: tuple[str, ...], code: int) -> None:
    done = call("plan", *words)
    assert done.returncode == code and not done.stdout
    if len(words) == 3 and code == UsageError.exit_code:
        assert (
            done.stderr.startswith(f"error: {words[1]}: ") and words[2][:6] in done.stderr and "hint: " in done.stderr
        )


def test_a_folder_is_planned_like_a_release(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder: Path = smaller(tmp_path_factory)
    found = facts(str(folder))
    assert found["formats"]["as stored"]["disk_bytes"] == describe(str(folder)).nbytes


@pytest.mark.parametrize(("option", "fits"), [(("--ep", 7), "8, 16"), (("--pp", 62), "--pp 61")])
def test_sizes_that_do_not_fit_get_those_that_do(option: tuple[str, int], fits: str) -> None:
    done = call("plan", "v3", *option)
    assert done.returncode == 30 and fits in done.stderr.partition("hint: ")[2]


@pytest.mark.parametrize(
    ("text", "tokens"), [("128k", 131_072), ("128K", 131_072), ("1m", 1_048_576), ("4096", 4096), ("4096m", 1 << 32)]
)
def test_tokens_of_context_may_be_in_thousands(text: str, tokens: int) -> None:
    assert facts("v3.2", "--context", text)["context"] == tokens


@pytest.mark.parametrize(
    ("text", "name", "nbytes", "label"),
    [
        ("H200", "H200 SXM", ACCELERATORS["h200"].memory, 141),
        ("h100=76GiB", "H100 SXM", 76 << 30, 80),
        ("mycard=96", "mycard", 96 * 10**9, None),
        ("mycard=95.5", "mycard", 95_500_000_000, None),
        ("mycard=95.5GB", "mycard", 95_500_000_000, None),
    ],
)
def test_an_accelerator_has_a_name_or_a_memory_of_its_own(
    text: str, name: str, nbytes: int, label: float | None
) -> None:
    (one,) = facts("v3.2", "--gpu", text)["accelerators"]
    assert (one["name"], one["memory_bytes"], one["label_gb"]) == (name, nbytes, label)
    assert (one["source"] == f"given as {text}") == ("=" in text)


@pytest.mark.parametrize(
    ("text", "kept"), [("8%", 12_001_837_025), ("4GB", 4_000_000_000), ("4GiB", 4 << 30), ("0", 0), ("0%", 0)]
)
def test_a_reserve_is_a_size_or_a_share(text: str, kept: int) -> None:
    found = facts("v3.2", "--gpu", "h200", "--reserve", text)
    (one,) = found["accelerators"]
    # 139.72 GiB, of which 8 % are 12.0 GB.
    assert one["reserve_bytes"] == kept or (text == "8%" and one["reserve_bytes"] == -(-one["memory_bytes"] * 8 // 100))
    assert found["reserve"]["from"] == "asked"


def test_the_usual_accelerators_are_a_selection_and_the_report_says_so() -> None:
    text = dsctl("plan", "v3.2")
    assert f"8 of {len(ACCELERATORS)} accelerators are shown. Choose with --gpu NAME" in text
    assert "Reserve: 10%" in text and "--reserve SIZE|PERCENT" in text
    asked = dsctl("plan", "v3.2", "--gpu", "h20", "--reserve", "8%", "--context", "200000")
    assert "200,000 tokens are more than it allows." in asked and "than it allows" not in text
    assert "accelerators are shown" not in asked and "Reserve:" not in asked and "8% of each GPU kept free" in asked
    assert "about 95.0 to 95.2 GiB (label 96 GB)" in asked


def test_formats_that_a_device_has_no_units_for_are_named() -> None:
    text = dsctl("plan", "v4-flash", "--gpu", "h100", "--gpu", "a100", "--gpu", "b200", "--gpu", "mycard=90")
    assert "No FP8 units: A100 SXM 80GB." in text and "No FP4 units: H100 SXM, A100 SXM 80GB." in text
    assert "units:" not in dsctl("plan", "v3.2", "--gpu", "h100")
    assert facts("v4-flash", "--to", "bf16")["formats"]["bf16"]["units"] == []


def numbers(row: str) -> list[float]:
    """The GB of a row."""
    return [float(one.replace(",", "")) for one in re.findall(r"([\d,.]+) GB", row)]


@pytest.mark.parametrize("words", [("--tp", "8"), ("--tp", "4", "--ep", "16", "--batch", "6"), ("--pp", "8")])
def test_the_sum_of_a_rank_adds_up(words: tuple[str, ...]) -> None:
    lines = dsctl("plan", "v3.2", *words, "--gpu", "h200", "--context", "128k").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("Per rank"))
    weights, cache, reserve, total, memory = (numbers(line) for line in lines[start + 2 : start + 7])
    for parts in zip(weights, cache, reserve, total, memory, strict=True):
        assert sum(parts[:3]) == pytest.approx(parts[3], abs=0.2) and parts[4] == 150.0
    found = facts("v3.2", *words, "--context", "128k")["formats"]["as stored"]["ranks"][0]
    assert found["bytes"] == found["weights_bytes"] + found["cache_bytes"]
    assert found["cache_bytes"] == found["sequences"] * 131_072 * found["layers"] * (1152 + 132)
    assert f"{found['sequences']} of " in lines[start + 3] and ("layers" in lines[start + 3]) == ("--pp" in words)


def test_several_accelerators_add_their_reserves_to_the_sum() -> None:
    text = dsctl("plan", "v3.2", "--tp", "8", "--gpu", "h200", "--gpu", "h100")
    total = next(numbers(line) for line in text.splitlines() if line.startswith("  sum"))
    for name, reserve, memory in (("H200 SXM", 15.0, 150.0), ("H100 SXM", 8.5, 85.0)):
        row = next(line for line in text.splitlines() if f"GB reserve, {name}" in line)
        kept, *sums, held = numbers(row)
        assert (kept, held) == (reserve, memory)
        assert sums == pytest.approx([one + kept for one in total], abs=0.11)
    assert "Per rank" not in dsctl("plan", "v3.2")


@pytest.mark.parametrize(
    ("words", "ranks", "left"),
    [
        (("v3.2", "--must-fit", "h200x8"), "TP 8", 51.6),
        (("v3.2", "--must-fit", "H200x8", "--tp", "8", "--ep", "8"), "TP 8 EP 8", 51.6),
        (("v3.2", "--must-fit", "h200x8", "--tp", "1", "--ep", "8"), "EP 8", 32.5),
        (("v3.2", "--must-fit", "h200x16", "--to", "bf16"), "TP 16", 50.3),
        (("v3.2", "--must-fit", "mycard=96x16"), "TP 16", 40.5),
        (("v4-flash", "--must-fit", "h100x3"), "PP 3", 29.0),
    ],
)
def test_a_demand_that_is_met_says_how(words: tuple[str, ...], ranks: str, left: float) -> None:
    text = dsctl("plan", *words, "--gpu", "l20")
    row = next(line for line in text.splitlines() if re.match(r"  \d+ x ", line))
    assert f"fits, {left} GB left  {ranks} " in row
    (must,) = facts(*words)["must_fit"]
    assert must["fits"] and must["enough"] == must["count"] == must["world"] and must["sequences"] >= 1
    assert must["left_bytes"] >= must["reserve_bytes"]


def test_a_demand_that_is_not_met_exits_with_50() -> None:
    done = call("plan", "v3.2", "--must-fit", "h100x8")
    assert done.returncode == VerifyFailed.exit_code and "8 x H100 SXM  no, 11.7 GB short" in done.stdout
    assert "error: --must-fit h100x8: DeepSeek-V3.2 (as stored) does not fit: TP 4 PP 2 is 11.7 GB" in done.stderr
    assert "hint: 16 x H100 SXM are enough" in done.stderr
    (must,) = json.loads(call("plan", "v3.2", "--must-fit", "h100x8", "--json").stdout)["must_fit"]
    assert (must["verdict"], must["enough"], must["asked"]) == ("no", 16, "h100x8")


def test_several_demands_are_all_judged() -> None:
    done = call("plan", "v3.2", "--must-fit", "h200x8", "--must-fit", "h100x8", "--must-fit", "b200x2")
    assert done.returncode == VerifyFailed.exit_code
    assert "2 of 3 --must-fit are not met" in done.stderr
    assert "  - --must-fit h100x8: " in done.stderr and "  - --must-fit b200x2: " in done.stderr


def test_tight_is_not_enough_unless_nothing_is_reserved() -> None:
    words = ("plan", "v3.2", "--tp", "4", "--context", "4096", "--must-fit", "mycard=180x4")
    done = call(*words)
    assert done.returncode == VerifyFailed.exit_code
    assert "TP 4 leaves 5.6 GB per GPU, and the reserve is 18.0 GB" in done.stderr
    assert "tight, 5.6 GB left" in done.stdout
    assert call(*words, "--reserve", "0").returncode == 0


def test_a_demand_on_ranks_that_cannot_be_split_is_not_met() -> None:
    done = call("plan", "v3.2", "--tp", "32", "--must-fit", "b300x32")
    assert done.returncode == VerifyFailed.exit_code
    assert "TP 32 splits heads or quantization blocks" in done.stderr


def test_the_page_on_costs_lists_every_accelerator() -> None:
    page = (Path(__file__).parents[2] / "docs" / "costs.md").read_text()
    for one in ACCELERATORS.values():
        units = ", ".join(name for name, has in (("FP8", one.fp8), ("FP4", one.fp4)) if has)
        cells = (f"`{one.key}`", one.name, f"{one.label:g}", f"{one.memory / 1e9:.1f}", units, one.source)
        assert f"| {' | '.join(cells)} |" in page
