"""Which tensors the engines load from a drafter alone: the same as from its checkpoint, under the same names.

Restatements of the engines' own rules, read in vLLM 0.33.0 (model_executor/models/deepseek_mtp.py,
models/deepseek_v32/nvidia/mtp.py, models/deepseek_v4/nvidia/{mtp,dspark}.py, models/deepseek_v41/nvidia/dspark.py) and
SGLang 0.5.23 (models/deepseek_common/deepseek_weight_loader.py, models/deepseek_v4_dspark.py, configs/model_config.py,
speculative/dspark_components/dspark_config.py). No engine is run here: tests/serving does that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from tests.flows.test_drafters import COPIES, exported
from tests.support.checkpoints import smaller
from tests.support.command import dsctl

V3 = ("v3", "v3.2")
CLASSIC, BLOCKS = ("v4-flash", "v4-flash-base"), ("v4-flash-0731", "v4.1-flash")
# Modules of an MTP layer beside the transformer layer.
OWN = ("embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head")


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())  # type: ignore[no-any-return]


def names(folder: Path) -> list[str]:
    return list(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"])


def vllm_mtp(target: dict[str, Any], stored: Iterable[str]) -> set[str]:
    """vLLM counts and numbers MTP layers by the config of the target, not of the draft."""
    found = set()
    for number in range(target["num_nextn_predict_layers"]):
        layer = f"model.layers.{target['num_hidden_layers'] + number}."
        for name in stored:
            if not name.startswith(layer):
                continue
            rest = name.removeprefix(layer)
            own = next((module for module in OWN if module in rest), "")
            if own == "embed_tokens":
                found.add(f"model.{rest}")
            else:
                found.add(f"{layer}{rest}" if own else f"{layer}mtp_block.{rest}")
    return found


def sglang_nextn(draft: dict[str, Any], stored: Iterable[str]) -> set[str]:
    """SGLang asks for one layer, numbered 0 if the config has one; embedding and head are the target's."""
    assert draft["num_nextn_predict_layers"] == 1
    assert draft["architectures"][0] in (
        "DeepseekV3ForCausalLM",
        "DeepseekV32ForCausalLM",
        "DeepseekV3ForCausalLMNextN",
    )
    layers = draft["num_hidden_layers"]
    layer = f"model.layers.{0 if layers == 1 else layers}"
    found = set()
    for name in stored:
        if not name.startswith(layer) or "shared_head.head" in name or "embed_tokens" in name:
            continue
        own = any(part in name for part in ("shared_head.norm", "eh_proj", "enorm", "hnorm"))
        found.add(("model" if own else "model.decoder") + name.removeprefix(layer))
    return found


def vllm_classic(target: dict[str, Any], stored: Iterable[str]) -> set[str]:
    """V4's MTP layers; the target's embedding and head, which have no `mtp.`, are skipped."""
    found = set()
    for name in stored:
        if name.startswith("mtp."):
            _, number, rest = name.split(".", 2)
            layer = f"model.layers.{target['num_hidden_layers'] + int(number)}."
            found.add({"emb.tok_emb.weight": "model.embed_tokens.weight"}.get(rest, layer + rest))
    return found


def vllm_dspark(stored: Iterable[str]) -> set[str]:
    """The head of a block drafter belongs to the model, not to a stage."""
    head = ("norm.", "hc_head_", "markov_head.", "confidence_head.", "main_proj.", "main_norm.")
    parts = [name.split(".", 2) for name in stored if name.startswith("mtp.")]
    return {f"model.{rest}" if rest.startswith(head) else f"model.layers.{stage}.{rest}" for _, stage, rest in parts}


def sglang_dspark(draft: dict[str, Any], stored: Iterable[str]) -> set[str]:
    """SGLang finds a block drafter by its fields, and stops without a confidence head."""
    said = draft.get("text_config", draft)
    telling = ("dspark_block_size", "dspark_markov_rank", "dspark_noise_token_id", "dspark_target_layer_ids")
    assert any(said.get(field) is not None for field in telling)
    found = set()
    for name in stored:
        if name.startswith("mtp."):
            _, stage, rest = name.split(".", 2)
            shared = rest.startswith(("markov_head.", "confidence_head."))
            found.add(rest if shared else f"stages.{stage}.{rest}")
    assert any(name.startswith("confidence_head.") for name in found)
    return found


