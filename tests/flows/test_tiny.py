"""`dsctl tiny`: small checkpoints that are true to their release."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.faults import require_whole
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.core.config_fields import quantization_of
from dsctl.core.errors import UsageError
from dsctl.core.files import alone_in
from dsctl.core.header import TensorSpec
from dsctl.releases import find, releases
from dsctl.stores.local import LocalFolder
from dsctl.tiny import make
from dsctl.tiny.blueprint import TinyRecipe, blueprint, split
from tests.support.checkpoints import smaller, tiny
from tests.support.command import dsctl, dsctl_fails, run
from tests.support.folders import tensors

ALIASES = [release.alias[0] for release in releases()]


def opened(folder: Path) -> Checkpoint:
    checkpoint = open_checkpoint(LocalFolder.at(folder))
    require_whole(checkpoint)
    return checkpoint


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("alias", ALIASES)
def test_it_has_what_its_config_says_and_its_config_says_what_the_release_s_does(
    alias: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = smaller(tmp_path_factory, alias)
    checkpoint, release = opened(source), find(alias)
    assert not checkpoint.faults and not checkpoint.survey.faults
    assert checkpoint.config is not None and checkpoint.config.keys() == release.config.keys()
    assert checkpoint.quantization == quantization_of(release.config)
    true, values = sum(ref.nbytes for ref in checkpoint.tensors), sum(ref.spec.values for ref in checkpoint.tensors)
    assert checkpoint.total_size == (2 * values if alias == "v3" else true)
    formats = {piece.codec.name for pieces in checkpoint.survey.pieces.values() for piece in pieces}
    assert formats == set(release.storage.formats)


def test_partial_blocks_mtp_indexer_and_float32_biases_are_there(tmp_path_factory: pytest.TempPathFactory) -> None:
    found = {ref.name: ref.spec for ref in opened(tiny(tmp_path_factory, "v3.2")).tensors}
    attention = "model.layers.0.self_attn."
    assert found[attention + "kv_a_proj_with_mqa.weight"] == TensorSpec("F8_E4M3", (576, 512))
    assert found[attention + "kv_a_proj_with_mqa.weight_scale_inv"] == TensorSpec("F32", (5, 4))
    assert found[attention + "indexer.wk.weight"].dtype == "F8_E4M3"
    assert found["model.layers.1.mlp.gate.e_score_correction_bias"] == TensorSpec("F32", (8,))
    assert found["model.layers.3.eh_proj.weight"] == TensorSpec("BF16", (512, 1024))


def test_the_mtp_layer_s_embedding_and_head_are_the_model_s(tmp_path_factory: pytest.TempPathFactory) -> None:
    found = tensors(tiny(tmp_path_factory, "v3"))
    assert torch.equal(found["model.layers.3.embed_tokens.weight"], found["model.embed_tokens.weight"])
    assert torch.equal(found["model.layers.3.shared_head.head.weight"], found["lm_head.weight"])
    assert not torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


@pytest.mark.parametrize("alias", ["v3", "r1", "v3.1", "v3.2"])
def test_scales_are_powers_of_two_from_v3_1_on_and_differ_between_blocks(
    alias: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = tensors(tiny(tmp_path_factory, alias))
    apart = {name for name in found if alias == "v3.1" and name.endswith("self_attn.o_proj.weight_scale_inv")}
    assert len(apart) == (4 if alias == "v3.1" else 0)
    for rounded in (True, False):
        some = [found[name].flatten() for name in found if name.endswith("_scale_inv") and (name in apart) != rounded]
        scales = torch.cat(some or [torch.ones(4) * 2.0 ** torch.arange(4)])
        powers = (scales.frexp().mantissa == 0.5).float().mean()
        assert powers == 1 if (alias in ("v3.1", "v3.2") and rounded) or not some else powers < 0.05
        assert len(scales.unique()) >= 4


@pytest.mark.parametrize("sizes", [{}, {"bf16": True}, {"mtp": False, "layers": 2}])
def test_the_index_of_v3_counts_values_at_two_bytes_as_the_release_s_does(
    sizes: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """1,369,062,772,000 in the release, for 684,531,386,000 values that take 688,574,839,360 bytes."""
    storage = find("v3").storage
    assert storage.index_total == 2 * (storage.values or 0) == 1_369_062_772_000 and storage.counts_values
    assert [release.alias[0] for release in releases() if release.storage.counts_values] == ["v3"]
    checkpoint = opened(tiny(tmp_path_factory, "v3", **sizes))
    assert checkpoint.counts_values == ("bf16" not in sizes)
    assert (checkpoint.total_size == checkpoint.nbytes) == ("bf16" in sizes)


def test_files_are_several_and_some_scales_lie_apart_from_their_weights(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tiny(tmp_path_factory, "v3.2")
    where = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    apart = [name for name in where if name + "_scale_inv" in where and where[name] != where[name + "_scale_inv"]]
    assert len(apart) == 3 and len(set(where.values())) == 4
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    assert max(sizes) < 1.2 * min(sizes) and 25e6 < sum(sizes) < 35e6


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    small = TinyRecipe(layers=2, experts=2, hidden=256, vocab=512)
    folders = [tmp_path / name for name in ("one", "two", "other")]
    for folder, seed in zip(folders, (7, 7, 8), strict=True):
        make("v3.2", folder, TinyRecipe(layers=2, experts=2, hidden=256, vocab=512, seed=seed))
    one, two, other = map(contents, folders)
    assert one == two
    assert {name for name in one if one[name] != other[name]} == {name for name in one if name.endswith(".safetensors")}
    assert blueprint("v3.2", small).files == tuple(sorted(name for name in one if name.endswith(".safetensors")))


@pytest.mark.parametrize("alias", ["v3", "v3.2"])
def test_bf16_is_what_the_fp8_one_was_quantized_from(
    alias: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain = tiny(tmp_path_factory, alias, bf16=True)
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    dsctl("convert", plain, tmp_path / "fp8", "--fp8")
    expected, found = tensors(tiny(tmp_path_factory, alias)), tensors(tmp_path / "fp8")
    assert expected.keys() == found.keys()
    assert not [
        name
        for name, tensor in expected.items()
        if tensor.dtype != found[name].dtype or not torch.equal(tensor.view(torch.uint8), found[name].view(torch.uint8))
    ]


def test_sizes_are_those_asked_for(tmp_path: Path) -> None:
    recipe = TinyRecipe(2, 6, 256, 2, 300, 384, 128, shards=3, mtp=False)
    made = make("v3", tmp_path / "out", recipe)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    fields = ("num_hidden_layers", "n_routed_experts", "hidden_size", "num_attention_heads", "vocab_size")
    assert [config[field] for field in fields] == [2, 6, 256, 2, 300]
    assert (config["intermediate_size"], config["moe_intermediate_size"]) == (384, 128)
    assert config["num_nextn_predict_layers"] == 0 and len(made.files) == 3
    assert {param.layer for param in opened(tmp_path / "out").params} == {None, 0, 1}


def test_aligned_means_whole_blocks_only(tmp_path_factory: pytest.TempPathFactory) -> None:
    checkpoint = opened(tiny(tmp_path_factory, "v3.2", aligned=True))
    assert not [param for param in checkpoint.params if param.quantizable and any(n % 128 for n in param.shape)]
    with pytest.raises(UsageError, match="500"):
        blueprint("v3.2", TinyRecipe(aligned=True, hidden=500))


@pytest.mark.parametrize("alias", ["v3.2", "v2-lite", "kimi-k2", "kimi-k2.5", "kimi-k3"])
@pytest.mark.parametrize("size", [5e6, 30e6, 100e6, 1e9, 4e9, 20e9])
def test_a_size_asked_for_is_nearly_met_and_never_passed(alias: str, size: float) -> None:
    assert 0.75 * size < blueprint(alias, TinyRecipe(size=int(size))).nbytes <= size


def test_a_size_without_end_is_the_release_itself() -> None:
    full = blueprint("v3", TinyRecipe(size=10**13))
    release = find("v3")
    assert full.nbytes == release.storage.total_size + 2 * _dense_less(full.config) and len(full.files) > 150


def _dense_less(config: dict[str, int]) -> int:
    """Two of V3's three dense layers are MoE layers in miniature: what each has more, in bytes with scales."""
    hidden, inner, dense, count = 7168, 2048, 18432, 256
    assert config["first_k_dense_replace"] == 1

    def matrix(rows: int, columns: int) -> int:
        return rows * columns + -(-rows // 128) * -(-columns // 128) * 4

    return (count + 1) * 3 * matrix(inner, hidden) + count * (hidden * 2 + 4) - 3 * matrix(dense, hidden)


def test_the_command_tells_what_it_made(tmp_path: Path) -> None:
    line = ("tiny", "v3.1", tmp_path / "out", "--layers", 2, "--experts", 2, "--shards", 2, "--seed", 3)
    told = json.loads(dsctl(*line, "--json"))
    checkpoint = opened(tmp_path / "out")
    assert told["release"] == "DeepSeek-V3.1" and told["seed"] == 3
    assert told["parameters"] == len(checkpoint.params)
    assert told["values"] == sum(family.count * family.values for family in checkpoint.families)
    assert told["nbytes"] == checkpoint.total_size and told["files"] == sorted(checkpoint.headers)
    assert not told["present"] and json.loads(dsctl(*line, "--json")) == told | {"present": True}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["v9"], 2),
        (["v3", "--size", "lots"], 2),
        (["v3", "--size", "1MB"], 2),
        (["v3", "--aligned", "--hidden", "500"], 2),
        (["v3", "--experts", "60000", "--layers", "100"], 2),
        (["v3", "--hidden", "1000000", "--vocab", "1000000"], 30),
    ],
)
def test_what_cannot_be_made_is_refused_in_words(words: list[str], code: int, tmp_path: Path) -> None:
    assert dsctl_fails("tiny", words[0], tmp_path / "out", *words[1:]) == code
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert dsctl_fails("tiny", "v3", tmp_path / "mine") == 30
    assert dsctl_fails("tiny", "v3", tmp_path / "mine" / "thesis.txt") == 30
    assert dsctl_fails("tiny", "v3", tmp_path / "link") == 30
    assert contents(tmp_path / "mine") == {"thesis.txt": b"years"}
    assert not (tmp_path / "elsewhere").exists()


