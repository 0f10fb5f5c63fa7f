"""The config that V4's and V4.1's reference `generate.py` reads, made from the fields of a `config.json`.

deepseek-ai/DeepSeek-V4-Flash, inference/config.json and inference/model.py (`ModelArgs`); DeepSeek-V4-Flash-0731, which
adds the stages of its drafter and the fields that begin with `dspark_`; DeepSeek-V4.1-Flash, whose config for inference
has no nested fields, as public tests of loaders for it list them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_RATIOS = "compress_ratios"
# Fields of the reference model's config, and the fields of `config.json` with the same meaning.
_FIELDS = {
    "vocab_size": "vocab_size", "dim": "hidden_size", "moe_inter_dim": "moe_intermediate_size",
    "n_layers": "num_hidden_layers", "n_hash_layers": "num_hash_layers", "n_heads": "num_attention_heads",
    "n_routed_experts": "n_routed_experts", "n_shared_experts": "n_shared_experts",
    "n_activated_experts": "num_experts_per_tok", "score_func": "scoring_func", "route_scale": "routed_scaling_factor",
    "swiglu_limit": "swiglu_limit", "q_lora_rank": "q_lora_rank", "head_dim": "head_dim",
    "rope_head_dim": "qk_rope_head_dim", "o_groups": "o_groups", "o_lora_rank": "o_lora_rank",
    "window_size": "sliding_window", "rope_theta": "rope_theta", "index_n_heads": "index_n_heads",
    "index_head_dim": "index_head_dim", "index_topk": "index_topk", "hc_mult": "hc_mult",
    "hc_sinkhorn_iters": "hc_sinkhorn_iters", "compress_rope_theta": "compress_rope_theta", _RATIOS: _RATIOS,
    "dspark_block_size": "dspark_block_size", "dspark_noise_token_id": "dspark_noise_token_id",
    "dspark_target_layer_ids": "dspark_target_layer_ids", "dspark_markov_rank": "dspark_markov_rank",
    "dspark_n_routed_experts": "dspark_n_routed_experts", "dspark_n_activated_experts": "dspark_num_experts_per_tok",
    "kv_source_layers": "kv_source_layer_ids", "index_source_layers": "index_source_layer_ids",
    "candidate_source_layer": "candidate_source_layer_id", "candidate_topk_blocks": "candidate_topk_blocks",
    "candidate_block_size": "candidate_block_size", "engram_layer_ids": "engram_layer_ids",
    "engram_num_embeddings": "engram_num_embeddings", "engram_max_ngram_size": "engram_max_ngram_size",
    "engram_vocab_size": "engram_vocab_size", "engram_n_heads": "engram_n_heads",
    "engram_head_dim": "engram_head_dim", "engram_pad_id": "engram_pad_token_id",
    "engram_compressed_vocab_size": "engram_compressed_vocab_size", "image_token_id": "image_token_id",
}  # fmt: skip
# The same for the parts that read images, which V4.1 nests in an object.
_VISION, _VISION_FIELDS = "vision_config", {
    "vision_n_layers": "num_hidden_layers", "vision_dim": "hidden_size", "vision_n_heads": "num_attention_heads",
    "vision_inter_dim": "intermediate_size", "vision_patch_size": "patch_size", "vision_rope_theta": "rope_theta",
    "vision_downsample_ratio": "downsample_ratio", "vision_max_n_token": "max_image_tokens",
    "vision_min_pixels": "min_pixels", "vision_max_wh_ratio": "max_wh_ratio",
}  # fmt: skip
# The same for its rotary embedding.
_ROTARY = {
    "original_seq_len": "original_max_position_embeddings", "rope_factor": "factor", "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
}  # fmt: skip
# Constants of the reference model that its config does not have.
_USUAL = {"norm_eps": ("rms_norm_eps", 1e-6), "hc_eps": ("hc_eps", 1e-6)}
# One stage is its default.
_STAGES = "n_mtp_layers"


def native_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The reference model's config of V4; experts in eight bits have no `expert_dtype` there."""
    said = {name: config[field] for name, field in _FIELDS.items() if config.get(field) is not None}
    rotary = config.get("rope_scaling")
    if isinstance(rotary, dict):
        said |= {name: rotary[field] for name, field in _ROTARY.items() if rotary.get(field) is not None}
    eye = config.get(_VISION)
    if isinstance(eye, dict):
        said |= {name: eye[field] for name, field in _VISION_FIELDS.items() if field in eye}
    for name, (field, usual) in _USUAL.items():
        said |= {name: config[field]} if config.get(field, usual) != usual else {}
    ratios, layers = config.get(_RATIOS), config.get("num_hidden_layers")
    if isinstance(ratios, list) and type(layers) is int and len(ratios) != layers + 1:
        said[_STAGES] = max(0, len(ratios) - layers)
    quantization = config.get("quantization_config")
    quantization = quantization if isinstance(quantization, dict) else {}
    said["dtype"] = "fp8" if quantization.get("quant_method") == "fp8" else "bf16"
    if quantization.get("scale_fmt"):
        said["scale_fmt"] = quantization["scale_fmt"]
    four_bits = "fp4" in (config.get("expert_dtype"), quantization.get("expert_dtype"))
    return said | ({"expert_dtype": "fp4"} if four_bits else {})
