"""transformers loads what `slice --experts PLAN.json` writes, and computes what the plan means.

A permutation changes nothing but the order of sums. A pruned model computes what the whole one does if its routers
cannot choose the removed experts, which a correction bias far below all others ensures.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, PreTrainedModel

from tests.support.checkpoints import tiny
from tests.support.command import dsctl
from tests.support.pruned import pruned, stored

SMALL: dict[str, Any] = {"experts": 16, "hidden": 256, "vocab": 512, "intermediate": 256, "moe_intermediate": 128}
TOKENS = torch.tensor([random.Random(3).choices(range(512), k=150) for _ in range(2)])


def load(folder: Path) -> PreTrainedModel:
    model, told = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not told["missing_keys"] and not told["mismatched_keys"] and not told["unexpected_keys"], told
    return model.eval()


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found = load(folder)(TOKENS).logits
    assert found.isfinite().all() and found.std() > 0.1
    return found


def plain(factory: pytest.TempPathFactory, release: str, folder: Path) -> Path:
    """A small release without a drafter, decoded, since transformers runs neither."""
    source = tiny(factory, release, **SMALL, **({"layers": 5, "heads": 2} if release.startswith("v4") else {}))
    layers = "0-4" if release.startswith("v4") else "0-2"
    dsctl("slice", source, folder, "--layers", layers, "--to", "f32")
    return folder


def layers_of(folder: Path) -> list[str]:
    names = (name.split(".") for name in stored(folder) if name.endswith("gate.weight") and ".experts." not in name)
    return sorted({parts[parts.index("layers") + 1] for parts in names if "layers" in parts and "gate" in parts})


def groups_of(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text()).get("n_group") or 1)


@pytest.mark.parametrize("release", ["v2", "v3", "v3.2", "glm-5", "v4-flash"])
def test_a_new_order_computes_the_same(release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    source, chance = plain(tmp_path_factory, release, tmp_path / "source"), random.Random(4)
    size, lists = 16 // groups_of(source), {}
    for layer in layers_of(source):
        places = [chance.sample(range(at, at + size), size) for at in range(0, 16, size)]
        lists[layer] = [expert for group in chance.sample(places, len(places)) for expert in group]
    (tmp_path / "plan.json").write_text(json.dumps(lists))
    dsctl("slice", source, tmp_path / "out", "--experts", tmp_path / "plan.json")
    assert stored(tmp_path / "out") != stored(source)
    torch.testing.assert_close(logits(tmp_path / "out"), logits(source), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("release", ["v3", "v3.2"])
def test_a_pruned_model_computes_what_the_whole_one_does_without_these_experts(
    release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    source, chance = plain(tmp_path_factory, release, tmp_path / "source"), random.Random(5)
    said = json.loads((source / "config.json").read_text())
    said["num_experts_per_tok"] = 2
    (source / "config.json").write_text(json.dumps(said))
    size, lists = 16 // groups_of(source), {}
    for layer in layers_of(source):
        lists[layer] = sorted(one for at in range(0, 16, size) for one in chance.sample(range(at, at + size), size - 3))
    (tmp_path / "plan.json").write_text(json.dumps(lists))
    dsctl("slice", source, tmp_path / "out", "--experts", tmp_path / "plan.json", "--force")
    assert stored(tmp_path / "out") == pruned(stored(source), lists)
    masked = tmp_path / "masked"
    masked.mkdir()
    (masked / "config.json").write_bytes((source / "config.json").read_bytes())
    tensors = {name: one for file in source.glob("*.safetensors") for name, one in load_file(file).items()}
    for layer, kept in lists.items():
        bias = tensors[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"]
        bias[[expert for expert in range(16) if expert not in kept]] = -100.0
    save_file(tensors, masked / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(logits(tmp_path / "out"), logits(masked), rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(logits(tmp_path / "out"), logits(source), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("release", ["v3", "v3.2"])
def test_fp8_weights_are_pruned_as_decoded_ones(
    release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its loader decodes what was pruned in FP8: codes and scales went together."""
    source = tiny(tmp_path_factory, release, **SMALL, mtp=False, aligned=True)
    lists = {layer: [*range(8, 16), *range(8)] for layer in layers_of(source)}
    (tmp_path / "plan.json").write_text(json.dumps(lists))
    for name, more in (("fp8", []), ("plain", ["--bf16"])):
        dsctl("slice", source, tmp_path / name, "--experts", tmp_path / "plan.json", *more)
    options = {"dtype": torch.bfloat16, "quantization_config": FineGrainedFP8Config(dequantize=True)}
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "fp8", **options).state_dict()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.bfloat16).state_dict()
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name].to(one.dtype), one) for name, one in plain.items())


@pytest.mark.parametrize("release", ["v3", "v4-flash"])
def test_what_transformers_saved_is_pruned_as_well(
    release: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its files, names and order of tensors are its own."""
    source = plain(tmp_path_factory, release, tmp_path / "source")
    load(source).save_pretrained(tmp_path / "saved", max_shard_size="20MB")
    order = [*range(8), *range(15, 7, -1)]
    keep = dict.fromkeys(layers_of(source), order if release == "v3" else [expert for expert in order if expert % 4])
    (tmp_path / "plan.json").write_text(json.dumps(keep))
    dsctl("slice", source, tmp_path / "one", "--experts", tmp_path / "plan.json")
    dsctl("slice", tmp_path / "saved", tmp_path / "two", "--experts", tmp_path / "plan.json")
    torch.testing.assert_close(logits(tmp_path / "two"), logits(tmp_path / "one"), rtol=0, atol=0)
