"""`slice --experts PLAN.json`: each layer keeps its own experts, or gives them a new order; nothing else changes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dsctl as library
from dsctl.look.source import describe
from dsctl.plan.expert_plan import parse_plan
from dsctl.plan.overview import overview
from dsctl.plan.parts import Part
from dsctl.plan.request import KEEP, Request
from tests.flows.test_resume import contents
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl, dsctl_fails
from tests.support.forks import Launcher
from tests.support.pruned import config, pruned, stored
from tests.support.schemas import faults

SMALL: dict[str, Any] = {
    "experts": 32, "hidden": 128, "heads": 2, "vocab": 256, "intermediate": 128, "moe_intermediate": 128,
}  # fmt: skip
Lists = dict[str, list[int]]
# Of each release: the layers with experts, those of its drafter, the experts of these, and the groups of a router.
RELEASES: dict[str, tuple[Sequence[str], Sequence[str], int, int]] = {
    "v3.2": (("1", "2"), ("3",), 32, 2),
    "v3": (("1", "2"), ("3",), 32, 2),
    "v4-flash": (("0", "1", "2", "3", "4"), ("mtp.0",), 32, 1),
    "v4-flash-0731": (("0", "1", "2", "3", "4"), ("mtp.0", "mtp.1", "mtp.2"), 32, 1),
    "v4-flash-vision-exp": (("0", "1", "2", "3", "4"), ("mtp.0", "mtp.1", "mtp.2"), 32, 1),
    "v4.1-flash": (tuple(map(str, range(8))), ("mtp.0", "mtp.1", "mtp.2"), 16, 1),
    "kimi-k2": (("1", "2"), (), 0, 1),
    "kimi-k2.5": (("1", "2"), (), 0, 1),
    "kimi-k3": (("1", "2", "3"), (), 0, 1),
    "mistral-large-3": (("1", "2"), (), 0, 1),
    "glm-5": (("1", "2"), ("3",), 32, 1),
}
COUNTS = {"n_routed_experts", "num_experts", "dspark_n_routed_experts", "moe"}


def made(factory: pytest.TempPathFactory, release: str, **more: Any) -> Path:
    return tiny(factory, release, **SMALL, **more)


def keep_lists(release: str, number: int, seed: int = 1) -> Lists:
    """Ascending lists of `number` experts, as many of each group; half as many where the drafter has half of them."""
    main, drafter, own, groups = RELEASES[release]
    chance, found = random.Random(seed), {}
    for layer in (*main, *drafter):
        of = own if layer in drafter else 32
        size, each = of // groups, number * of // 32 // groups
        found[layer] = sorted(at * size + one for at in range(groups) for one in chance.sample(range(size), each))
    return found


def orders(release: str, seed: int = 2) -> Lists:
    """A legal permutation of each layer: groups change places, and experts within each."""
    main, drafter, own, groups = RELEASES[release]
    chance, found = random.Random(seed), {}
    for layer in (*main, *drafter):
        size = (own if layer in drafter else 32) // groups
        places = [[group * size + one for one in chance.sample(range(size), size)] for group in range(groups)]
        found[layer] = [one for group in chance.sample(places, groups) for one in group]
    return found


def written(folder: Path, said: Any, name: str = "plan.json") -> Path:
    (folder / name).write_text(said if isinstance(said, str) else json.dumps(said))
    return folder / name


def inverse(lists: Lists) -> Lists:
    return {layer: [new for _, new in sorted((old, new) for new, old in enumerate(order))]
            for layer, order in lists.items()}  # fmt: skip


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("kind", ["keep", "order"])
def test_the_result_is_what_the_plan_says(
    release: str, kind: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source, lists = made(tmp_path_factory, release), keep_lists(release, 24) if kind == "keep" else orders(release)
    said = dsctl("slice", source, tmp_path / "out", "--experts", written(tmp_path, {"layers": lists}))
    assert stored(tmp_path / "out") == pruned(stored(source), lists)
    before, after = config(source), config(tmp_path / "out")
    changed = {field for field in before.keys() | after.keys() if before.get(field) != after.get(field)}
    assert changed <= COUNTS and bool(changed) == (kind == "keep")
    if kind == "keep" and "moe" not in before:
        main = "num_experts" if release == "kimi-k3" else "n_routed_experts"
        assert (before[main], after[main]) == (32, 24)
        assert after.get("dspark_n_routed_experts") == (12 if "dspark_n_routed_experts" in before else None)
    weights = [sum(len(one.data) for one in stored(folder).values()) for folder in (source, tmp_path / "out")]
    assert f"weights: {weights[0]:,} bytes before, {weights[1]:,} bytes after" in said
    assert ("experts: 24 of 32 stay in each of" if kind == "keep" else "experts: all 32 stay in each of") in said
    assert "no problems found" in dsctl("verify", tmp_path / "out", "--deep")


@pytest.mark.parametrize("release", ["v3.2", "v4-flash-0731", "v4.1-flash", "kimi-k2.5"])
def test_a_permutation_and_its_inverse_give_the_same_bytes_back(
    release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source, lists = made(tmp_path_factory, release), orders(release)
    dsctl("slice", source, tmp_path / "there", "--experts", written(tmp_path, {"layers": lists}))
    back = written(tmp_path, {"layers": inverse(lists)}, "back.json")
    dsctl("slice", tmp_path / "there", tmp_path / "back", "--experts", back)
    assert stored(tmp_path / "there") != stored(source)
    assert stored(tmp_path / "back") == stored(source) and config(tmp_path / "back") == config(source)


def test_tokens_keep_different_experts_and_their_own_ones_where_they_stay(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source, lists = made(tmp_path_factory, "v4-flash"), keep_lists("v4-flash", 24)
    plan = written(tmp_path, {"layers": {**lists, "0": lists["0"][::-1]}})
    said = dsctl("slice", source, tmp_path / "out", "--experts", plan)
    assert "3 tables of experts by token hold the new numbers; the next kept expert replaces each removed one" in said
    assert "in a new order in 1 of them" in said
    for layer, kept in (("0", lists["0"][::-1]), ("1", lists["1"]), ("2", lists["2"])):
        name = f"layers.{layer}.ffn.gate.tid2eid"
        before, after = (
            np.frombuffer(one.data, np.int64).reshape(one.shape)
            for one in (stored(source)[name], stored(tmp_path / "out")[name])
        )
        assert all(len({*row}) == len(row) for row in after.tolist()) and after.max() < 24 and after.min() >= 0
        stays = np.isin(before, kept)
        assert (np.array(kept)[after][stays] == before[stays]).all() and not stays.all()


def spellings(lists: Lists) -> dict[str, Any]:
    """The forms in which public tools write the lists of all layers, and masks."""
    rows = [*lists.values()]
    masks = [[expert in row for expert in range(32)] for row in rows]
    return {
        "alone": lists,
        "kept_by_layer": {"format": "plan", "old_num_experts": 32, "kept_by_layer": lists, "dropped_by_layer": {}},
        "keep_by_layer": {"keep_by_layer": lists, "experts_to_keep": 500},
        "keep_maps": {
            "keep_maps": {"keep_by_layer": lists}, "kept_experts_per_layer": 24, "original_experts_per_layer": 32,
            "hash_routed_layers": [0, 1, 2],
        },
        "mask-v1": {
            "schema": "reap-expert-mask-v1", "declared_k": 24,
            "layers": {layer: {"kept_experts": row} for layer, row in lists.items()},
        },
        "prune map": {
            "retained_count": 24,
            "layers": [
                {"layer": 5 + int(layer[4:]) if layer[0] == "m" else int(layer), "retained": row, "pruned": [1]}
                for layer, row in lists.items()
            ],
        },
        "candidate": {
            "layers": [
                {"layer": 5 + int(layer[4:]) if layer[0] == "m" else int(layer), "retained_expert_ids": row}
                for layer, row in lists.items()
            ],
        },
        "experts_to_keep": {"experts_to_keep": lists, "num_experts_original": 32, "mean_scores": [[0.5]]},
        "keep.per_layer": {"version": 1, "original_experts": 32, "keep": {"per_layer": rows}},
        "keep": {"kept_per_layer": 24, "original_experts": 32, "keep": rows},
        "rows": rows,
        "masks": masks,
        "masks of numbers": {"layers": dict(zip(lists, [[int(one) for one in mask] for mask in masks], strict=True))},
    }  # fmt: skip


def test_all_forms_of_a_plan_mean_the_same(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source, lists = made(tmp_path_factory, "v4-flash-0731"), keep_lists("v4-flash-0731", 24)
    said = {
        name: json.loads(dsctl("slice", source, tmp_path / "out", "--dry-run", "--json", "--experts", plan))["request"]
        for name, form in spellings(lists).items()
        for plan in [written(tmp_path, form)]
    }
    assert len({json.dumps(request) for request in said.values()}) == 1 and len(said) == 13
    assert "experts by plan, 24 per layer, sha256 " in said["alone"]["slice"]


@pytest.mark.parametrize("rows", [2, 3, 4], ids=["main", "all main layers", "with the drafter"])
def test_rows_are_those_of_moe_layers_or_of_all_layers(
    rows: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of 4 layers, the first is dense; rows of layers without experts are not used."""
    source = made(tmp_path_factory, "v3", layers=4)
    lists = [[*range(32)][::-1] for _ in range(rows)]
    plan = written(tmp_path, {"physical_to_logical_map": lists})
    done = call("slice", source, tmp_path / "out", "--dry-run", "--experts", plan)
    if rows == 2:
        assert done.returncode == 20 and "2 rows do not match 3 MoE layers" in done.stderr
    elif rows == 4:
        assert done.returncode == 20 and "4 rows match both the MoE layers with the MTP layer and all" in done.stderr
    else:
        assert "experts: the plan does not list layers mtp.0: they stay as they are" in done.stdout


