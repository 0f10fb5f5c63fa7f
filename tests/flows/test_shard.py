"""`dsctl shard` and `dsctl merge` from end to end: the same bytes there and back, and what is refused."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsctl.api import open as dsctl_open
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl, dsctl_fails, run
from tests.support.folders import contents, linked, tensors

# The smallest that TP 8 cuts between blocks.
EVEN = {"layers": 2, "experts": 8, "hidden": 128, "heads": 16, "vocab": 256, "moe_intermediate": 1024}
MANIFEST = "dsctl-rank.json"


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3.2", **EVEN)


Spread = Callable[[str], Path]


@pytest.fixture(scope="module")
def spread(even: Path, tmp_path_factory: pytest.TempPathFactory) -> Spread:
    """The same on ranks, by the options of `dsctl shard`: made once, for tests that change nothing in it."""

    @cache
    def made(words: str) -> Path:
        folder = tmp_path_factory.mktemp("spread") / "parts"
        dsctl("shard", even, folder, *words.split())
        return folder

    return made


@pytest.fixture(scope="module")
def quarters(spread: Spread) -> Path:
    """The same on four ranks."""
    return spread("--tp 4")


def source_of(kind: str, factory: pytest.TempPathFactory) -> Path:
    return tiny(factory, kind.removesuffix("-bf16"), bf16=kind.endswith("-bf16"), **EVEN)


def there_and_back(source: Path, folder: Path, *words: object) -> None:
    """Shard and merge give the source's files byte for byte."""
    dsctl("shard", source, folder / "parts", *words, "--workers", 1)
    and_back(source, folder / "parts", folder / "back")


def and_back(source: Path, parts: Path, back: Path) -> None:
    """Merge gives the source's files byte for byte, and the audit of the sharding says that all was moved."""
    dsctl("merge", parts, back, "--workers", 1)
    assert contents(back) == contents(source)
    audit: dict[str, int] = json.loads((parts / "dsctl.json").read_text())["audit"]
    assert audit["moved"] == audit["parameters"] and audit["unexplained"] == 0


@pytest.mark.parametrize("words", ["--tp 1", "--tp 2", "--tp 8", "--ep 2", "--ep 8"])
def test_shard_then_merge_is_byte_identical(even: Path, spread: Spread, tmp_path: Path, words: str) -> None:
    and_back(even, spread(words), tmp_path / "back")


