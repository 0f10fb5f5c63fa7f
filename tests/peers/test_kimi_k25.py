"""transformers' own Kimi K2.5 and compressed-tensors read small checkpoints of the releases as dsctl does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from transformers.models.kimi_k25.modeling_kimi_k25 import Kimi_K25ForConditionalGeneration

from tests.support.checkpoints import tiny
from tests.support.command import dsctl
from tests.support.folders import tensors

SMALL: dict[str, Any] = {"layers": 3, "experts": 4, "hidden": 256, "heads": 2, "vocab": 256, "moe_intermediate": 128}
# transformers 5.24 does not read the releases' names of these fields, and takes the releases' sizes.
FIELDS = {
    "hidden_size": "vt_hidden_size", "intermediate_size": "vt_intermediate_size",
    "num_hidden_layers": "vt_num_hidden_layers", "num_attention_heads": "vt_num_attention_heads",
    "pos_emb_height": "init_pos_emb_height", "pos_emb_width": "init_pos_emb_width",
}  # fmt: skip


def loaded(folder: Path, place: Path) -> Kimi_K25ForConditionalGeneration:
    """The model, from a copy of the folder whose config has the sizes under transformers' names too."""
    shutil.copytree(folder, place)
    config = json.loads((place / "config.json").read_text())
    vision = config["vision_config"]
    vision |= {theirs: vision[ours] for theirs, ours in FIELDS.items()}
    config["projection_hidden_size"] = vision["mm_hidden_size"]
    (place / "config.json").write_text(json.dumps(config))
    model, said = Kimi_K25ForConditionalGeneration.from_pretrained(
        place, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    return model


def logits(model: Kimi_K25ForConditionalGeneration) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[3, 14, 15, 92]])).logits


def test_transformers_reads_the_packed_experts_as_our_bf16(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """K2.7-Code's: with the exceptions of K2.5, which do not name the vision tower, transformers does not load one."""
    source = tiny(tmp_path_factory, "kimi-k2.7-code", **SMALL)
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--workers", 1)
    dsctl("convert", source, tmp_path / "stacked", "--bf16", "--layout", "transformers", "--workers", 1)
    packed = logits(loaded(source, tmp_path / "packed"))
    assert packed.isfinite().all()
    for name in ("bf16", "stacked"):
        assert torch.equal(logits(loaded(tmp_path / name, tmp_path / f"{name}-copy")), packed)


def test_compressed_tensors_decodes_every_expert_alike(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source = tiny(tmp_path_factory, "kimi-k2.5", **SMALL)
    dsctl("convert", source, tmp_path / "bf16", "--bf16", "--workers", 1)
    said = json.loads((source / "config.json").read_text())["text_config"]["quantization_config"]
    scheme = QuantizationScheme.model_validate(said["config_groups"]["group_0"])
    pack = BaseCompressor.get_value_from_registry(said["format"])
    before, after = tensors(source), tensors(tmp_path / "bf16")
    experts = [name.removesuffix("_packed") for name in before if name.endswith("_packed")]
    assert experts
    for name in experts:
        parts = {f"weight_{part}": before[f"{name}_{part}"] for part in ("packed", "scale", "shape")}
        assert torch.equal(pack.decompress(parts, scheme)["weight"], after[name]), name