def test_the_same_checkpoint_may_be_asked_for_again_and_no_other(tmp_path: Path) -> None:
    line = ("tiny", "v3", tmp_path / "out", "--layers", 2, "--experts", 2, "--hidden", 256)
    assert dsctl(*line).startswith("made: ")
    whole, times = contents(tmp_path / "out"), [path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()]
    assert dsctl(*line).startswith("already made: ")
    assert times == [path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()]
    assert dsctl_fails(*line, "--seed", 1) == 30
    weights = tmp_path / "out" / "model-00001-of-000004.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert dsctl_fails(*line) == 30
    weights.write_bytes(whole[weights.name])
    (tmp_path / "out" / "more").mkdir()
    assert dsctl_fails(*line) == 30
    (tmp_path / "out" / "more").rmdir()
    assert contents(tmp_path / "out") == whole and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_midway_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    def no_large_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    for name in ("empty", "new"):
        done = run("tiny", "v3", tmp_path / name, preexec_fn=no_large_files)
        assert done.returncode == 41 and done.stderr.count("error: ") == 1, done.stderr
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=60), st.integers(1, 70))
def test_files_are_cut_in_order_and_none_is_empty(sizes: list[int], shards: int) -> None:
    numbers = split(sizes, shards)
    assert numbers == sorted(numbers) and len(numbers) == len(sizes)
    assert set(numbers) == set(range(min(shards, len(sizes))))


