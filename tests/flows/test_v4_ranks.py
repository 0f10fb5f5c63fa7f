"""V4 spread over ranks under its own names, and cut to some layers and experts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.folders import contents, tensors

SIZES = {"layers": 4, "experts": 8, "hidden": 128, "heads": 4, "vocab": 512, "moe_intermediate": 128}
TABLE = "layers.0.ffn.gate.tid2eid"


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With three stages that draft, and parts that read images: routers have biases of two kinds."""
    return tiny(tmp_path_factory, "v4-flash-vision-exp", **SIZES)


def made(*words: object) -> str:
    """What is said by a verb that writes, in this process."""
    return dsctl(*words, "--workers", 1)


@pytest.mark.parametrize(
    ("release", "words"),
    [
        ("v4-flash", "--tp 4"),
        ("v4-flash-base", "--ep 8"),
        ("v4-flash-0731", "--tp 2 --ep 4 --pp 2"),
        ("v4-pro", "--tp 4 --ep 4"),
    ],
)
def test_shard_then_merge_is_byte_identical(
    release: str, words: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = tiny(tmp_path_factory, release, **SIZES)
    made("shard", source, tmp_path / "parts", *words.split())
    audit = json.loads((tmp_path / "parts" / "dsctl.json").read_text())["audit"]
    assert audit["moved"] == audit["parameters"] and audit["unexplained"] == 0
    made("merge", tmp_path / "parts", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)


def test_experts_go_where_a_map_says(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    source, rows = tiny(tmp_path_factory, "v4-flash", **SIZES), [[7, 6, 5, 4, 0, 3, 2, 1, 0, 7]] * 4
    (tmp_path / "map.json").write_text(json.dumps({"physical_to_logical_map": rows}))
    made("shard", source, tmp_path / "parts", "--ep", 2, "--expert-map", tmp_path / "map.json")
    names = [tensors(tmp_path / "parts" / f"rank-0000{rank}").keys() for rank in (0, 1)]
    assert all("layers.1.ffn.experts.7.w1.scale" in held for held in names)
    assert [f"layers.1.ffn.experts.{number}.w2.weight" in names[0] for number in (4, 3)] == [True, False]
    made("merge", tmp_path / "parts", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("--tp 8", "4 heads / 8"),
        ("--tp 2 --ep 1", "64 = 0.5 x 128"),
        (
            "--tp 2 --layout vllm",
            "layout vllm: only the modules of vLLM's deepseek_v2.py are supported, not DeepSeek V4's",
        ),
        ("--tp 2 --layout fused", "layout fused: no loader reads joined tensors under DeepSeek V4's own names"),
        ("--tp 2 --layout stacked", "layout stacked: no loader reads joined tensors under DeepSeek V4's own names"),
        ("--tp 2 --ep 4 --layout deepseek", "needs as many expert-parallel parts as tensor-parallel ranks"),
    ],
)
def test_what_cannot_be_is_refused(
    words: str, why: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    release = "v4-flash-base" if "ep 1" in words else "v4-flash"
    source = tiny(tmp_path_factory, release, **SIZES)
    said = call("shard", source, tmp_path / "out", *words.split())
    assert said.returncode == 30 and why in said.stderr and said.stderr.count("error: ") == 1, said.stderr


def test_a_slice_of_layers_has_a_config_to_match(late: Path, tmp_path: Path) -> None:
    made("slice", late, tmp_path / "out", "--layers", "1,3,mtp")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 2 and config["num_hash_layers"] == 1
    assert config["compress_ratios"] == [0, 128, 0, 0, 0]
    assert config["dspark_target_layer_ids"] == [0, 0, 1]
    before, after = tensors(late), tensors(tmp_path / "out")
    assert {name for name in after if name.startswith("mtp.")} == {name for name in before if name.startswith("mtp.")}
    assert torch.equal(after["layers.1.attn.compressor.ape"], before["layers.3.attn.compressor.ape"])
    assert torch.equal(after[TABLE], before["layers.1.ffn.gate.tid2eid"])
    assert call("verify", tmp_path / "out", "--ignore", "odd-dtype").returncode == 0


def test_a_slice_without_the_drafter(late: Path, tmp_path: Path) -> None:
    made("slice", late, tmp_path / "out", "--layers", "0-3")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["compress_ratios"] == [0, 0, 4, 128] and config["num_nextn_predict_layers"] == 0
    assert not [name for name in (*config, *tensors(tmp_path / "out")) if name.startswith(("dspark", "mtp."))]
    assert call("verify", tmp_path / "out", "--ignore", "odd-dtype").returncode == 0


def test_stages_of_a_drafter_go_together(late: Path, tmp_path: Path) -> None:
    said = call("slice", late, tmp_path / "out", "--layers", "0,4")
    assert said.returncode == 30 and "the drafter's 3 stages go together: 1 of them would be left" in said.stderr


@pytest.mark.parametrize("kept", [(0, 1, 2, 5), (1, 6)])
def test_a_slice_of_experts_renumbers_the_table_by_token(late: Path, tmp_path: Path, kept: tuple[int, ...]) -> None:
    """By the rule, row by row: kept experts in their places, others give way to the first that the row lacks."""
    said = made("slice", late, tmp_path / "out", "--experts", ",".join(map(str, kept)), "--bf16")
    assert "3 tables of experts by token hold the new numbers" in said and " 3 renumbered," in said
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["n_routed_experts"], config["num_experts_per_tok"]) == (len(kept), min(4, len(kept)))
    before, after = tensors(late), tensors(tmp_path / "out")
    for row, now in zip(before[TABLE].tolist(), after[TABLE].tolist(), strict=True):
        wanted = [kept.index(expert) if expert in kept else None for expert in row[: config["num_experts_per_tok"]]]
        for place, one in enumerate(wanted):
            if one is None:
                wanted[place] = next(number for number in range(len(kept)) if number not in wanted)
        assert now == wanted
    assert after[TABLE].dtype == torch.int64
    for name in ("layers.0.ffn.gate.weight", "layers.3.ffn.gate.bias", "mtp.2.ffn.gate.bias_vl"):
        assert torch.equal(after[name], before[name][list(kept)])
    assert call("verify", tmp_path / "out", "--deep", "--ignore", "odd-dtype").returncode == 0