@pytest.mark.parametrize("release", V3)
def test_v3(release: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    source = smaller(tmp_path_factory, release)
    dsctl("convert", source, tmp_path / "draft", "--mtp", "only")
    dsctl("convert", source, tmp_path / "bare", "--mtp", "only", *COPIES)
    said, whole = config(source), names(source)
    assert vllm_mtp(said, names(tmp_path / "draft")) == vllm_mtp(said, whole)
    # With one pipeline stage vLLM shares both copies; with several it needs its own embedding.
    copies = {"model.embed_tokens.weight", "model.layers.3.shared_head.head.weight"}
    assert vllm_mtp(said, whole) - vllm_mtp(said, names(tmp_path / "bare")) == copies
    for name in ("draft", "bare"):
        assert sglang_nextn(config(tmp_path / name), names(tmp_path / name)) == sglang_nextn(said, whole)
        # Neither engine is left with a tensor of the folder that it does not know.
        assert len(vllm_mtp(said, names(tmp_path / name))) == len(names(tmp_path / name))
    dsctl("convert", source, tmp_path / "model", "--mtp", "drop")
    assert vllm_mtp(config(tmp_path / "model"), names(tmp_path / "draft")) == set()


@pytest.mark.parametrize("release", V3)
def test_sglang_s_export_serves_sglang_alone(
    release: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = smaller(tmp_path_factory, release)
    folder = exported(source, tmp_path / "export")
    assert sglang_nextn(config(folder), names(folder)) == sglang_nextn(config(source), names(source))
    assert vllm_mtp(config(source), names(folder)) == set()


@pytest.mark.parametrize("release", CLASSIC)
def test_v4(release: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    source = smaller(tmp_path_factory, release)
    dsctl("convert", source, tmp_path / "draft", "--mtp", "only")
    said, draft = config(source), config(tmp_path / "draft")
    assert vllm_classic(said, names(tmp_path / "draft")) == vllm_classic(said, names(source))
    assert draft["num_nextn_predict_layers"] == 1 and draft["architectures"] == ["DeepseekV4ForCausalLM"]
    assert not any(field.startswith("dspark_") for field in draft)
    # vLLM reads `scale_fmt` without a default, and takes the kind of experts from `expert_dtype`.
    assert draft["quantization_config"]["scale_fmt"] == "ue8m0" and draft.get("expert_dtype") == said.get(
        "expert_dtype"
    )


@pytest.mark.parametrize("release", BLOCKS)
def test_dspark(release: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    source = smaller(tmp_path_factory, release)
    dsctl("convert", source, tmp_path / "draft", "--mtp", "only")
    dsctl("convert", source, tmp_path / "model", "--mtp", "drop")
    whole, draft = names(source), names(tmp_path / "draft")
    assert vllm_dspark(draft) == vllm_dspark(whole) and len(vllm_dspark(draft)) == len(draft)
    assert sglang_dspark(config(tmp_path / "draft"), draft) == sglang_dspark(config(source), whole)
    # The target is not taken for one with a drafter, so that SGLang looks for a subfolder.
    with pytest.raises(AssertionError):
        sglang_dspark(config(tmp_path / "model"), names(tmp_path / "model"))


@pytest.mark.parametrize("release", ["v3", "v4-flash", "v4-flash-0731"])
def test_transformers_reads_the_config_and_loads_the_model_without_it(
    release: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = smaller(tmp_path_factory, release)
    dsctl("convert", source, tmp_path / "draft", "--mtp", "only")
    dsctl("convert", source, tmp_path / "model", "--bf16", "--mtp", "drop")
    said = AutoConfig.from_pretrained(tmp_path / "draft")
    assert said.num_hidden_layers == config(source)["num_hidden_layers"]
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    assert model.config.num_hidden_layers == said.num_hidden_layers
