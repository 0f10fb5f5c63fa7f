"""transformers loads what dsctl writes, and computes the same from an FP8 checkpoint and from its BF16 conversion.

Its FP8 loader takes the block size from the grid of scales, so it is right on whole 128x128 blocks only: the
checkpoints here are `--aligned`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, FineGrainedFP8Config, PreTrainedModel

from dsctl.tiny.texts import ASSISTANT, USER
from tests.support.checkpoints import smaller
from tests.support.command import dsctl


class Loaded(NamedTuple):
    model: PreTrainedModel
    missing: set[str]
    unexpected: set[str]


def load(folder: Path, **options: Any) -> Loaded:
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True, trust_remote_code=False, **options
    )
    assert not told["mismatched_keys"]
    return Loaded(model, set(told["missing_keys"]), set(told["unexpected_keys"]))


def load_fp8(folder: Path) -> Loaded:
    return load(folder, quantization_config=FineGrainedFP8Config(dequantize=True))


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Of 200 tokens: more than the indexer chooses, so that it has a say."""
    # Parameters that an FP8 checkpoint stores in float32 stay so when loaded; layers do not take both dtypes at once.
    model.to(torch.bfloat16)
    with torch.no_grad():
        return model(torch.arange(200)[None]).logits


def assert_same(one: Loaded, two: Loaded) -> None:
    weights, others = one.model.state_dict(), two.model.state_dict()
    assert weights.keys() == others.keys() and not one.missing and not two.missing
    assert not [name for name, tensor in others.items() if not torch.equal(tensor, weights[name].to(tensor.dtype))]
    found = logits(one.model)
    assert found.isfinite().all() and found.std() > 0.1
    assert torch.equal(found, logits(two.model))


@pytest.mark.parametrize("release", ["v3", "v3.2"])
def test_an_fp8_checkpoint_and_our_bf16_of_it_compute_the_same(
    release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = smaller(tmp_path_factory, release, aligned=True)
    dsctl("convert", source, tmp_path / "bf16", "--bf16")
    bf16 = load(tmp_path / "bf16")
    assert all(name.startswith("model.layers.3.") for name in bf16.unexpected)  # the MTP layer, which it does not run
    assert_same(load_fp8(source), bf16)


@pytest.mark.parametrize("release", ["v3", "v3.2"])
def test_it_reads_our_quantization_as_we_do(
    release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain = smaller(tmp_path_factory, release, aligned=True, bf16=True, mtp=False)
    dsctl("convert", plain, tmp_path / "fp8", "--fp8")
    dsctl("convert", tmp_path / "fp8", tmp_path / "decoded", "--bf16")
    decoded = load(tmp_path / "decoded")
    assert not decoded.unexpected
    assert_same(load_fp8(tmp_path / "fp8"), decoded)


@pytest.mark.parametrize("release", ["v2", "v2-lite", "glm-5", "glm-5.2"])
def test_bf16_releases_in_miniature_load_whole(release: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = smaller(tmp_path_factory, release)
    loaded = load(folder)
    assert not loaded.missing
    assert all(name.startswith("model.layers.3.") for name in loaded.unexpected)
    assert logits(loaded.model).isfinite().all()


def test_the_stand_in_tokenizer_goes_there_and_back(tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smaller(tmp_path_factory, "v3.2"))
    text = "Größe: 3 µm — 東京\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    assert chat == f"{tokenizer.bos_token}{USER}{text}{ASSISTANT}"
