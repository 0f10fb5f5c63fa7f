"""Checkpoints of headers alone: config, index and files of which only the header is written, the rest being a hole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dsctl import models
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.codecs.codec import Codec
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.plain import Plain
from dsctl.core.header import PT, TensorSpec, build
from dsctl.core.params import Family, Param
from dsctl.layouts.naming import DIALECTS
from dsctl.plan.plan import Plan
from dsctl.stores import INDEX, store_at

# A small V3.2: a dense layer, one with four experts, one that predicts a further token. Cuts into 2 keep blocks whole.
BF16_CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", "torch_dtype": "bfloat16",
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "moe_intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "kv_lora_rank": 128, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "q_lora_rank": 256, "n_routed_experts": 4, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "first_k_dense_replace": 1, "num_nextn_predict_layers": 1, "n_group": 1, "topk_group": 1,
    "index_n_heads": 4, "index_head_dim": 128, "index_topk": 64,
}  # fmt: skip
FP8 = {
    "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
    "scale_fmt": "ue8m0",
}  # fmt: skip
FP8_CONFIG = BF16_CONFIG | {"quantization_config": FP8}
BLOCKS = Fp8Block(scale_fmt="ue8m0")
# What a release of this architecture leaves in its own dtype.
_UNTOUCHED = ("embedding", "head", "norm", "router", "mtp")

Files = dict[str, dict[str, TensorSpec]]


def families_of(config: Mapping[str, Any]) -> tuple[Family, ...]:
    """The parameter families of a config."""
    return models.recognise(config).families(config)


def params_of(config: Mapping[str, Any]) -> list[Param]:
    """The parameters of a config, family by family."""
    return [param for family in families_of(config) for param in family.params()]


def codec_of(param: Param, quantized: Codec | None) -> Codec:
    """How a release stores a parameter: what it quantizes by this codec, the rest as it is."""
    return quantized if quantized and param.quantizable and param.role not in _UNTOUCHED else Plain(param.family.dtype)


def tensors_of(param: Param, codec: Codec) -> dict[str, TensorSpec]:
    """The stored tensors of a parameter, by name."""
    names = DIALECTS[codec.dialect]
    return {names.tensor(param.name, part): spec for part, spec in codec.specs(param.shape).items()}


def files_of(config: Mapping[str, Any], quantized: Codec | None = None, count: int = 2) -> Files:
    """The tensors of a whole checkpoint in so many files, in the order of the layers."""
    params = sorted(params_of(config), key=lambda param: -1 if param.layer is None else param.layer)
    names = [f"model-{number:05d}-of-{count:06d}.safetensors" for number in range(1, count + 1)]
    files: Files = {name: {} for name in names}
    for place, param in enumerate(params):
        files[names[place * count // len(params)]] |= tensors_of(param, codec_of(param, quantized))
    return files


def write(folder: Path, config: Mapping[str, Any] | None, files: Files, index: Mapping[str, str] | None = None) -> Path:
    """Write a checkpoint of these tensors; its index says where each is, unless it is given one that says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config, indent=2))
    (folder / "tokenizer.json").write_text("{}")
    weights = {name: file for file, specs in files.items() for name in specs} if index is None else index
    total = sum(spec.nbytes for specs in files.values() for spec in specs.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weights}))
    for file, specs in files.items():
        write_header(folder / file, specs)
    return folder


def write_header(path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] = PT) -> None:
    """A file with the header of these tensors, and a hole where they would be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header, _ = build(specs, metadata)
    _sparse(path, header, len(header) + sum(spec.nbytes for spec in specs.values()), ())


def lay_out(plan: Plan, folder: Path) -> Path:
    """What a plan would write, but for the weights."""
    for file in plan.files:
        _sparse(folder / file.name, file.header, file.size, file.literals)
    for name, text in plan.texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)
    return folder


def _sparse(path: Path, header: bytes, size: int, literals: Iterable[tuple[int, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(size)
        for offset, raw in literals:
            file.seek(offset)
            file.write(raw)


def opened(folder: Path) -> Checkpoint:
    """The checkpoint of a folder."""
    return open_checkpoint(store_at(folder))


def fp8(folder: Path) -> Checkpoint:
    """The small V3.2 as its releases store it."""
    return opened(write(folder, FP8_CONFIG, files_of(FP8_CONFIG, BLOCKS)))


def bf16(folder: Path) -> Checkpoint:
    """The small V3.2 unquantized, by somebody who kept no scales."""
    return opened(write(folder, BF16_CONFIG, files_of(BF16_CONFIG)))
