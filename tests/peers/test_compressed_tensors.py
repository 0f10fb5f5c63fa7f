"""compressed-tensors dequantizes whole FP8 checkpoints too: every tensor of its output and of ours is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.entrypoints.convert import FP8BlockDequantizer, convert_checkpoint

from tests.support.checkpoints import smaller
from tests.support.command import dsctl
from tests.support.folders import tensors


@pytest.mark.parametrize("release", ["v3", "v3.2", "kimi-k2"])
def test_both_decode_every_tensor_alike(release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source, ours, theirs = smaller(tmp_path_factory, release), tmp_path / "ours", tmp_path / "theirs"
    dsctl("convert", source, ours, "--bf16")
    convert_checkpoint(str(source), str(theirs), FP8BlockDequantizer.from_pretrained(str(source)), device="cpu")
    mine, peers = tensors(ours), tensors(theirs)
    assert mine.keys() == peers.keys()
    ragged = [name for name, tensor in mine.items() if tensor.ndim == 2 and tensor.shape[0] % 128]
    assert any("kv_a_proj_with_mqa" in name for name in ragged)
    assert not [name for name, tensor in mine.items() if tensor.dtype != peers[name].dtype]
    assert not [name for name, tensor in mine.items() if not torch.equal(tensor, peers[name])]
    assert "quantization_config" not in json.loads((ours / "config.json").read_text())
