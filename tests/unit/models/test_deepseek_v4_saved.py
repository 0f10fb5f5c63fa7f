"""A config.json that transformers saved, in the fields of the releases; what they cannot say is refused."""

from __future__ import annotations

from typing import Any

import pytest

from dsctl import models
from dsctl.core.errors import FormatError
from dsctl.models.deepseek_v4_saved import released, restored

SAVED: dict[str, Any] = {
    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
    "compress_rope_theta": 160000,
    "dspark_block_size": 5,
    "dtype": "bfloat16",
    "expert_dtype": "fp4",
    "head_dim": 512,
    "hidden_size": 512,
    "layer_types": [
        "sliding_attention", "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention",
    ],
    "mlp_bias": False,
    "mlp_layer_types": ["hash_moe", "hash_moe", "hash_moe", "moe"],
    "model_type": "deepseek_v4",
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 1,
    "pad_token_id": None,
    "partial_rotary_factor": 0.125,
    "rope_parameters": {
        "compress": {
            "attention_factor": 1.0, "beta_fast": 32, "beta_slow": 1, "factor": 16,
            "original_max_position_embeddings": 65536, "partial_rotary_factor": 0.125, "rope_theta": 160000,
            "rope_type": "yarn", "type": "yarn",
        },
        "main": {"partial_rotary_factor": 0.125, "rope_theta": 10000, "rope_type": "default"},
    },
    "rope_theta": 10000,
    "router_aux_loss_coef": 0.001,
}  # fmt: skip
RELEASED: dict[str, Any] = {
    "compress_ratios": [0, 0, 4, 128],
    "compress_rope_theta": 160000,
    "head_dim": 512,
    "hidden_size": 512,
    "model_type": "deepseek_v4",
    "num_hash_layers": 3,
    "num_hidden_layers": 4,
    "num_nextn_predict_layers": 0,
    "qk_rope_head_dim": 64,
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 16, "original_max_position_embeddings": 65536, "type": "yarn",
    },
    "rope_theta": 10000,
    "torch_dtype": "bfloat16",
}  # fmt: skip


def test_fields_of_releases_come_back() -> None:
    assert list(released(SAVED).items()) == list(RELEASED.items())
    assert released(RELEASED) == RELEASED


def test_a_quantization_config_says_what_a_release_says() -> None:
    said = {
        "activation_scheme": "dynamic", "dequantize": False, "expert_dtype": "fp4", "modules_to_convert": None,
        "modules_to_not_convert": None, "quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [128, 128],
    }  # fmt: skip
    config = {name: value for name, value in SAVED.items() if name != "expert_dtype"}
    found = released({**config, "quantization_config": said})
    assert found["expert_dtype"] == "fp4"
    assert found["quantization_config"] == {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"layer_types": ["sliding_attention"]}, "num_hidden_layers 4"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types: no release has 'full_attention' of layer 0"),
        ({"compress_rates": {"compressed_sparse_attention": 8}}, "no release has 'compressed_sparse_attention'"),
        ({"mlp_layer_types": ["moe", "hash_moe", "moe", "moe"]}, "first layers alone"),
        ({"mlp_layer_types": None}, "no mlp_layer_types"),
        ({"rope_parameters": None}, "no rope_parameters"),
        ({"rope_theta": 50000}, "rope_theta 10000 beside rope_theta 50000"),
        ({"rope_parameters": {**SAVED["rope_parameters"], "main": {"rope_type": "linear"}}}, "main is 'linear'"),
    ],
)
def test_what_releases_cannot_say_is_refused(more: dict[str, Any], what: str) -> None:
    config = {**SAVED, **more}
    with pytest.raises(FormatError, match=what):
        released(config)
    assert restored(config) == config
    with pytest.raises(FormatError, match=what):
        models.recognise(config).families(config)