# Kills a fork of this process at every third call that changes the disk, in turn, until one outruns its kill.
KILLS = """
import os, signal, sys
from pathlib import Path
from dsctl.tiny import make
from dsctl.tiny.blueprint import TinyRecipe

folder, recipe = Path(sys.argv[1]), TinyRecipe(layers=2, experts=2, hidden=64, vocab=64, intermediate=64, shards=2)

def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}

def dies(after):
    def patched(call):
        def counted(*arguments, **options):
            global left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)
        return counted
    global left
    left = after
    for name in ("mkdir", "open", "pwrite", "fsync", "rename", "replace", "rmdir"):
        setattr(os, name, patched(getattr(os, name)))

make("v3", folder / "whole", recipe)
whole, point, killed = contents(folder / "whole"), 0, True
while killed:
    target = folder / "out" / str(point)
    child = os.fork()
    if not child:
        dies(point)
        make("v3", target, recipe)
        os._exit(0)
    killed = os.waitpid(child, 0)[1] == signal.SIGKILL
    make("v3", target, recipe)
    assert contents(target) == whole, (point, sorted(contents(target)))
    assert [path.name for path in target.parent.iterdir()] == [target.name], point
    point += 3
    for path in target.iterdir():
        path.unlink()
    target.rmdir()
print(point - 3)
"""


def test_killed_at_any_moment_and_given_again_it_makes_the_same(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLS, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_what_others_put_into_an_unfinished_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out" / ".unfinished").mkdir(parents=True)
    (tmp_path / "out" / "thesis.txt").write_text("years")
    assert dsctl_fails("tiny", "v3", tmp_path / "out") == 30
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years"


def test_two_at_once_are_one(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "dsctl", "tiny", "v3", str(tmp_path / "out"), "--layers", "2", "--experts", "2"]
    runs = [subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [(run.communicate(timeout=120)[1], run.returncode) for run in runs]
    assert {code for _, code in ends} <= {0, 40} and any(code == 0 for _, code in ends), ends
    dsctl("tiny", "v3", tmp_path / "alone", "--layers", 2, "--experts", 2)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    (tmp_path / "busy").mkdir()
    with alone_in(tmp_path / "busy"):
        assert dsctl_fails("tiny", "v3", tmp_path / "busy") == 40