@pytest.mark.parametrize(
    ("kind", "words"), [("v3", "--tp 8 --ep 2"), ("v3.1", "--tp 2 --ep 4 --pp 2"), ("v3.2-bf16", "--tp 8 --ep 4")]
)
def test_so_it_is_for_other_releases_and_formats(
    kind: str, words: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    there_and_back(source_of(kind, tmp_path_factory), tmp_path, *words.split())


@pytest.mark.parametrize("words", ["deepseek --tp 8 --mtp keep", "fused --tp 4 --ep 2", "stacked --tp 2 --ep 4"])
def test_so_it_is_for_other_layouts(even: Path, tmp_path: Path, words: str) -> None:
    there_and_back(even, tmp_path, "--layout", *words.split())


@pytest.mark.parametrize("words", ["--tp 4", "--tp 2 --ep 2"])
def test_so_it_is_for_vllm_whose_files_tell_how_experts_are_shared(
    words: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = tiny(tmp_path_factory, "v3", mtp=False, **EVEN)
    there_and_back(source, tmp_path, "--layout", "vllm", *words.split())


@pytest.mark.parametrize("layout", ["fused", "stacked"])
def test_whole_checkpoints_are_joined_and_parted(even: Path, tmp_path: Path, layout: str) -> None:
    dsctl("merge", even, tmp_path / "joined", "--layout", layout)
    joined, before = tensors(tmp_path / "joined"), tensors(even)
    assert len(joined) < len(before)
    dsctl("merge", tmp_path / "joined", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(even)


def test_joined_tensors_are_what_their_names_say(even: Path, tmp_path: Path) -> None:
    before = tensors(even)
    for layout in ("fused", "stacked"):
        dsctl("merge", even, tmp_path / layout, "--layout", layout)
    fused, stacked = tensors(tmp_path / "fused"), tensors(tmp_path / "stacked")
    attention, experts = "model.layers.1.self_attn.", "model.layers.1.mlp.experts."
    for suffix in ("", "_scale_inv"):
        pair = [before[f"{attention}{name}.weight{suffix}"] for name in ("q_a_proj", "kv_a_proj_with_mqa")]
        assert same(fused[f"{attention}fused_qkv_a_proj.weight{suffix}"], torch.cat([raw(one) for one in pair]))
        both = [
            torch.cat([raw(before[f"{experts}{expert}.{name}_proj.weight{suffix}"]) for name in ("gate", "up")])
            for expert in range(8)
        ]
        assert same(fused[f"{experts}3.gate_up_proj.weight{suffix}"], both[3])
        assert same(stacked[f"{experts}gate_up_proj{suffix}"], torch.stack(both))
        down = [raw(before[f"{experts}{expert}.down_proj.weight{suffix}"]) for expert in range(8)]
        assert same(stacked[f"{experts}down_proj{suffix}"], torch.stack(down))


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whose values can be compared and joined whatever its dtype."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(raw(one), raw(other))


def test_resharding_gives_what_sharding_gives(spread: Spread, tmp_path: Path) -> None:
    for number, words in enumerate(("--tp 2", "--tp 4 --ep 8", "--layout deepseek --tp 4 --mtp keep")):
        dsctl("shard", spread("--tp 8"), tmp_path / f"again{number}", *words.split())
        assert contents(tmp_path / f"again{number}") == contents(spread(words))


def test_the_files_of_the_whole_are_kept_through_layouts_that_have_others(spread: Spread, tmp_path: Path) -> None:
    four = spread("--layout deepseek --tp 4 --mtp keep")
    for number, words in enumerate(("--tp 8", "--tp 2 --layout fused")):
        dsctl("shard", four, tmp_path / f"again{number}", *words.split())
        assert contents(tmp_path / f"again{number}") == contents(spread(words))


def test_every_rank_is_a_folder_that_stands_alone(even: Path, spread: Spread) -> None:
    out = spread("--tp 4 --ep 2")
    before, world = tensors(even), 4
    for rank in range(world):
        folder = out / f"rank-{rank:05d}"
        held, told = tensors(folder), json.loads((folder / MANIFEST).read_text())
        assert json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].keys() == held.keys()
        assert (folder / "config.json").read_bytes() == (even / "config.json").read_bytes()
        assert (folder / "tokenizer.json").exists()
        assert (told["tp"], told["ep"], told["pp"], told["rank"]) == (4, 2, 1, rank)
        seen = 0
        for entry in told["parameters"]:
            cut = tuple(slice(*span) for span in entry["box"])
            for layer in entry["layers"] or [None]:
                for expert in entry["experts"] or [None]:
                    name = entry["template"].format(layer=layer, expert=expert)
                    assert same(held[name], raw(before[name])[cut]), name
                    seen += 1
        assert seen == sum(not name.endswith("_scale_inv") for name in held)
        assert json.loads(dsctl("inspect", folder, "--json"))["parameters"] == seen


def test_only_some_ranks_are_written_from_what_they_need(even: Path, tmp_path: Path) -> None:
    dsctl("shard", even, tmp_path / "all", "--tp", 8, "--ep", 4)
    whole = json.loads(dsctl("shard", even, tmp_path / "x", "--tp", 8, "--ep", 4, "--dry-run", "--json"))
    some = json.loads(dsctl("shard", even, tmp_path / "x", "--tp", 8, "--ep", 4, "--rank", "6", "--dry-run", "--json"))
    assert some["bytes_in"] < whole["bytes_in"] / 2
    dsctl("shard", even, tmp_path / "some", "--tp", 8, "--ep", 4, "--rank", "1,4-5")
    ranks = {path.name for path in (tmp_path / "some").glob("rank-*")}
    assert ranks == {"rank-00001", "rank-00004", "rank-00005"}
    for rank in ranks:
        assert contents(tmp_path / "some" / rank) == contents(tmp_path / "all" / rank)
    done = call("merge", tmp_path / "some", tmp_path / "back")
    assert done.returncode == 30 and "ranks 0, 2, 3, 6, 7 of 8 are missing" in done.stderr
    for words in (["--rank", "8"], ["--rank", "3-1"], ["--rank", "one"]):
        assert dsctl_fails("shard", even, tmp_path / "none", "--tp", 8, *words) in (2, 30)
    assert not (tmp_path / "none").exists()


def test_parts_written_by_several_machines_are_put_together(even: Path, tmp_path: Path) -> None:
    for ranks in ("0-1", "2-3"):
        dsctl("shard", even, tmp_path / ranks, "--tp", 4, "--rank", ranks)
        for folder in (tmp_path / ranks).glob("rank-*"):
            shutil.copytree(folder, tmp_path / "gathered" / folder.name)
    for name in ("config.json", "whole.dsctl"):
        shutil.copy(tmp_path / "0-1" / name, tmp_path / "gathered" / name)
    dsctl("merge", tmp_path / "gathered", tmp_path / "back")
    for path in even.glob("model*"):
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


def test_ranks_of_another_config_are_refused(quarters: Path, tmp_path: Path) -> None:
    linked(quarters, tmp_path / "parts")
    path = tmp_path / "parts" / "rank-00002" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 0.5}))
    done = call("merge", tmp_path / "parts", tmp_path / "back")
    assert done.returncode == 20 and not (tmp_path / "back").exists()
    assert "config.json and rank-00002/config.json differ in rms_norm_eps" in done.stderr


