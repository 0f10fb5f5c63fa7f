"""transformers loads every kind of graft, and computes what it computes from the same weights in BF16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CompressedTensorsConfig

from tests.peers.test_transformers import assert_same, load, load_fp8
from tests.peers.test_transformers_v4 import SMALL as V4
from tests.peers.test_transformers_v4 import load as load_v4
from tests.support.checkpoints import smaller, tiny
from tests.support.command import dsctl
from tests.support.folders import tensors

EXPERTS, MTP = "model.layers.*.mlp.experts.*", "model.layers.3.*"


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smaller(tmp_path_factory, "v3", aligned=True)


@pytest.fixture(scope="module")
def r1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smaller(tmp_path_factory, "r1", aligned=True, seed=7)


@pytest.fixture(scope="module")
def plain(r1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """R1 in BF16."""
    folder = tmp_path_factory.mktemp("plain") / "plain"
    dsctl("convert", r1, folder, "--bf16")
    return folder


def test_experts_of_another_checkpoint(v3: Path, r1: Path, plain: Path, tmp_path: Path) -> None:
    """The chimera in FP8, in BF16, and put together from BF16 checkpoints are the same model; its parents are not."""
    dsctl("graft", v3, tmp_path / "fp8", "--from", r1, EXPERTS)
    dsctl("convert", tmp_path / "fp8", tmp_path / "decoded", "--bf16")
    dsctl("convert", v3, tmp_path / "base", "--bf16")
    dsctl("graft", tmp_path / "base", tmp_path / "made", "--from", plain, EXPERTS)
    found = load(tmp_path / "decoded")
    assert_same(load_fp8(tmp_path / "fp8"), found)
    assert_same(load(tmp_path / "made"), found)
    for parent in (tmp_path / "base", plain):
        weights = load(parent).model.state_dict()
        assert any(not torch.equal(one, weights[name]) for name, one in found.model.state_dict().items())


@pytest.mark.parametrize("forms", ["own", "base"])
def test_bf16_experts_in_an_fp8_base(v3: Path, plain: Path, tmp_path: Path, forms: str) -> None:
    """In their own form they are listed as unquantized; the loader must not look for their scales."""
    dsctl("graft", v3, tmp_path / "mixed", "--from", plain, EXPERTS, "--as", forms)
    dsctl("convert", tmp_path / "mixed", tmp_path / "decoded", "--bf16")
    assert_same(load_fp8(tmp_path / "mixed"), load(tmp_path / "decoded"))


def test_fp8_attention_in_a_bf16_base(r1: Path, plain: Path, tmp_path: Path) -> None:
    dsctl("graft", plain, tmp_path / "mixed", "--from", r1, "model.layers.*.self_attn.*_proj*")
    assert_same(load_fp8(tmp_path / "mixed"), load(plain))


def test_an_mtp_layer_in_bf16_does_not_disturb_an_fp8_base(v3: Path, plain: Path, tmp_path: Path) -> None:
    dsctl("convert", v3, tmp_path / "lost", "--layout", "published", "--no-mtp")
    dsctl("graft", tmp_path / "lost", tmp_path / "made", "--from", plain, MTP)
    made = load_fp8(tmp_path / "made")
    assert made.unexpected and all(name.startswith("model.layers.3.") for name in made.unexpected)
    assert_same(made, load_fp8(tmp_path / "lost"))


def test_int4_experts_beside_fp8_of_another_checkpoint(r1: Path, v3: Path, tmp_path: Path) -> None:
    """compressed-tensors with two groups, of which one came with the graft."""
    dsctl("convert", r1, tmp_path / "int4", "--recipe", "int4-experts")
    dsctl("graft", tmp_path / "int4", tmp_path / "made", "--from", v3, "model.layers.*.self_attn.*_proj*")
    dsctl("convert", tmp_path / "made", tmp_path / "decoded", "--bf16")
    opened = load(tmp_path / "made", quantization_config=CompressedTensorsConfig(run_compressed=False))
    assert_same(opened, load(tmp_path / "decoded"))


def test_a_block_drafter_leaves_the_main_model_of_v4_as_it_is(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    flash, dspark = (tiny(tmp_path_factory, release, **V4) for release in ("v4-flash", "v4-flash-0731"))
    dsctl("graft", flash, tmp_path / "made", "--from", dspark, "mtp.*")
    one, other = load_v4(tmp_path / "made"), load_v4(flash)
    assert one.logits is not None and other.logits is not None and torch.equal(one.logits, other.logits)
    dsctl("graft", flash, tmp_path / "experts", "--from", dspark, "layers.*.ffn.experts.*")
    loaded = load_v4(tmp_path / "experts")
    assert loaded.logits is not None and loaded.logits.isfinite().all()


def test_what_transformers_saved_without_its_mtp_layer_gets_it_back(v3: Path, tmp_path: Path) -> None:
    """It does not load the layer, so it saves none; its config.json still says that there is one."""
    dsctl("convert", v3, tmp_path / "decoded", "--bf16")
    trained = load(tmp_path / "decoded").model
    trained.save_pretrained(tmp_path / "saved", max_shard_size="2MB")
    dsctl("graft", tmp_path / "saved", tmp_path / "made", "--from", v3, MTP, "--as", "base")
    dsctl("verify", tmp_path / "made", "--deep")
    ours, theirs = tensors(tmp_path / "made"), tensors(tmp_path / "decoded")
    assert ours.keys() == theirs.keys()
    assert not [name for name, one in theirs.items() if not torch.equal(one, ours[name].to(one.dtype))]
    assert_same(load(tmp_path / "made"), load(tmp_path / "saved"))


def test_what_transformers_saved_of_v4_gets_a_block_drafter(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """It saves two kinds of names; the result has those of the release."""
    flash, dspark = (tiny(tmp_path_factory, release, **V4) for release in ("v4-flash", "v4-flash-0731"))
    loaded = load_v4(flash)
    loaded.model.save_pretrained(tmp_path / "saved")
    dsctl("graft", tmp_path / "saved", tmp_path / "made", "--from", dspark, "mtp.*", "--as", "base")
    dsctl("verify", tmp_path / "made", "--deep")
    assert "mtp.2.markov_head.markov_w1.weight" in tensors(tmp_path / "made")
    found = load_v4(tmp_path / "made").logits
    assert found is not None and loaded.logits is not None and torch.equal(found, loaded.logits)
