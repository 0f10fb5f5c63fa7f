"""`dsctl diff`: exactly what differs, at any width, and what it means."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dsctl.checkpoint.groups import folded
from dsctl.core.header import build
from dsctl.look.config_changes import same
from dsctl.look.costs import attention
from dsctl.look.description import identify
from dsctl.look.diff import Diff
from dsctl.look.fields import FIELDS
from dsctl.look.meanings import MEANINGS, meanings
from dsctl.look.source import describe
from dsctl.look.wording import ranges
from dsctl.releases import releases
from dsctl.show.templates import parameters
from tests.support.checkpoints import smaller, tiny
from tests.support.command import call, dsctl, dsctl_fails
from tests.tools import goldens
from tests.tools.goldens import GOLDENS

INDEXER = "model.layers.{layer}.self_attn.indexer."


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("goldens")
    goldens.make_folders(folder)
    return folder


@pytest.mark.parametrize(
    ("golden", "width"),
    [(g, width) for g in GOLDENS for width in g.widths],
    ids=lambda value: getattr(value, "name", value),
)
def test_output_is_the_golden_one(
    golden: goldens.Golden, width: int, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    assert goldens.output(golden, width) == goldens.file(golden, width).read_text()


@pytest.mark.parametrize("path", sorted(goldens.FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_no_line_is_wider_than_the_terminal(path: Path) -> None:
    width = int(path.stem.rpartition(".")[2])
    if "markdown" not in path.stem:
        assert max(map(len, path.read_text().splitlines())) <= width


def facts(*words: str) -> dict[str, Any]:
    return json.loads(dsctl("diff", *words, "--json"))


def test_v3_to_v32_adds_the_indexer_and_nothing_else() -> None:
    found = facts("v3", "v3.2")
    assert found["verdict"] == "architecture" and found["differs"]
    added = {
        t["template"].removeprefix(INDEXER): (t["shape"], t["count"], t["split"]) for t in found["templates"]["added"]
    }
    assert added == {
        "wq_b.weight": ([8192, 1536], 62, None),
        "wk.weight": ([128, 7168], 62, None),
        "k_norm.weight": ([128], 62, None),
        "k_norm.bias": ([128], 62, None),
        "weights_proj.weight": ([64, 7168], 62, None),
    }
    assert all(t["layers"] == list(range(62)) for t in found["templates"]["added"])
    assert found["templates"]["removed"] == []
    assert {tuple(change["changes"]) for change in found["templates"]["changed"]} == {("stored",)}
    assert found["config"]["added"] == {
        "index_head_dim": 128,
        "index_n_heads": 64,
        "index_topk": 2048,
        "quantization_config.scale_fmt": "ue8m0",
    }
    assert set(found["config"]["changed"]) == {"architectures", "model_type", "transformers_version"}
    assert {name.partition(".")[0] for name in found["config"]["removed"]} == {"auto_map"}


def test_what_v32_stores_otherwise_is_what_the_listings_say() -> None:
    changed = facts("v3", "v3.2")["templates"]["changed"]
    ways: dict[tuple[str, str], int] = {}
    for change in changed:
        ways[tuple(change["changes"]["stored"])] = ways.get(tuple(change["changes"]["stored"]), 0) + change["count"]
    # 62 layers with 4 norms; the last norm; enorm, hnorm and shared_head.norm of the MTP layer.
    assert ways == {("BF16", "F32"): 62 * 4 + 1 + 3, ("FP8", "FP8 ue8m0"): 45_808}


def test_totals_are_exact() -> None:
    totals = facts("v3", "v3.2")["totals"]
    assert totals["parameters"] == [46_183, 46_493]
    assert totals["values"] == [684_489_845_504, 685_355_329_792]
    assert totals["quantized"] == [45_808, 45_932]
    assert totals["tensors"] == [91_991, 92_425]
    assert totals["nbytes"] == [688_574_839_360, 689_471_107_200]
    # 61 layers of (512 + 64) BF16 values; of 128 FP8 values and one float32 scale.
    assert totals["cache_bytes"] == [70_272, 70_272]
    assert totals["index_bytes"] == [0, 61 * 132]


@pytest.mark.parametrize("context", [1, 2048, 2049, 32_768, 131_072])
def test_attention_costs_follow_their_formula(context: int) -> None:
    full, sparse = attention(describe("v3")), attention(describe("v3.2"))
    assert full and sparse
    pair = 61 * 128 * 2 * (512 + 64 + 512)
    assert full.work(context) == pair * context
    assert sparse.work(context) == pair * min(context, 2048) + 61 * 64 * 2 * (128 + 1) * context
    assert full.read_bytes(context) == 61 * 1152 * context
    assert sparse.read_bytes(context) == 61 * (1152 * min(context, 2048) + 132 * context)
    assert (full.cache_bytes("fp8"), sparse.cache_bytes("fp8")) == (61 * 576, 61 * 656)


def test_shared_indexers_keep_keys_in_their_own_layers_only() -> None:
    shared = attention(describe("glm-5.2"))
    assert shared and (shared.layers, shared.indexers, shared.index_bytes()) == (78, 21, 21 * 132)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ("v3", "v3.2", ["indexer-gained", "scales-rounded", "norms-widened", "chat-template"]),
        ("v3.2", "v3", ["indexer-lost", "scales-free", "chat-template"]),
        ("v3.1", "v3.2", ["indexer-gained", "norms-widened", "chat-template"]),
        ("v3", "v3.1", ["scales-rounded"]),
        ("v3", "r1", ["training-only"]),
        ("v3.2-exp", "v3.2", ["chat-template"]),
        ("v4-flash-dspark", "v4-flash-0731", ["training-only"]),
        ("v3", "v3", []),
        ("v3", "kimi-k2", ["mtp-lost", "experts", "heads", "vocabulary", "context"]),
        ("v2", "v3", ["quantized", "mtp-gained", "router-bias", "experts", "vocabulary"]),
        ("v2-lite", "v2", ["experts", "heads", "queries-compressed"]),
        ("glm-5", "glm-5.2", ["indexers-shared", "context"]),
        ("glm-5", "glm-5-fp8", ["quantized"]),
        ("glm-5-fp8", "glm-5", ["dequantized"]),
    ],
)
def test_meanings_are_said_where_they_are_true(a: str, b: str, said: list[str]) -> None:
    assert [meaning["key"] for meaning in facts(a, b)["meanings"]] == said


@pytest.mark.parametrize(("a", "b", "shared"), [("v3.2", "glm-5", False), ("glm-5", "glm-5.2", True)])
def test_indexers_are_said_to_be_shared_where_layers_lack_one(a: str, b: str, shared: bool) -> None:
    assert ("indexers-shared" in [meaning["key"] for meaning in facts(a, b)["meanings"]]) == shared


def test_an_mtp_layer_is_counted_without_copies_and_in_words_that_fit(tmp_path_factory: pytest.TempPathFactory) -> None:
    """deepseek-ai/DeepSeek-V3 README_WEIGHTS.md, of its MTP module: 11.5 B unique, 0.9 B each shared."""
    told = {meaning.key: meaning.text for meaning in meanings(Diff(describe("v2"), describe("v3")))}
    assert "11.6 billion values, not counting copies" in told["mtp-gained"]
    small = describe(str(tiny(tmp_path_factory, "v3", layers=1, experts=2, hidden=128, heads=1, vocab=128)))
    told = {meaning.key: meaning.text for meaning in meanings(Diff(small, describe("v2")))}
    assert "0.0" not in told["mtp-lost"] and "billion" not in told["mtp-lost"]


def test_a_meaning_says_no_more_than_the_numbers() -> None:
    """V2 to GLM-5.2 changes heads, layers and latents together with the indexer: its saving is told by itself."""
    found = Diff(describe("v2"), describe("glm-5.2"))
    before, after = found.attention
    assert before is not None and after is not None
    said = {one.key: one.text for one in meanings(found)}["indexer-gained"]
    assert "unchanged" not in said and "69,120 → 89,856 bytes per token" in said
    assert f"{after.full().work(131_072) / after.work(131_072):.1f} times less" in said
    assert f"{before.work(131_072) / after.work(131_072):.1f} times less" not in said
    assert "The other 57 layers" in said
    plain = {one.key: one.text for one in meanings(Diff(describe("v3"), describe("v3.2")))}["indexer-gained"]
    assert "The KV cache is unchanged" in plain and "same sizes" not in plain and "other" not in plain


def test_a_reader_that_goes_is_no_difference() -> None:
    command = f"{sys.executable} -m dsctl diff v3 v3.2 --exit-code"
    done = subprocess.run(
        ["bash", "-c", f"({command}; echo $? >&2) | true"], capture_output=True, text=True, check=True
    )
    assert done.stderr == "141\n"


def test_a_repository_s_name_is_whole_and_ratios_say_something() -> None:
    assert "deepseek-ai/DeepSeek-V3.1-Terminus" in dsctl("diff", "v3.1", "v3.1-terminus")
    assert "1.0x" not in dsctl("diff", "v2", "v3")


def test_values_that_were_not_read_are_no_differences() -> None:
    found = facts("v3-0324", "r1")
    assert found["config"] == {"added": {}, "removed": {}, "changed": {}} and found["verdict"] == "nothing"
    assert "V3-0324: config.json was derived, not read: " in dsctl("diff", "v3-0324", "r1")
    assert "not read" not in dsctl("diff", "v3", "r1").replace("*: its config was derived, not read.", "")
    assert "No difference between the descriptions. Config of DeepSeek-V3-0324: derived, not read." in dsctl(
        "diff", "v3-0324", "r1"
    )
    assert "V3.1-Terminus: the scales of model.layers.{layer}.self_attn.o_proj" in dsctl(
        "diff", "v3.1", "v3.1-terminus"
    )


def test_every_meaning_is_said_somewhere_and_names_its_source() -> None:
    known = [describe(release.alias[0]) for release in releases()]
    said = {meaning.key for a in known for b in known for meaning in meanings(Diff(a, b))}
    assert said == {meaning.key for meaning in MEANINGS}
    assert all(meaning.source for meaning in MEANINGS)


def test_explained_fields_are_fields_of_releases() -> None:
    from dsctl.core.config_fields import text_fields
    from dsctl.look.config_changes import flattened

    known = {name for release in releases() for name in flattened(text_fields(release.config))}
    assert set(FIELDS) <= known


def test_a_checkpoint_and_its_bf16_have_the_same_parameters(folders: Path) -> None:
    found = facts(str(folders / "tiny"), str(folders / "tiny-bf16"))
    assert found["verdict"] == "storage"
    assert not found["templates"]["added"] and not found["templates"]["removed"]
    assert {tuple(c["changes"]["stored"]) for c in found["templates"]["changed"]} == {("FP8 ue8m0", "BF16")}
    assert [meaning["key"] for meaning in found["meanings"]] == ["dequantized"]
    assert found["totals"]["values"][0] == found["totals"]["values"][1]


def test_stored_tensors_are_listed_by_name(folders: Path) -> None:
    found = json.loads(
        dsctl("diff", folders / "tiny", folders / "tiny-bf16", "--tensors", "--json", "--only", "tensors")
    )
    always = {"origins", "differs", "verdict", "headline", "compared", "not_compared"}
    assert set(found) == always | {"templates", "tensors"}
    scales = [row for row in found["tensors"] if row[0].endswith("_scale_inv")]
    weights = [row for row in found["tensors"] if not row[0].endswith("_scale_inv")]
    assert len(scales) == len(weights) == 112
    assert all(after is None for _, _, after in scales)
    assert all(before == ["F8_E4M3", after[1]] and after[0] == "BF16" for _, before, after in weights)


def test_missing_and_surplus_tensors_of_a_folder_show(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = smaller(tmp_path_factory, layers=2, experts=2, bf16=True, shards=1)
    (data,) = whole.glob("*.safetensors")
    target = tmp_path / "changed"
    target.mkdir()
    (target / "config.json").write_text((whole / "config.json").read_text())
    specs = {
        name: spec for group in describe(str(whole)).groups for name in group.names for spec in group.specs.values()
    }
    lost = "model.layers.1.mlp.experts.1.up_proj.weight"
    specs["model.layers.1.extra.weight"] = specs.pop(lost)
    head, offsets = build(specs)
    size = max(offsets[name] + spec.nbytes for name, spec in specs.items())
    with (target / data.name).open("wb") as file:
        file.write(head)
        file.truncate(size)
    found = facts(str(whole), str(target))
    assert found["b"]["missing"] == [lost]
    assert [t["template"] for t in found["templates"]["added"]] == ["model.layers.{layer}.extra.weight"]
    changed = found["templates"]["changed"]
    assert [(c["template"], c["changes"]) for c in changed] == [
        ("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight", {"count": [4, 3]})
    ]
    assert "missing" in dsctl("diff", whole, target)


def test_control_characters_of_a_config_do_not_reach_the_terminal(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shutil.copytree(smaller(tmp_path_factory), tmp_path / "odd")
    config = tmp_path / "odd" / "config.json"
    fields = json.loads(config.read_text()) | {"a\x1b[31m[bold]": "\x1b]0;title\x07\n[/red]", "deep": {"er": [1, None]}}
    config.write_text(json.dumps(fields))
    for style in ((), ("--markdown",)):
        text = dsctl("diff", smaller(tmp_path_factory), tmp_path / "odd", "--only", "config", *style)
        assert "\x1b" not in text and "\x07" not in text
        assert "[31m[bold]" in text and "[/red]" in text and "deep.er" in text


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("v3", "v3.2"), 0),
        (("v3", "v3.2", "--exit-code"), 1),
        (("v3", "v3"), 0),
        (("v3", "v3", "--exit-code"), 2),
        (("DeepSeek-V3.2", "v3.2", "--exit-code"), 2),
        (("v3.2", "deepseek-ai/DeepSeek-V3.2", "--exit-code", "--only", "config"), 2),
        (("v3", "r1", "--exit-code"), 1),
        (("v3", "r1", "--exit-code", "--only", "config"), 1),
        (("v3", "r1", "--exit-code", "--only", "tensors"), 0),
        (("v3", "r1", "--exit-code", "--only", "totals"), 0),
        (("v3", "r1", "--exit-code", "--only", "files"), 0),
        (("v3", "v3.2", "--exit-code", "--only", "totals"), 1),
        (("./DeepSeek-V3.2", "v3.2", "--exit-code"), 10),
        (("DeepSeek-V3.2", "v3.2", "--local"), 10),
        (("v3", "v3.2", "--local", "--remote"), 2),
        (("v3", "v3.2", "--exit-code", "--quiet"), 1),
    ],
)
def test_exit_code_tells_where_asked(
    words: tuple[str, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an empty folder: no name means anything here."""
    monkeypatch.chdir(tmp_path)
    assert call("diff", *words).returncode == code