def test_the_drafter_takes_the_lists_of_the_last_layers_if_asked(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source, lists = made(tmp_path_factory, "v4-flash-0731"), keep_lists("v4-flash-0731", 24)
    main = {layer: row for layer, row in lists.items() if layer[0] != "m"}
    plan = written(tmp_path, {"kept_by_layer": main})
    refused = call("slice", source, tmp_path / "out", "--experts", plan)
    assert (
        refused.returncode == 30
        and "does not list experts for mtp.0-mtp.2, and config.json has one number for all" in refused.stderr
    )
    assert (
        "copy those of the last layers with --copy-to-drafter, or leave the drafter out: --layers 0-4" in refused.stderr
    )
    dsctl("slice", source, tmp_path / "out", "--experts", plan, "--copy-to-drafter")
    all_lists = main | {f"mtp.{stage}": main[str(stage + 2)] for stage in range(3)}
    assert stored(tmp_path / "out") == pruned(stored(source), all_lists)
    dsctl("slice", source, tmp_path / "plain", "--experts", plan, "--layers", "0-4")
    without = {name: one for name, one in stored(source).items() if not name.startswith("mtp.")}
    assert stored(tmp_path / "plain") == pruned(without, main)
    assert library.open(source).slice(experts=plan, copy_to_drafter=True).run(tmp_path / "api").ok
    assert contents(tmp_path / "api") == contents(tmp_path / "out")


def test_a_drafter_with_a_number_of_its_own_stays_whole(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source, lists = made(tmp_path_factory, "v4.1-flash"), keep_lists("v4.1-flash", 24)
    main = {layer: row for layer, row in lists.items() if layer[0] != "m"}
    plan = written(tmp_path, main)
    dsctl("slice", source, tmp_path / "out", "--experts", plan)
    assert stored(tmp_path / "out") == pruned(stored(source), main)
    said = config(tmp_path / "out")
    assert (said["n_routed_experts"], said["dspark_n_routed_experts"]) == (24, 16)
    refused = call("slice", source, tmp_path / "no", "--experts", plan, "--copy-to-drafter")
    assert refused.returncode == 2 and "the drafter has a number of experts of its own" in refused.stderr


@pytest.mark.parametrize("release", ["v4-flash-0731", "v4.1-flash", "v3.2", "kimi-k2.5"])
def test_a_dry_run_of_a_release_by_its_name_has_the_totals_of_its_files(
    release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The built-in description of a release of the small one's sizes gives what the small one's files give."""
    source, lists = made(tmp_path_factory, release), keep_lists(release, 24)
    small, request = Part(plan=parse_plan({"layers": lists}, "it")).described(
        describe(str(source)).contents, Request(KEEP)
    )
    found = overview(small, request)
    dsctl("slice", source, tmp_path / "out", "--experts", written(tmp_path, {"layers": lists}))
    audit = json.loads((tmp_path / "out" / "dsctl.json").read_text())["audit"]
    assert found.bytes_out == sum(len(one.data) for one in stored(tmp_path / "out").values())
    assert {name: found.counts.get(name, 0) for name in ("moved", "renumbered", "parameters")} == {
        name: audit.get(name, 0) for name in ("moved", "renumbered", "parameters")
    }


def test_a_public_prune_of_v4_flash_0731_has_exactly_these_bytes(tmp_path: Path) -> None:
    """0xSero/DeepSeek-V4-Flash-0731-REAP: 160 of 256 experts, in the drafter as well, in 107,803,320,952 bytes."""
    lists = {str(layer): random.Random(layer).sample(range(256), 160) for layer in range(43)}
    plan = written(tmp_path, lists)
    dry = ["slice", "v4-flash-0731", tmp_path / "out", "--dry-run", "--experts", plan, "--copy-to-drafter"]
    said = json.loads(dsctl(*dry, "--json"))
    assert said["bytes_out"] == 107_803_320_952 and said["origin"]["kind"] == "release"
    assert "weights: 166,878,536,440 bytes before, 107,803,320,952 bytes after" in dsctl(*dry)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("release", ["v3.2", "v4-flash-0731"])
def test_each_kept_byte_is_read_once(release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Rows of routers are taken from one tensor in many pieces."""
    source = made(tmp_path_factory, release)
    for lists in (keep_lists(release, 24), orders(release)):
        plan = written(tmp_path, {"layers": lists})
        said = json.loads(dsctl("slice", source, tmp_path / "out", "--dry-run", "--json", "--experts", plan))
        weights = sum(len(one.data) for one in pruned(stored(source), lists).values())
        assert said["bytes_in"] == weights + sum(said["carried"].values())


@pytest.mark.parametrize("release", ["v4-flash-0731", "v3.2", "v4.1-flash"])
def test_a_dry_run_of_any_slice_of_a_release_needs_its_name_only(release: str, tmp_path: Path) -> None:
    said = json.loads(
        dsctl("slice", release, tmp_path / "out", "--layers", "0-8", "--experts", "8", "--dry-run", "--json")
    )
    assert not faults("release-plan", said) and said["audit"]["moved"] and not (tmp_path / "out").exists()
    assert said["request"]["slice"] == "layers 0,1,2,3,4,5,6,7,8; experts 0,1,2,3,4,5,6,7"
    assert call("slice", release, tmp_path / "out", "--layers", "99", "--dry-run").returncode == 30


def test_the_rest_is_planned_as_a_release_is(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`plan --experts`, from a description and from files."""
    lists = {str(layer): [one for one in range(256) if one % 8 < 5] for layer in range(43)}
    options = ["--experts", written(tmp_path, lists), "--copy-to-drafter", "--gpu", "h100", "--json"]
    said = json.loads(dsctl("plan", "v4-flash-0731", *options))
    assert said["formats"]["as stored"]["disk_bytes"] == 107_803_320_952 and not faults("plan", said)
    assert said["source"] == "DeepSeek-V4-Flash-0731 with the experts of plan.json"
    source, plan = made(tmp_path_factory, "v4-flash"), written(tmp_path, keep_lists("v4-flash", 24))
    dsctl("slice", source, tmp_path / "out", "--experts", plan)
    before, after = (
        json.loads(dsctl("plan", *words, "--tp", 2, "--to", "bf16", "--json"))["formats"]["bf16"]
        for words in ([source, "--experts", plan], [tmp_path / "out"])
    )
    assert before == after
    assert dsctl_fails("plan", source, "--copy-to-drafter") == 2


def test_the_reference_config_is_named_if_it_is_out_of_date(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source, words = made(tmp_path_factory, "v4-flash"), "inference/config.json is copied unchanged"
    keep, order = (
        dsctl("slice", source, tmp_path / "out", "--dry-run", "--experts", written(tmp_path, lists))
        for lists in (keep_lists("v4-flash", 24), orders("v4-flash"))
    )
    assert words in keep and words not in order


def test_killed_it_resumes_to_the_same_bytes_and_another_plan_does_not(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, launcher: Launcher
) -> None:
    source, target = made(tmp_path_factory, "v4-flash-0731"), tmp_path / "out"
    plan = written(tmp_path, keep_lists("v4-flash-0731", 24))
    dsctl("slice", source, tmp_path / "whole", "--experts", plan, "--workers", 2)
    other = written(tmp_path, keep_lists("v4-flash-0731", 24, seed=5), "other.json")
    for point, times in (("dsctl.run.dispatch._prepare", 1), ("dsctl.run.journal.Journal.append", 1)):
        done = launcher.start("slice", source, target, "--experts", plan, "--workers", "1", last=(point, times)).wait()
        assert done.code == 9, done.told()
        refused = call("slice", source, target, "--experts", other)
        assert refused.returncode == 40, refused.stderr
    # The same lists in a different form are the same plan.
    again = written(tmp_path, {"kept_by_layer": json.loads(plan.read_text())}, "again.json")
    dsctl("slice", source, target, "--experts", again, "--workers", 1)
    assert contents(target) == contents(tmp_path / "whole")
    assert call("slice", source, target, "--experts", other).returncode == 40


def each(layers: Lists, row: list[int]) -> Lists:
    return dict.fromkeys(layers, row)


MAP = "physical_to_logical_map"
V3, V4 = keep_lists("v3.2", 24), keep_lists("v4-flash-0731", 24)
IDENTITY = [*range(32)]
WRONG: list[tuple[str, str, Any, int, str]] = [
    ("is not JSON", "v3.2", "{", 20, "is not JSON"),
    ("bytes", "v3.2", "PK\x03\x04", 20, "is not JSON"),
    ("twice", "v3.2", '{"1": [0], "1": [1]}', 20, "key '1' appears twice"),
    ("nan", "v3.2", '{"1": [NaN]}', 20, "NaN is not JSON"),
    ("deep", "v3.2", "[" * 100_000, 20, "is not JSON"),
    ("digits", "v3.2", '{"1": [' + "9" * 5000 + "]}", 20, "is not JSON"),
    ("number", "v3.2", "7", 20, "does not list experts by layer"),
    ("empty", "v3.2", {}, 20, "does not list experts by layer"),
    ("no rows", "v3.2", [], 20, "does not list experts by layer"),
    ("scores", "v3.2", {"logical_count": [[1, 2]]}, 20, "does not list experts by layer"),
    ("several", "v3.2", {"layers": V3, "keep": {"per_layer": [[0]]}}, 20, "several plans: layers and keep.per_layer"),
    ("text", "v3.2", {"1": "0,1"}, 20, "layer 1: '0,1' is not a list of experts"),
    ("null", "v3.2", {"1": None}, 20, "layer 1: None is not a list of experts"),
    ("bare", "v3.2", {"1": []}, 20, "layer 1: the list is empty"),
    ("nested", "v3.2", {"1": [[0]]}, 20, "layer 1: a list is not the number of an expert"),
    ("float", "v3.2", {"1": [0.0, 1]}, 20, "layer 1: 0.0 is not the number of an expert"),
    ("negative", "v3.2", {"1": [-1, 1]}, 20, "layer 1: -1 is not the number of an expert"),
    ("truth", "v3.2", {"1": [True, 1]}, 20, "layer 1: True is not the number of an expert"),
    ("huge", "v3.2", {"1": [10**30]}, 20, "is not the number of an expert"),
    ("an object", "v3.2", {"layers": {"1": {"kept": 12}}}, 20, "layer 1: does not list its experts"),
    ("two lists", "v3.2", {"1": {"retained": [0], "kept_experts": [0]}}, 20, "layer 1: has 2 lists of experts"),
    ("no number", "v3.2", {"layers": [{"retained": [0]}]}, 20, "entry 0 does not have the number of a layer"),
    ("one number", "v3.2", {"layers": [{"layer": 1, "retained": [0]}] * 2}, 20, "layer 1 appears twice"),
    ("spelled twice", "v3.2", {"1": [0], "01": [1]}, 20, "layer 1 appears twice"),
    ("named twice", "v3.2", {**V3, "mtp.0": V3["3"]}, 20, "layer 3 and mtp.0 are the same layer"),
    ("dense", "v3.2", {"0": V3["1"]}, 20, "layer 0 has no routed experts"),
    ("no layer", "v3.2", {"9": V3["1"]}, 20, "layer 9 has no routed experts"),
    ("no stage", "v3.2", {"mtp.1": V3["1"]}, 20, "layer mtp.1 has no routed experts"),
    ("rows", "v3.2", [V3["1"]] * 7, 20, "7 rows do not match 2 MoE layers"),
    ("double rows", "v3.2", [V3["1"]] * 3, 20, "3 rows match both"),
    ("range", "v3.2", V3 | {"1": [*range(23), 32]}, 20, "layer 1: there is no expert 32: there are 32"),
    ("double", "v3.2", V3 | {"2": [*range(23), 3]}, 20, "layer 2: expert 3 appears twice"),
    ("mask", "v3.2", V3 | {"2": [True] * 31}, 20, "layer 2: the mask has 31 entries for 32 experts"),
    ("no mask", "v3.2", V3 | {"2": [False] * 32}, 30, "layer 2: keeps 0 experts, but a token uses"),
    ("other model", "v3.2", {"layers": V3, "original_experts": 256}, 20, "is for a model with 256 experts per layer"),
    ("declared", "v3.2", {"layers": V3, "declared_k": 11}, 20, "says that each layer keeps 11 experts, but lists 24"),
    ("few", "v4-flash-0731", each(V4, [0, 1]), 30, "layer 0: keeps 2 experts, but a token uses"),
    ("counts", "v4-flash-0731", V4 | {"3": IDENTITY}, 30, "numbers of experts: 24 (0-2, 4, mtp.0-mtp.2); 32 (3)"),
    ("a gap", "v4-flash-0731", {k: v for k, v in V4.items() if k != "2"}, 30, "32 (2, not in the plan)"),
    ("groups", "v3.2", V3 | {"1": [*range(24)]}, 30, "layer 1: group 1 keeps 8 of its 16 experts and group 0"),
    ("mixed", "v3.2", each(V3, [16, *range(1, 16), 0, *range(17, 32)]), 30, "layer 1: expert 1 of group 0"),
    ("thin", "v3.2", each(V3, [*range(4), *range(16, 20)]), 30, "each group keeps 4 experts, but its router needs 8"),
    ("replicas", "v4-flash", {MAP: [[*IDENTITY, 0]] * 5}, 30, "33 places for 32 experts: two equal"),
    ("no place", "v4-flash", {MAP: [IDENTITY[:-1]] * 5}, 20, "31 places for 32 experts"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("release", "plan", "code", "words"), [one[1:] for one in WRONG], ids=[one[0] for one in WRONG]
)
def test_a_bad_plan_is_refused_in_one_line_and_nothing_is_written(
    release: str, plan: Any, code: int, words: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source, path = made(tmp_path_factory, release), written(tmp_path, plan)
    before = sorted(tmp_path.iterdir())
    assert dsctl_fails("slice", source, tmp_path / "out", "--experts", path) == code
    done = call("slice", source, tmp_path / "out", "--experts", path)
    assert words in done.stderr.splitlines()[0], done.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--experts", "absent.json"], 10, "No such file"),
        (["--experts", "."], 10, "Is a directory"),
        (["--experts", "x"], 2, "'x' is not a list of experts"),
        (["--experts", "4", "--copy-to-drafter"], 2, "--copy-to-drafter: is for a plan of experts"),
        (["--experts", "PLAN", "--copy-to-drafter"], 2, "does nothing here: the plan has a list for layer mtp.0"),
        (["--experts", "PLAN", "--copy-to-drafter", "--layers", "0-2"], 2, "no layer of a drafter is kept"),
        (["--experts", "PLAN", "--layers", "0"], 30, "does not list experts for the layers that are kept"),
        (["--experts", "PLAN", "--layers", "9"], 30, "no such layer"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], code: int, words: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source, plan = made(tmp_path_factory, "v3.2"), str(written(tmp_path, V3))
    given = [plan if one == "PLAN" else one for one in options]
    done = call("slice", source, tmp_path / "out", *given)
    assert done.returncode == code and words in done.stderr and not (tmp_path / "out").exists(), done.stderr


def test_a_dense_model_has_nothing_to_plan(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = made(tmp_path_factory, "v3", mtp=False)
    folder = tmp_path / "dense"
    dsctl("slice", source, folder, "--layers", "0")
    done = call("slice", folder, tmp_path / "out", "--experts", written(tmp_path, V3))
    assert done.returncode in (20, 30) and not (tmp_path / "out").exists()


def test_layers_and_formats_may_change_at_the_same_time(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source, plan = made(tmp_path_factory, "v3.2"), written(tmp_path, V3)
    dsctl("slice", source, tmp_path / "out", "--experts", plan, "--layers", "0,2,mtp", "--bf16")
    dsctl("slice", source, tmp_path / "pruned", "--experts", plan)
    dsctl("slice", tmp_path / "pruned", tmp_path / "then", "--layers", "0,2,mtp", "--bf16")
    assert stored(tmp_path / "out") == stored(tmp_path / "then")
    assert config(tmp_path / "out") == config(tmp_path / "then")


@pytest.mark.parametrize("layout", ["stacked", "fused"])
def test_experts_that_are_stored_together_are_taken_from_there(
    layout: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source, plan = made(tmp_path_factory, "v3"), written(tmp_path, keep_lists("v3", 24))
    dsctl("convert", source, tmp_path / layout, "--layout", layout)
    dsctl("slice", tmp_path / layout, tmp_path / "out", "--experts", plan)
    dsctl("slice", source, tmp_path / "plain", "--experts", plan)
    dsctl("convert", tmp_path / "out", tmp_path / "back", "--layout", "published")
    assert stored(tmp_path / "back") == stored(tmp_path / "plain")


def test_ranks_are_pruned_as_the_whole_is(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source, plan = made(tmp_path_factory, "v3", aligned=True), written(tmp_path, keep_lists("v3", 24))
    dsctl("shard", source, tmp_path / "ranks", "--ep", 4)
    dsctl("slice", tmp_path / "ranks", tmp_path / "out", "--experts", plan)
    dsctl("slice", source, tmp_path / "plain", "--experts", plan)
    assert stored(tmp_path / "out") == stored(tmp_path / "plain")


@pytest.mark.parametrize("format_", ["int4-group", "nvfp4", "nvfp4-modelopt", "mxfp4"])
def test_experts_in_any_form_keep_their_bytes(
    format_: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Their scales, global ones included, go with them."""
    source, lists = made(tmp_path_factory, "v3", aligned=True), keep_lists("v3", 24)
    dsctl("convert", source, tmp_path / "four", "--to", format_)
    dsctl("slice", tmp_path / "four", tmp_path / "out", "--experts", written(tmp_path, lists))
    assert stored(tmp_path / "out") == pruned(stored(tmp_path / "four"), lists)
