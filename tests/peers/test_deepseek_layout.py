"""DeepSeek's inference layout against a restatement of its published mapping, written by safetensors itself.

deepseek-ai/DeepSeek-V3 and DeepSeek-V3.2-Exp, inference/convert.py: every module's name and the dimension it is cut in;
inference/configs/config_671B.json, config_v3.1.json and config_671B_v3.2.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsctl import releases
from dsctl.layouts.deepseek import CONFIG, inference_config
from tests.support.checkpoints import tiny
from tests.support.command import dsctl
from tests.support.folders import tensors

SIZES = {"layers": 2, "experts": 8, "hidden": 128, "heads": 16, "vocab": 256, "moe_intermediate": 1024}
# A module within its layer -> its name and the dimension in which it is cut, None where every rank has it whole.
MODULES: dict[str, tuple[str, int | None]] = {
    "input_layernorm": ("attn_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
    "self_attn.q_a_proj": ("attn.wq_a", None),
    "self_attn.q_a_layernorm": ("attn.q_norm", None),
    "self_attn.q_b_proj": ("attn.wq_b", 0),
    "self_attn.kv_a_proj_with_mqa": ("attn.wkv_a", None),
    "self_attn.kv_a_layernorm": ("attn.kv_norm", None),
    "self_attn.kv_b_proj": ("attn.wkv_b", 0),
    "self_attn.o_proj": ("attn.wo", 1),
    "self_attn.indexer.wq_b": ("attn.indexer.wq_b", None),
    "self_attn.indexer.wk": ("attn.indexer.wk", None),
    "self_attn.indexer.k_norm": ("attn.indexer.k_norm", None),
    "self_attn.indexer.weights_proj": ("attn.indexer.weights_proj", None),
    "mlp.gate_proj": ("ffn.w1", 0),
    "mlp.down_proj": ("ffn.w2", 1),
    "mlp.up_proj": ("ffn.w3", 0),
    "mlp.gate": ("ffn.gate", None),
    "mlp.shared_experts.gate_proj": ("ffn.shared_experts.w1", 0),
    "mlp.shared_experts.down_proj": ("ffn.shared_experts.w2", 1),
    "mlp.shared_experts.up_proj": ("ffn.shared_experts.w3", 0),
}
OUTSIDE: dict[str, tuple[str, int | None]] = {
    "model.embed_tokens": ("embed", 0), "model.norm": ("norm", None), "lm_head": ("head", 0),
}  # fmt: skip
EXPERT = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
LEAVES = {"weight": "weight", "weight_scale_inv": "scale", "bias": "bias", "e_score_correction_bias": "bias"}


def restated(source: Path, world: int) -> list[dict[str, torch.Tensor]]:
    """What every rank holds, by the mapping."""
    layers, experts = (json.loads((source / "config.json").read_text())[key] for key in LIMITS)
    ranks: list[dict[str, torch.Tensor]] = [{} for _ in range(world)]
    for path in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            module, _, leaf = name.rpartition(".")
            if module in OUTSIDE:
                prefix, (new, dimension), expert = "", OUTSIDE[module], None
            else:
                _, _, layer, inner = module.split(".", 3)
                if int(layer) >= layers:
                    continue
                prefix, expert = f"layers.{layer}.", None
                if inner.startswith("mlp.experts."):
                    _, _, number, matrix = inner.split(".")
                    expert, dimension, new = int(number), None, f"ffn.experts.{number}.{EXPERT[matrix]}"
                else:
                    new, dimension = MODULES[inner]
            for rank in range(world):
                if expert is not None and expert // (experts // world) != rank:
                    continue
                held = tensor if dimension is None else tensor.chunk(world, dimension)[rank].contiguous()
                ranks[rank][f"{prefix}{new}.{LEAVES[leaf]}"] = held
    return ranks


LIMITS = ("num_hidden_layers", "n_routed_experts")


@pytest.mark.parametrize("release", ["v3", "v3.1", "v3.2"])
@pytest.mark.parametrize("world", [1, 2, 8])
def test_files_are_those_of_the_published_mapping_byte_for_byte(
    release: str, world: int, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    source = tiny(tmp_path_factory, release, **SIZES)
    dsctl("shard", source, tmp_path / "out", "--layout", "deepseek", "--tp", world)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == world
    for rank, held in enumerate(restated(source, world)):
        name = f"model{rank}-mp{world}.safetensors"
        save_file(held, tmp_path / name)
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / name).read_bytes()
    for path in source.glob("*token*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    said = json.loads((tmp_path / "out" / CONFIG).read_text())
    config = json.loads((source / "config.json").read_text())
    assert (said["dim"], said["n_layers"], said["dtype"]) == (config["hidden_size"], config["num_hidden_layers"], "fp8")


def test_files_of_the_published_mapping_are_merged(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """What its script leaves, with a config.json beside it, is a checkpoint like any other."""
    source, foreign = tiny(tmp_path_factory, "v3.2", **SIZES), tmp_path / "foreign"
    foreign.mkdir()
    for rank, held in enumerate(restated(source, 4)):
        save_file(held, foreign / f"model{rank}-mp4.safetensors")
    (foreign / "config.json").write_bytes((source / "config.json").read_bytes())
    dsctl("merge", foreign, tmp_path / "back", "--no-mtp", "--allow-missing")
    dsctl("convert", source, tmp_path / "wanted", "--fp8", "--no-mtp")
    merged, wanted = tensors(tmp_path / "back"), tensors(tmp_path / "wanted")
    assert merged.keys() == wanted.keys()
    assert all(torch.equal(merged[name].view(torch.uint8), wanted[name].view(torch.uint8)) for name in wanted)


V3 = {
    "vocab_size": 129280, "dim": 7168, "inter_dim": 18432, "moe_inter_dim": 2048, "n_layers": 61, "n_dense_layers": 3,
    "n_heads": 128, "n_routed_experts": 256, "n_shared_experts": 1, "n_activated_experts": 8, "n_expert_groups": 8,
    "n_limited_groups": 4, "route_scale": 2.5, "score_func": "sigmoid", "q_lora_rank": 1536, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "dtype": "fp8",
}  # fmt: skip
INDEXER = {"index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}


@pytest.mark.parametrize(
    ("release", "published"),
    [("v3", V3), ("v3.1", V3 | {"scale_fmt": "ue8m0"}), ("v3.2", V3 | INDEXER | {"scale_fmt": "ue8m0"})],
)
def test_the_inference_config_is_the_published_one(release: str, published: dict[str, object]) -> None:
    known = releases.known(release)
    assert known is not None
    assert inference_config(known.config) == published


def test_what_the_published_config_leaves_to_defaults_is_said_where_it_differs() -> None:
    known = releases.known("v3")
    assert known is not None
    scaling = known.config["rope_scaling"] | {"factor": 32, "original_max_position_embeddings": 8192}
    other = known.config | {"rope_scaling": scaling, "rope_theta": 50000.0, "quantization_config": None}
    added = {"rope_factor": 32, "original_seq_len": 8192, "rope_theta": 50000.0, "dtype": "bf16"}
    assert inference_config(other) == V3 | added