@pytest.mark.parametrize("only", ["config", "tensors", "totals", "files"])
def test_only_one_part(only: str) -> None:
    headings = {"config": "Config", "tensors": "Parameters", "totals": "Totals", "files": "Other files"}
    text = dsctl("diff", "v3", "v3.2", "--only", only)
    assert [part for part, heading in headings.items() if f"\n\n{heading}" in text] == [only]
    assert "DeepSeek-V3 →" not in text


def test_unknown_sides_and_parts_are_refused_with_a_hint() -> None:
    assert dsctl_fails("diff", "v3", "v3.22") == 10
    assert "v3.2" in call("diff", "v3", "v3.22").stderr
    assert dsctl_fails("diff", "v3", "v3.2", "--only", "all") == 2


def test_releases_of_the_same_shapes_know_one_another() -> None:
    names = [release.alias[0] for release in identify(describe("r1").config)]
    assert names == [
        "v3", "v3-base", "r1", "r1-zero", "v3-0324", "r1t-chimera", "prover-v2-671b", "r1-0528", "v3.1-base", "v3.1",
        "v3.1-terminus", "r1t2-chimera",
    ]  # fmt: skip


def test_numbers_are_folded_for_the_eye() -> None:
    assert ranges([5, 0, 1, 2, 7, 6]) == "0-2, 5-7" and ranges([]) == "" and ranges([3]) == "3"
    assert ranges([0, 1, 2, 6, 10, 14, 18]) == "0-2, 6-18 by 4" and ranges([1, 2, 5, 9]) == "1-2, 5, 9"
    assert folded("model.layers.3.mlp.experts.17.w1") == ("model.layers.{layer}.mlp.experts.{expert}.w1", (3, 17))
    assert same(1, 1.0) and not same(1, True) and not same(0, False)


