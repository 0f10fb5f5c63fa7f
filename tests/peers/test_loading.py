"""transformers and compressed-tensors open whole checkpoints that dsctl wrote, and find in them what dsctl finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.entrypoints.convert import CompressedTensorsDequantizer, convert_checkpoint
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, PreTrainedModel

from tests.support.checkpoints import smaller
from tests.support.command import dsctl
from tests.support.folders import tensors


def both_ways(source: Path, folder: Path, *asked: str) -> tuple[Path, Path]:
    """A checkpoint in a format, and that checkpoint decoded to BF16."""
    dsctl("convert", source, folder / "stored", *asked)
    dsctl("convert", folder / "stored", folder / "decoded", "--bf16")
    return folder / "stored", folder / "decoded"


def load(folder: Path, **options: Any) -> PreTrainedModel:
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, output_loading_info=True, **options
    )
    assert not told["missing_keys"] and not told["mismatched_keys"]
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(50)[None]).logits


@pytest.mark.parametrize("source_is_fp8", [True, False])
@pytest.mark.parametrize("format_", ["int4-group", "int4-group-32", "int8-group", "mxfp4", "fp8-channel"])
def test_transformers_loads_every_weight_as_we_decode_it(
    format_: str, source_is_fp8: bool, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = smaller(tmp_path_factory, "v3", bf16=not source_is_fp8)
    stored, decoded = both_ways(source, tmp_path, "--to", format_)
    expected, opened = load(decoded), load(stored, quantization_config=CompressedTensorsConfig(run_compressed=False))
    weights = dict(opened.named_parameters())
    assert not [name for name, tensor in expected.named_parameters() if not torch.equal(weights[name], tensor)]
    assert torch.equal(logits(opened), logits(expected))
    # Run as it is stored, it also quantizes the activations of an FP8 checkpoint, which no BF16 one asks for.
    assert torch.equal(logits(load(stored)), logits(expected)) == (format_ != "fp8-channel")


@pytest.mark.parametrize("format_", ["fp8-block-ct", "mxfp8"])
def test_transformers_loads_others_beside_experts_in_bf16(
    format_: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rules = (("role", "routed experts", "bf16"), ("match", "*", format_))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("".join(f'[[rule]]\n{key} = "{which}"\nformat = "{to}"\n' for key, which, to in rules))
    stored, decoded = both_ways(smaller(tmp_path_factory, "v3", bf16=True), tmp_path, "--recipe", str(recipe))
    opened = load(stored, quantization_config=CompressedTensorsConfig(run_compressed=False))
    assert torch.equal(logits(opened), logits(load(decoded)))


@pytest.mark.parametrize(
    "asked",
    [
        ("--to", "int4-group"), ("--to", "int4-group-32"), ("--to", "int8-group"), ("--to", "mxfp4"), ("--to", "nvfp4"),
        ("--recipe", "int4-experts"), ("--recipe", "nvfp4-experts"), ("--to", "int4-group", "--search"),
        ("--to", "nvfp4", "--search"),
    ],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("release", ["v3", "v3.2"])
def test_compressed_tensors_dequantizes_whole_checkpoints_as_we_do(
    release: str, asked: tuple[str, ...], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = smaller(tmp_path_factory, release, bf16=True, layers=2, experts=2)
    stored, decoded = both_ways(source, tmp_path, *asked)
    convert_checkpoint(str(stored), str(tmp_path / "theirs"), CompressedTensorsDequantizer(str(stored)), device="cpu")
    mine, peers = tensors(decoded), tensors(tmp_path / "theirs")
    assert mine.keys() == peers.keys()
    assert not [name for name, tensor in mine.items() if not torch.equal(tensor, peers[name].to(tensor.dtype))]
