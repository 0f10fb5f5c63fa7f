"""Mistral Large 3: the text parameters of its card, the names in its headers, and configs in Mistral's own form."""

from __future__ import annotations

from typing import Any

import pytest

from dsctl.core.errors import FormatError
from dsctl.models import MODELS, recognise
from dsctl.releases import find

MODEL, RELEASE = MODELS["mistral_large_3"], find("mistral-large-3")
SIZES = {
    "layers": 3, "experts": 4, "hidden": 256, "heads": 2, "vocab": 128, "intermediate": 512, "moe_intermediate": 128,
}  # fmt: skip
# The tensors of a dense layer and of a layer of experts, without scales, from the headers of the release.
NAMES = {
    "layers.{layer}.attention.kv_a_norm.weight", "layers.{layer}.attention.q_a_norm.weight",
    "layers.{layer}.attention.wkv_a_with_mqa.weight", "layers.{layer}.attention.wkv_b.weight",
    "layers.{layer}.attention.wo.weight", "layers.{layer}.attention.wq_a.weight",
    "layers.{layer}.attention.wq_b.weight", "layers.{layer}.attention_norm.weight",
    "layers.{layer}.experts.{expert}.w1.weight", "layers.{layer}.experts.{expert}.w2.weight",
    "layers.{layer}.experts.{expert}.w3.weight", "layers.{layer}.feed_forward.w1.weight",
    "layers.{layer}.feed_forward.w2.weight", "layers.{layer}.feed_forward.w3.weight",
    "layers.{layer}.ffn_norm.weight", "layers.{layer}.gate.weight", "layers.{layer}.shared_experts.w1.weight",
    "layers.{layer}.shared_experts.w2.weight", "layers.{layer}.shared_experts.w3.weight",
    "norm.weight", "output.weight", "tok_embeddings.weight",
}  # fmt: skip
# Those of them that have a scale.
SCALED = ("wkv_b.weight", "wo.weight", "wq_b.weight", "w1.weight", "w2.weight", "w3.weight")


def test_names_and_scales_are_those_of_its_headers() -> None:
    text = [one for one in MODEL.families(RELEASE.config) if one.role != "vision"]
    assert {one.template for one in text} == NAMES
    assert {one.template for one in text if one.quantizable} == {name for name in NAMES if name.endswith(SCALED)}


def test_parameters_are_those_of_the_model_card() -> None:
    """673 billion with 39 billion active, and an encoder of 2.5 billion."""
    families = MODEL.families(RELEASE.config)
    text = sum(one.count * one.values for one in families if one.role != "vision")
    assert text == 673_421_089_792
    encoder = sum(one.values for one in families if one.template.startswith("vision_encoder."))
    assert encoder / 1e9 == pytest.approx(2.5, rel=0.01)


def test_it_is_recognised_by_the_fields_of_params_json() -> None:
    assert recognise(RELEASE.config) is MODEL
    assert "architectures" not in RELEASE.config


def test_layers_and_experts_of_a_slice() -> None:
    small = MODEL.sliced(RELEASE.config, [0, 3, 4], [1, 5])
    assert (small["n_layers"], small["moe"]["first_k_dense_replace"]) == (3, 1)
    assert (small["moe"]["num_experts"], small["moe"]["num_experts_per_tok"]) == (2, 2)
    assert small.keys() == RELEASE.config.keys()


def test_fields_of_the_vision_encoder_count() -> None:
    small = MODEL.tiny(RELEASE.config, SIZES)
    assert small.keys() == RELEASE.config.keys()
    fields = {"add_pre_mm_projector_layer_norm": False, "adapter_bias": True, "spatial_merge_size": 3}
    families = MODEL.families(small | {"vision_encoder": small["vision_encoder"] | fields})
    shapes = {one.template: one.shape for one in families if one.role == "vision"}
    assert shapes["patch_merger.merging_layer.weight"] == (64, 64 * 9) and "pre_mm_projector_norm.weight" not in shapes
    assert shapes["vision_language_adapter.w_in.bias"] == (256,)


@pytest.mark.parametrize("value", [None, -1, 10**9, "many", []])
@pytest.mark.parametrize("field", ["dim", "n_layers", "kv_lora_rank", "moe"])
def test_an_absurd_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(FormatError, match=field):
        MODEL.families(RELEASE.config | {field: value})