def first(*words: str | Path) -> str:
    return dsctl(*words).splitlines()[0]


def test_the_first_line_says_where_each_side_comes_from(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    built_in = "dsctl's built-in description of DeepSeek-V3.2"
    assert first("diff", "DeepSeek-V3.2", "v3.2") == f"A and B are the same: {built_in}."
    assert facts("DeepSeek-V3.2", "v3.2")["origins"]["same"] is True
    for verb in (("inspect",), ("inspect", "--fold"), ("plan",)):
        assert first(verb[0], "DeepSeek-V3.2", *verb[1:]) == f"From {built_in}."
        assert dsctl_fails(verb[0], "DeepSeek-V3.2", *verb[1:], "--local") == 10
        assert dsctl_fails(verb[0], "./DeepSeek-V3.2", *verb[1:]) == 10
    shutil.copytree(smaller(tmp_path_factory), tmp_path / "DeepSeek-V3.2")
    folder = "headers and config.json in folder DeepSeek-V3.2"
    for only in ((), ("--only", "tensors"), ("--markdown",)):
        assert first("diff", "DeepSeek-V3.2", "v3.2", *only) == f"A: {folder}. B: {built_in}."
    sides = facts("./DeepSeek-V3.2", "v3.2", "--only", "config")["origins"]
    assert (sides["a"]["kind"], sides["a"]["place"]) == ("folder", str(tmp_path / "DeepSeek-V3.2"))
    assert (sides["b"]["kind"], sides["b"]["place"], sides["same"]) == ("release", "deepseek-ai/DeepSeek-V3.2", False)
    assert first("inspect", "DeepSeek-V3.2", "--local") == first("plan", "DeepSeek-V3.2") == f"From {folder}."
    assert call("diff", "DeepSeek-V3.2", "v3.2", "--exit-code").returncode == 1
    assert call("diff", "./DeepSeek-V3.2", "DeepSeek-V3.2", "--exit-code", "--local").returncode == 0
    against = json.loads(call("verify", "./DeepSeek-V3.2", "--against", "v3.2", "--json").stdout)["against"]
    assert (against["kind"], against["text"]) == ("release", built_in)
    assert dsctl_fails("verify", "./DeepSeek-V3.2", "--against", "v3.2", "--local") == 10


DERIVED = [release.alias[0] for release in releases() if "config" in release.derived]


@pytest.mark.parametrize("name", DERIVED)
def test_a_derived_config_is_said_wherever_something_rests_on_it(name: str) -> None:
    """Text, JSON and Markdown of every verb that takes a release; pages are in test_reports."""
    full = describe(name).name
    assert "derived from another release, not read" in first("inspect", name)
    assert "derived from another release, not read" in first("plan", name)
    for words in (("inspect", name), ("plan", name)):
        assert "config" in json.loads(dsctl(*words, "--json"))["origin"]["derived"]
    for words in (("--markdown",), ("--only", "tensors")):
        assert "derived from another release, not read" in first("diff", name, "r1", *words)
    found = facts(name, "r1")
    assert "config" in found["origins"]["a"]["derived"] and found["origins"]["b"]["derived"] == []
    assert f"Config of {full}: derived, not read." in found["headline"]
    assert "config.json" not in found["compared"] and f"config.json of {full}" in found["not_compared"]
    shard = dsctl("shard", name, "out", "--tp", "2", "--dry-run")
    assert "derived from another release, not read" in " ".join(shard.split())
    relative = next(other.alias[0] for other in describe(name).alike if other.name != full)
    assert name in facts(relative, "r1")["a"]["same_shapes_derived"]


def test_derived_configs_are_said_of_what_has_their_shapes() -> None:
    seen = json.loads(dsctl("inspect", "v3", "--json"))
    known = {release.name for release in releases() if "config" in release.derived}
    assert set(seen["parameters_as_in_derived"]) == known & set(seen["parameters_as_in"]) != set()
    assert "by derived configs: " in " ".join(dsctl("inspect", "v3").split())


def test_only_training_is_said_to_differ_with_what_was_not_looked_at() -> None:
    for name in ("r1", "v3-0324"):
        said = {one["key"]: one["text"] for one in facts("v3", name)["meanings"]}["training-only"]
        for what in ("values of weights", "tokenizer", "chat template", "generation config"):
            assert what in said.partition("Not compared")[2]
    assert "config.json of DeepSeek-V3-0324" in said.partition("Not compared")[2]


def test_files_beside_the_weights_are_compared_byte_for_byte(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ours, theirs = smaller(tmp_path_factory), tmp_path / "theirs"
    shutil.copytree(ours, theirs)
    same = facts(str(ours), str(theirs))
    assert same["verdict"] == "nothing" and {"tokenizer", "chat template"} <= set(same["compared"])
    assert same["not_compared"] == ["values of weights"]
    tokenizer = theirs / "tokenizer.json"
    text = tokenizer.read_bytes()
    tokenizer.write_bytes(text[:-1] + bytes([text[-1] ^ 1]))
    (theirs / "generation_config.json").unlink()
    (theirs / "chat_template.jinja").write_text("{{ messages }}")
    found = facts(str(ours), str(theirs))
    assert found["verdict"] == "files" and found["differs"]
    kinds = {one["kind"]: one for one in found["files"]}
    assert kinds["tokenizer"]["changed"] == ["tokenizer.json"] and kinds["tokenizer"]["same"]
    assert kinds["generation config"]["removed"] == ["generation_config.json"]
    assert kinds["chat template"]["added"] == ["chat_template.jinja"]
    assert call("diff", ours, theirs, "--exit-code").returncode == 1
    assert call("diff", ours, theirs, "--exit-code", "--only", "files").returncode == 1
    assert call("diff", ours, theirs, "--exit-code", "--only", "tensors").returncode == 0
    assert "tokenizer different tokenizer.json" in " ".join(dsctl("diff", ours, theirs).split())
    assert facts(str(ours), "v3.2")["files"] is None
    assert "not compared" in dsctl("diff", ours, "v3.2", "--only", "files")


def test_what_a_number_costs_while_decoding_is_said_so() -> None:
    text = " ".join(dsctl("diff", "v3", "v3.2").split())
    assert "13.3 times less attention arithmetic while decoding" in text
    assert "Arithmetic of one new token while decoding" in text


def test_a_miniature_says_what_its_config_was_derived_from(tmp_path: Path) -> None:
    sizes = ("--layers", "2", "--experts", "2", "--hidden", "128", "--heads", "2", "--vocab", "128")
    made = call("tiny", "v3-0324", tmp_path / "small", *sizes)
    assert "config and storage derived from another release, not read" in " ".join(made.stderr.split())
    assert json.loads(dsctl("tiny", "v3-0324", tmp_path / "small", *sizes, "--json"))["origin"]["kind"] == "release"


def test_long_lists_of_a_config_are_told_by_their_counts() -> None:
    text = " ".join(dsctl("diff", "v4-flash", "v4-flash-0731", "--only", "config").split())
    assert "compress_ratios 3 x 0, 21 x 4, 20 x 128 → 5 x 0, 21 x 4, 20 x 128" in text
    assert "dspark_target_layer_ids [40, 41, 42]" in text
    added = facts("v4-flash", "v4-flash-0731", "--only", "config")["config"]
    assert added["changed"]["compress_ratios"][1][-4:] == [4, 0, 0, 0]


def test_costs_of_compressed_attention_are_compared_in_one_format() -> None:
    found = facts("v3.2", "v4-pro")
    totals = found["totals"]
    assert totals["cache_format"] == "fp8" and facts("v3", "v3.2")["totals"]["cache_format"] == "bf16"
    assert totals["cache_bytes"] == [61 * 656, 4521.4375] and totals["index_bytes"] == [61 * 132, 510]
    assert totals["fixed_bytes"] == [0, 61 * 128 * 584 + 18_710_528]
    assert list(totals["work"]) == ["4096", "32768", "131072", "1048576"]
    before, after = totals["work"]["1048576"]
    assert before == 61 * (128 * 2 * 1088 * 2048 + 64 * 2 * 129 * 1_048_576)
    entries = 30 * (128 + 1024) + 31 * (128 + 8192)
    assert after == 4 * 128 * 512 * entries + 30 * 2 * 64 * 128 * 262_144
    compressors = [t for t in found["templates"]["added"] if t["template"].endswith("attn.compressor.ape")]
    assert [(t["shape"], t["count"]) for t in compressors] == [([4, 1024], 30), ([128, 512], 31)]
    assert "KV cache per sequence" in dsctl("diff", "v3.2", "v4-pro", "--only", "totals")
    assert "KV cache per sequence" not in dsctl("diff", "v3", "v3.2", "--only", "totals")


def test_layers_of_a_drafter_go_by_the_numbers_in_their_names() -> None:
    found = facts("v4-flash", "v4-flash-0731")["templates"]
    assert {tuple(t["layers"]) for t in found["removed"]} == {(0,)}
    assert {tuple(t["layers"]) for t in found["added"]} == {(0,), (2,)}
    changes = {tuple(map(tuple, change["changes"]["layers"])) for change in found["changed"]}
    assert changes == {((0,), (0, 1, 2)), ((0,), (2,))}


def test_names_of_two_kinds_are_no_additions(tmp_path: Path) -> None:
    """V3.2 and V4 share no name: a page says so, and does not count what was added."""
    dsctl("diff", "v3.2", "v4-pro", "--html", tmp_path / "page.html", "--quiet")
    text = (tmp_path / "page.html").read_text()
    assert "No parameter has the same name on both sides" in text and "only whole stages are marked" in text
    assert "adds" not in text.partition('id="means"')[0] and 'class="box added"' not in text


@pytest.mark.parametrize(
    ("a", "b", "context", "share"),
    [("v3", "v3.2", 131_072, 9.5), ("v3", "v3.2", 4_096, 1.25), ("v3", "v4-pro", 1 << 20, 59.1)],
)
def test_a_whole_token_costs_its_active_values_and_attention(a: str, b: str, context: int, share: float) -> None:
    """Two operations for each active value, and the attention that grows with the context."""
    totals = facts(a, b)["totals"]
    before, after = totals["token_work"][str(context)]
    for side, whole in enumerate((before, after)):
        assert whole == 2 * totals["active_values"][side] + totals["work"][str(context)][side]
    assert before / after == pytest.approx(share, rel=0.005)


def test_the_cost_of_the_whole_token_is_said_beside_attention() -> None:
    for words in (("v3", "v3.2"), ("v3", "v3.2", "--markdown")):
        text = " ".join(dsctl("diff", *words).split())
        assert "13.3 times less attention arithmetic while decoding (9.5 times less for the whole token)" in text
        assert "At 4,096 tokens attention takes 1.79 times less, the whole token 1.25 times less" in text
    back = {one["key"]: one["text"] for one in facts("v3.2", "v3")["meanings"]}["indexer-lost"]
    assert "13.3 times more" in back and "(9.5 times more for the whole token)" in back and "1.25 times more" in back
    text = dsctl("diff", "v3", "v3.2", "--only", "totals")
    assert text.index("whole token at 4,096") < text.index("attention at 4,096")


def test_the_answer_comes_before_every_table() -> None:
    for words in ((), ("--markdown",)):
        text = dsctl("diff", "v3", "v3.2", *words)
        places = [text.index(said) for said in ("built-in", "Different architecture", "What it means", "repository")]
        assert places == sorted(places) and places[-1] < text.index("index_topk  " if not words else "index_topk |")


def test_a_diff_without_differences_is_a_sentence(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(smaller(tmp_path_factory), copy)
    for words in ((), ("--markdown",)):
        text = dsctl("diff", smaller(tmp_path_factory), copy, *words)
        assert "No difference: same parameters, storage format and config.json." in text
        assert "Compared: config.json" in text and "Totals" not in text and len(text.splitlines()) < 9
    assert len(facts(str(copy), str(copy))["totals"]["token_work"]) == 3


def test_the_largest_change_comes_first_and_modules_stay_together() -> None:
    units = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}

    def nbytes(cell: str) -> float:
        number, unit = cell.split()
        return float(number.replace(",", "")) * units[unit]

    section = next(parameters(Diff(describe("v2"), describe("v4-flash"))))
    modules: list[list[tuple[str, float]]] = []
    for row in section.rows:
        if len(row.cells) == 1:
            modules.append([])
        else:
            modules[-1].append((row.kind, nbytes(row.cells[5])))
    for kind in ("removed", "added"):
        held = [[size for _, size in rows] for rows in modules if rows[0][0] == kind]
        assert len(held) > 3 and all(sizes == sorted(sizes, reverse=True) for sizes in held)
        sums = [sum(sizes) for sizes in held]
        assert all(first >= 0.99 * then for first, then in itertools.pairwise(sums))
    changed = list(parameters(Diff(describe("v2"), describe("v3"))))[1]
    for aspect in ("shape", "layers"):
        sizes = [nbytes(row.cells[3]) for row in changed.rows if row.cells[0] == aspect]
        assert len(sizes) > 2 and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("v3", "v3.2", "--fail-on", "architecture"), 1, "v3 and v3.2 differ: architecture (310 parameters)"),
        (("v3", "v3.2", "--fail-on", "storage,config"), 1, "differ: config (6 fields), storage (46,060 parameters)"),
        (
            ("v3", "v3.2", "--fail-on", "config", "--fail-on", "any"),
            1,
            "differ: architecture (310 parameters), config (6 fields), storage",
        ),
        (("v3", "v3.2", "--fail-on", "any", "--only", "files"), 1, "differ: files"),
        (("v3", "v3.2", "--fail-on", "any"), 1, "config, storage (46,060 parameters), files"),
        (("v3", "r1", "--fail-on", "architecture,storage", "--fail-on", "config"), 0, ""),
        (("v3", "r1", "--fail-on", "any"), 1, "differ: config"),
        (("v3", "v3.1", "--fail-on", "architecture"), 0, ""),
        (("v3", "v3.1", "--fail-on", "storage"), 1, "storage (45,808 parameters)"),
        (("v3", "r1-zero", "--fail-on", "config"), 2, "--fail-on config: config.json of DeepSeek-R1-Zero was not read"),
        (("v3", "v3", "--fail-on", "any"), 2, "no file was compared"),
        (("v3", "r1", "--fail-on", "storge"), 2, "--fail-on: unknown kind 'storge'"),
        (("v3", "r1", "--json", "--markdown"), 2, "--json and --markdown cannot be combined"),
        (("v3", "r1", "--only", "file"), 2, "--only: unknown part 'file'"),
    ],
)
def test_checks_fail_on_the_kinds_that_they_name(
    words: tuple[str, ...], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call("diff", *words)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert bool(done.stderr) == bool(said)
    assert bool(done.stdout) == (code != 2)


def test_contents_of_other_files_are_compared(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    ours, theirs = smaller(tmp_path_factory), tmp_path / "theirs"
    shutil.copytree(ours, theirs)
    config = json.loads((theirs / "tokenizer_config.json").read_text())
    (theirs / "chat_template.jinja").write_text(config.pop("chat_template"))
    (theirs / "tokenizer_config.json").write_text(json.dumps(config))
    generation = json.loads((theirs / "generation_config.json").read_text()) | {"temperature": 0.25}
    (theirs / "generation_config.json").write_text(json.dumps(generation))
    tokenizer = json.loads((theirs / "tokenizer.json").read_text())
    tokenizer["added_tokens"][-1]["id"] += 7
    token = tokenizer["added_tokens"][-1]["content"]
    (theirs / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = facts(str(ours), str(theirs))
    changes = {(one["kind"], one["field"]): (one["change"], one["a"], one["b"]) for one in found["contents"]}
    number = tokenizer["added_tokens"][-1]["id"]
    assert changes["special tokens", token] == ("changed", number - 7, number)
    assert changes["chat template", "default"] == ("moved", "tokenizer_config.json", "chat_template.jinja")
    assert changes["generation config", "temperature"][::2] == ("changed", 0.25)
    assert found["unread"] == [] and [one["key"] for one in found["meanings"]] == ["tokens-renumbered"]
    text = " ".join(dsctl("diff", ours, theirs).split())
    assert "same text, moved: tokenizer_config.json → chat_template.jinja" in text
    assert f"Special tokens have different numbers: {token} {number - 7} → {number}." in text
    config = json.loads((theirs / "config.json").read_text()) | {"rope_theta": 5}
    (theirs / "config.json").write_text(json.dumps(config))
    assert facts(str(ours), str(theirs))["headline"].endswith("; config.json and other files differ.")


def test_facts_of_releases_are_shown_as_known() -> None:
    text = " ".join(dsctl("diff", "v3.2", "v4-pro", "--only", "files").split())
    assert "<think> 128798 → 128821" in text and "Known from the sources of both releases." in text
    assert "Not compared: tokenizer, generation config, code." in text
    assert facts("v3.2", "v4-pro")["files"] is None


def test_a_diff_prints_as_its_table() -> None:
    found = Diff(describe("v3"), describe("v3.2"))
    text = str(found)
    assert text.startswith("A: dsctl's built-in description of DeepSeek-V3.") and "Different architecture." in text
    assert "model.layers.{layer}.self_attn.indexer.wq_b.weight" in text and "685,355,329,792" in text
    assert repr(found) == "<Diff DeepSeek-V3 → DeepSeek-V3.2: architecture>"
    assert "<b>" not in str(Diff(describe("v3"), describe("v3"))) and "Added" not in str(Diff(found.a, found.a))


@pytest.mark.parametrize("words", ["v3 v3.2", "v3.2 v4-pro", "v2 v3", "v3 v3", "v3 v3.2 --markdown --tensors"])
@pytest.mark.parametrize("width", [60, 120])
def test_narrow_and_ascii_terminals_are_served(words: str, width: int) -> None:
    environment = {**os.environ, "COLUMNS": str(width), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "dsctl", "diff", *words.split()], capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.isascii() and done.stdout