def test_a_layout_without_the_mtp_layer_is_merged_without_it(even: Path, tmp_path: Path) -> None:
    """As DeepSeek's own script leaves it: no MTP layer in the files, but in config.json."""
    dsctl("shard", even, tmp_path / "parts", "--tp", 2, "--layout", "deepseek")
    shutil.copy(even / "config.json", tmp_path / "parts")
    done = call("merge", tmp_path / "parts", tmp_path / "back")
    assert done.returncode == 20 and "hint: drop the drafter with --mtp drop" in done.stderr
    dsctl("merge", tmp_path / "parts", tmp_path / "back", "--no-mtp")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["num_nextn_predict_layers"] == 0
    before, after = tensors(even), tensors(tmp_path / "back")
    assert after.keys() == {name for name in before if not name.startswith("model.layers.2.")}
    assert all(same(before[name], after[name]) for name in after)


def test_what_loaders_make_themselves_is_left_out_of_their_layouts(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = tiny(tmp_path_factory, "kimi-k2", **EVEN)
    for layout in ("deepseek", "vllm"):
        said = json.loads(dsctl("shard", source, tmp_path / "x", "--tp", 2, "--layout", layout, "--dry-run", "--json"))
        names = [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(2)]
        assert said["dropped"] == [[name, f"no place in layout {layout}"] for name in names]
        dsctl("shard", source, tmp_path / layout, "--tp", 2, "--layout", layout)
        assert not [name for name in tensors(tmp_path / layout) if "inv_freq" in name]
        dsctl("merge", tmp_path / layout, tmp_path / f"{layout}-back")
        before, after = tensors(source), tensors(tmp_path / f"{layout}-back")
        assert before.keys() - after.keys() == set(names)
        assert all(same(before[name], after[name]) for name in after)
    there_and_back(source, tmp_path / "hf", "--tp", 2)


@pytest.mark.parametrize("words", ["fused --skip *.up_proj.weight", "stacked --skip *experts.3.*"])
def test_joined_tensors_are_not_written_in_part(even: Path, tmp_path: Path, words: str) -> None:
    for verb in ("merge", "shard --tp 2"):
        done = call(*verb.split(), even, tmp_path / "out", "--layout", *words.split())
        assert done.returncode == 30 and "joined tensors would be only partly filled" in done.stderr
    dsctl("merge", even, tmp_path / "out", "--layout", "stacked", "--skip", "*.layers.1.mlp.experts.*")


def change(path: Path, name: str) -> None:
    held = load_file(path)
    held[name].view(torch.uint8)[1] ^= 1
    save_file(held, path, metadata={"format": "pt"})


def test_part_of_a_model_is_spread_and_merged(even: Path, tmp_path: Path) -> None:
    dsctl("shard", even, tmp_path / "parts", "--tp", 2, "--only", "model.layers.1.*", "--skip", "*experts*")
    assert dsctl_fails("merge", tmp_path / "parts", tmp_path / "back") == 20
    dsctl("merge", tmp_path / "parts", tmp_path / "back", "--allow-missing")
    before, after = tensors(even), tensors(tmp_path / "back")
    assert after.keys() == {name for name in before if name.startswith("model.layers.1.") and "experts" not in name}
    assert all(same(before[name], after[name]) for name in after)


@pytest.mark.parametrize("words", ["--tp 8 --layout hf", "--tp 2 --layout stacked"])
def test_looking_verbs_read_what_is_spread(even: Path, spread: Spread, tmp_path: Path, words: str) -> None:
    parts = spread(words)
    assert "no problems found" in dsctl("verify", parts, "--deep")
    seen = json.loads(dsctl("inspect", parts, "--json"))
    assert seen["parameters"] == json.loads(dsctl("inspect", even, "--json"))["parameters"]
    assert "all identical" in dsctl("compare", even, parts)
    for name, source in (("one", even), ("two", parts)):
        dsctl("slice", source, tmp_path / name, "--layers", "0-1", "--experts", "2")
    assert "all identical" in dsctl("compare", tmp_path / "one", tmp_path / "two")


def test_copies_that_disagree_are_named(even: Path, quarters: Path, tmp_path: Path) -> None:
    shutil.copytree(quarters, tmp_path / "parts")
    name = "model.layers.1.post_attention_layernorm.weight"
    file = json.loads((even / "model.safetensors.index.json").read_text())["weight_map"][name]
    change(tmp_path / "parts" / "rank-00002" / file, name)
    for words in (["merge"], ["merge", "--to", "f32"]):
        done = call(words[0], tmp_path / "parts", tmp_path / "-".join(words), *words[1:])
        assert done.returncode == 41, done.stderr
        assert all(word in done.stderr for word in (name, f"rank-00000/{file}", f"rank-00002/{file}")), done.stderr


def test_a_cut_through_blocks_is_refused_with_the_sizes_that_fit(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = tiny(tmp_path_factory, "v3", **EVEN, intermediate=1000)
    done = call("shard", source, tmp_path / "out", "--tp", 8)
    assert done.returncode == 30 and not (tmp_path / "out").exists()
    assert "model.layers.{layer}.mlp.down_proj.weight: 1,000 into 8 parts: 125" in done.stderr
    assert "--tp 1 would fit" in done.stderr and "--recode" in done.stderr
    done = call("shard", source, tmp_path / "out", "--tp", 16, "--recode")
    assert done.returncode == 30 and "1,000 / 16" in done.stderr
    dsctl("shard", source, tmp_path / "bf16", "--tp", 8, "--bf16")


def test_sizes_that_fit_are_those_of_the_format_at_hand(
    even: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    done = call("shard", even, tmp_path / "out", "--tp", 3)
    assert done.returncode == 30 and "--tp 1, 2, 4, 8 would fit" in done.stderr
    done = call("shard", even, tmp_path / "out", "--tp", 3, "--bf16")
    assert done.returncode == 30 and "--tp 1, 2, 4, 8, 16 would fit" in done.stderr
    sizes = {"heads": 12, "hidden": 384, "intermediate": 1152, "moe_intermediate": 768, "experts": 6, "vocab": 768}
    source = tiny(tmp_path_factory, "v3", layers=2, **sizes)
    done = call("shard", source, tmp_path / "out", "--tp", 5)
    assert done.returncode == 30 and "--tp 1, 3 would fit" in done.stderr
    dsctl("shard", source, tmp_path / "out", "--tp", 3)
    done = call("shard", "v3.2", tmp_path / "out", "--tp", 256, "--dry-run")
    assert "3 kinds of parameters cannot be split" in done.stderr and "down_proj" not in done.stderr


def test_recoding_says_how_many_and_how_far_off(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    source = tiny(tmp_path_factory, "v3", **EVEN, intermediate=1000)
    dsctl("shard", source, tmp_path / "parts", "--tp", 8, "--recode")
    audit = json.loads((tmp_path / "parts" / "dsctl.json").read_text())
    assert audit["audit"]["requantized"] == 3
    assert audit["audit"]["worst_error_millionths"] < 40_000
    assert "3 parameters quantized again because of a cut" in audit["notes"]
    said = json.loads(dsctl("shard", source, tmp_path / "x", "--tp", 8, "--recode", "--dry-run", "--json"))
    kinds = {f"model.layers.{{layer}}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert {kind["template"] for kind in said["recoded"]} == kinds
    assert {(kind["parameters"], kind["why"]) for kind in said["recoded"]} == {
        (1, "a cut at 0 to 125 of 1000 is not aligned with blocks of 128")
    }
    assert "~ model.layers.{layer}.mlp.up_proj.weight: 1 parameter: a cut at 0 to 125" in dsctl(
        "shard", source, tmp_path / "x", "--tp", 8, "--recode", "--dry-run"
    )
    dsctl("convert", source, tmp_path / "values", "--bf16")
    before = tensors(tmp_path / "values")
    alone = tmp_path / "parts" / "rank-00005"
    assert dsctl_fails("convert", alone, tmp_path / "none", "--to", "f32") == 30
    dsctl("shard", alone, tmp_path / "rank", "--tp", 8, "--rank", 5, "--to", "f32")
    after = tensors(tmp_path / "rank" / "rank-00005")
    for name, rows in (("gate", (slice(625, 750), slice(None))), ("down", (slice(None), slice(625, 750)))):
        wanted = before[f"model.layers.0.mlp.{name}_proj.weight"].float()[rows]
        off = (after[f"model.layers.0.mlp.{name}_proj.weight"] - wanted).abs().max() / wanted.abs().max()
        assert off < 0.04
    done = call("merge", tmp_path / "parts", tmp_path / "back")
    assert done.returncode == 30 and "3 parameters would be cut through quantization blocks" in done.stderr
    dsctl("merge", tmp_path / "parts", tmp_path / "back", "--recode")


def test_experts_go_where_a_map_places_them(even: Path, tmp_path: Path) -> None:
    rows = [[0, 5, 2, 3, 1, 4, 6, 7, 5, 0]]
    (tmp_path / "map.json").write_text(json.dumps({"physical_to_logical_map": rows}))
    dsctl("shard", even, tmp_path / "parts", "--ep", 2, "--expert-map", tmp_path / "map.json")
    for rank in range(2):
        held = tensors(tmp_path / "parts" / f"rank-{rank:05d}")
        experts = {expert for expert in range(8) if f"model.layers.1.mlp.experts.{expert}.up_proj.weight" in held}
        assert experts == set(rows[0][rank * 5 : rank * 5 + 5])
    dsctl("merge", tmp_path / "parts", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(even)
    for wrong in ([[0, 1, 2, 3, 4, 5, 6]], [[0, 1, 2, 3, 4, 5, 6, 8]], [[0] * 8] * 3, [["x"]]):
        (tmp_path / "map.json").write_text(json.dumps({"physical_to_logical_map": wrong}))
        code = dsctl_fails("shard", even, tmp_path / "none", "--ep", 2, "--expert-map", tmp_path / "map.json")
        assert code == 20 and not (tmp_path / "none").exists()
    (tmp_path / "map.json").write_text(json.dumps({"physical_to_logical_map": []}))
    for words, code in ((["--ep", 2], 20), (["--tp", 4], 2)):
        assert dsctl_fails("shard", even, tmp_path / "none", *words, "--expert-map", tmp_path / "map.json") == code
    rows = [[*range(256), *range(32)]] * 58
    (tmp_path / "map.json").write_text(json.dumps({"physical_to_logical_map": rows}))
    words = ["--ep", 32, "--expert-map", tmp_path / "map.json", "--dry-run", "--json"]
    mapped = json.loads(dsctl("shard", "v3.2", tmp_path / "none", *words))
    dealt = json.loads(dsctl("shard", "v3.2", tmp_path / "none", "--ep", 32, "--dry-run", "--json"))
    # An expert is three matrices with a scale each; the MTP layer is dealt out as it was.
    assert {one["tensors"] - other["tensors"] for one, other in zip(mapped["ranks"], dealt["ranks"], strict=True)} == {
        58 * 6
    }


def test_formats_change_in_the_same_pass_and_back(even: Path, quarters: Path, tmp_path: Path) -> None:
    dsctl("convert", even, tmp_path / "bf16", "--bf16")
    dsctl("shard", even, tmp_path / "parts", "--tp", 4, "--bf16")
    dsctl("merge", tmp_path / "parts", tmp_path / "merged")
    one, other = contents(tmp_path / "bf16"), contents(tmp_path / "merged")
    assert one == other
    dsctl("merge", tmp_path / "parts", tmp_path / "fp8", "--fp8")
    assert contents(tmp_path / "fp8") == contents(even)
    dsctl("shard", tmp_path / "bf16", tmp_path / "again", "--tp", 4, "--fp8")
    for path in quarters.rglob("*.safetensors"):
        assert (tmp_path / "again" / path.relative_to(quarters)).read_bytes() == path.read_bytes()


def test_a_dry_run_tells_every_size(even: Path, quarters: Path, tmp_path: Path) -> None:
    said = json.loads(dsctl("shard", even, tmp_path / "out", "--tp", 4, "--dry-run", "--json"))
    held = contents(quarters)
    assert said["bytes_out"] == sum(map(len, held.values()))
    assert said["files"] == {name: len(held[name]) for name in said["files"]}
    assert "tensor-parallel sizes that cut no block: 1, 2, 4, 8" in said["notes"]


def test_a_release_is_planned_by_its_name_alone(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run("shard", "v3.2", tmp_path / "out", "--tp", "8", "--dry-run", "--json", cwd=tmp_path)
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["audit"] == {"moved": 46493, "converted": 0, "recoded": 0}
    assert said["legal_tp"] == [1, 2, 4, 8, 16] and len(said["ranks"]) == 8
    assert took < 5
    done = call("shard", "v3.2", tmp_path / "out", "--tp", 32, "--dry-run")
    assert done.returncode == 30 and "mlp.gate_proj.weight: 18,432 into 32 parts: 576 = 4.5 x 128" in done.stderr
    assert "--tp 1, 2, 4, 8, 16 would fit" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--tp 8 --layout foo", "unknown layout 'foo'"), ("--tp 8 --rank 99", "no rank 99: there are 8"),
        ("--tp 8 --to int8-channel", "one scale would span several ranks"),
        ("--tp 8 --to fp8-channel --rank 1", "one scale would span several ranks"),
        ("--tp 2 --ep 8 --layout fused --to nvfp4", "its global_scale would also cover the matrix it is joined with"),
        ("--tp 2 --ep 8 --layout fused --to int4-group", "int4-group cannot be joined"),
        ("--tp 2 --ep 8 --layout stacked --to int4-group", "int4-group cannot be joined"),
        ("--tp 2 --ep 8 --layout stacked --to nvfp4", "its global_scale would also cover the matrix it is joined with"),
        ("--tp 8 --layout deepseek --ep 2", "layout deepseek needs as many expert-parallel parts"),
    ],
)  # fmt: skip
def test_a_release_is_refused_what_its_checkpoint_is(even: Path, tmp_path: Path, words: str, said: str) -> None:
    for source in ("v3.2", even):
        done = call("shard", source, tmp_path / "out", *words.split(), "--dry-run")
        code = 2 if said.startswith(("unknown layout", "no rank")) else 30
        assert done.returncode == code and said in done.stderr, done.stderr


@pytest.mark.parametrize("words", ["--tp 4", "--tp 2 --ep 4", "--tp 4 --rank 1", "--tp 2 --ep 4 --layout stacked"])
def test_a_plan_by_name_counts_what_a_checkpoint_of_it_gets(even: Path, spread: Spread, words: str) -> None:
    from dsctl.look.opened import of_checkpoint
    from dsctl.plan.overview import overview

    source, parts = dsctl_open(even), spread(words)
    tp, ep = (int(value) for value in (words.split()[1], words.split()[3] if "--ep" in words else 1))
    ranks, layout = (1,) if "--rank" in words else (), "stacked" if "stacked" in words else "hf"
    asked = source.to(tp=tp, ep=ep, ranks=ranks, layout=layout).request
    found = overview(of_checkpoint(source.checkpoint, "it").contents, asked)
    held = {int(path.name.partition("-")[2]): tensors(path) for path in parts.glob("rank-*")}
    assert found.tensors == {rank: len(of) for rank, of in held.items()}
    assert found.nbytes == {rank: sum(one.nbytes for one in of.values()) for rank, of in held.items()}
    assert found.counts["moved"] == json.loads((parts / "dsctl.json").read_text())["audit"]["moved"]


@pytest.mark.parametrize(
    "words",
    [
        ["--tp", 4, "--ep", 3], ["--ep", 16], ["--pp", 4], ["--tp", 2, "--layout", "unknown"], [], ["--tp", 32],
        ["--tp", 2, "--ep", 4, "--layout", "deepseek"], ["--tp", 2, "--layout", "vllm"], ["--tp", 2, "--rank", "9"],
    ],
)  # fmt: skip
def test_sizes_that_make_no_sense_are_refused(even: Path, tmp_path: Path, words: list[object]) -> None:
    assert dsctl_fails("shard", even, tmp_path / "out", *words) in (2, 30)
    assert not (tmp_path / "out").exists()


def test_without_the_side_file_the_tensors_are_the_same(even: Path, spread: Spread, tmp_path: Path) -> None:
    for number, words in enumerate(("--tp 2", "--layout deepseek --tp 2 --mtp keep")):
        linked(spread(words), tmp_path / f"parts{number}")
        (tmp_path / f"parts{number}" / "whole.dsctl").unlink()
        dsctl("merge", tmp_path / f"parts{number}", tmp_path / f"back{number}")
        before, after = tensors(even), tensors(tmp_path / f"back{number}")
        assert before.keys() == after.keys() and all(same(before[name], after[name]) for name in before)


@pytest.mark.parametrize("to", ["int4-group", "nvfp4"])
def test_other_formats_are_cut_between_their_groups(even: Path, tmp_path: Path, to: str) -> None:
    dsctl("convert", even, tmp_path / "whole", "--to", to)
    dsctl("shard", tmp_path / "whole", tmp_path / "parts", "--tp", 4)
    dsctl("merge", tmp_path / "parts", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "whole")


def test_what_is_stored_once_for_several_is_neither_cut_nor_joined(even: Path, tmp_path: Path) -> None:
    done = call("shard", even, tmp_path / "out", "--tp", 2, "--to", "int8-channel")
    assert done.returncode == 30 and "one scale would span several ranks: convert to int8-channel first" in done.stderr
    dsctl("convert", even, tmp_path / "nvfp4", "--to", "nvfp4")
    done = call("merge", tmp_path / "nvfp4", tmp_path / "out", "--layout", "fused")
    assert done.returncode == 30 and "its global_scale would also cover the matrix it is joined with" in done.stderr
    dsctl("convert", even, tmp_path / "int4", "--to", "int4-group")
    assert dsctl_fails("merge", tmp_path / "int4", tmp_path / "out", "--layout", "stacked") == 30
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 7), ("rank", 1), ("tp", 2), ("tp", 0), ("ep", 3), ("layout", "other"), ("parameters", None),
        ("dealt", "x"),
    ],
)  # fmt: skip
def test_manifests_that_contradict_each_other_are_refused(
    quarters: Path, tmp_path: Path, field: str, value: object
) -> None:
    linked(quarters, tmp_path / "parts")
    path = tmp_path / "parts" / "rank-00002" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert dsctl_fails("merge", tmp_path / "parts", tmp_path / "back") == 20
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("sizes", [{"tp": 3}, {"ep": 3}, {"tp": 4096, "pp": 4096}, {"pp": 60}, {"tp": 5, "ep": 5}])
def test_manifests_of_impossible_sizes_are_refused(quarters: Path, tmp_path: Path, sizes: dict[str, int]) -> None:
    linked(quarters, tmp_path / "parts")
    for path in (tmp_path / "parts").rglob(MANIFEST):
        path.write_text(json.dumps(json.loads(path.read_text()) | sizes))
    assert dsctl_fails("merge", tmp_path / "parts", tmp_path / "back") in (20, 30)
    assert not (tmp_path / "back").exists()


def test_files_named_for_three_ranks_are_refused(even: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    shutil.copy(even / "config.json", tmp_path / "parts")
    for rank in range(3):
        save_file({"norm.weight": torch.zeros(128)}, tmp_path / "parts" / f"model{rank}-mp3.safetensors")
    assert dsctl_fails("merge", tmp_path / "parts", tmp_path / "back") == 20
