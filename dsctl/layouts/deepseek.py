"""DeepSeek's inference layout: one file per rank, with the names of its reference model.

deepseek-ai/DeepSeek-V3 and DeepSeek-V3.2-Exp, inference/convert.py (names, cuts, file names, no metadata),
inference/generate.py (the files that it loads) and inference/model.py (`ModelArgs`, the fields of its config). The
published script omits the MTP layer; here it is named by the same rules.

V4 is published under the reference model's names. DeepSeek-V4-Flash and -0731, inference/convert.py: the drafter stays,
without the embedding and the head that duplicate the model's; `wo_a` is decoded; four-bit codes are called F4.
DeepSeek-V4.1-Flash, the same: the rows of n-gram tables are cut into equal parts, the last one padded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dsctl.core.errors import PlanError, UsageError
from dsctl.core.params import Family, Param
from dsctl.layouts.layout import Slot, native
from dsctl.layouts.native_config import native_config
from dsctl.layouts.ranks import Shares

CONFIG = "inference_config.json"
# Parts of a published name -> parts of the reference model's name. Parts that both share are in `_SAME`.
_PARTS = {
    "self_attn": "attn", "mlp": "ffn", "embed_tokens": "embed", "lm_head": "head",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "q_proj": "wq", "q_a_proj": "wq_a", "q_a_layernorm": "q_norm", "q_b_proj": "wq_b",
    "kv_a_proj_with_mqa": "wkv_a", "kv_a_layernorm": "kv_norm", "kv_b_proj": "wkv_b", "o_proj": "wo",
    "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3", "e_score_correction_bias": "bias",
}  # fmt: skip
_SAME = frozenset((
    "layers", "{layer}", "norm", "gate", "experts", "{expert}", "shared_experts", "weight", "bias",
    "indexer", "wq_b", "wk", "k_norm", "weights_proj", "enorm", "hnorm", "eh_proj", "shared_head", "head",
))  # fmt: skip
# Modules that the reference model of V4 keeps unquantized, with their dtype.
_DECODED = {"wo_a": "BF16"}
# Fields of the reference model's config, and the fields of `config.json` with the same meaning.
_FIELDS = {
    "vocab_size": "vocab_size", "dim": "hidden_size", "inter_dim": "intermediate_size",
    "moe_inter_dim": "moe_intermediate_size", "n_layers": "num_hidden_layers",
    "n_dense_layers": "first_k_dense_replace", "n_heads": "num_attention_heads",
    "n_routed_experts": "n_routed_experts", "n_shared_experts": "n_shared_experts",
    "n_activated_experts": "num_experts_per_tok", "n_expert_groups": "n_group", "n_limited_groups": "topk_group",
    "route_scale": "routed_scaling_factor", "score_func": "scoring_func", "q_lora_rank": "q_lora_rank",
    "kv_lora_rank": "kv_lora_rank", "qk_nope_head_dim": "qk_nope_head_dim", "qk_rope_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim", "index_n_heads": "index_n_heads", "index_head_dim": "index_head_dim",
    "index_topk": "index_topk",
}  # fmt: skip
# The rotary embedding's constants in the reference model, and the fields of config.json that may differ from them.
_ROTARY = {
    "original_seq_len": ("original_max_position_embeddings", 4096), "rope_factor": ("factor", 40),
    "beta_fast": ("beta_fast", 32), "beta_slow": ("beta_slow", 1), "mscale": ("mscale", 1.0),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Deepseek:
    """One name space and one file per rank; experts are assigned in as many parts as there are ranks."""

    shares: Shares | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    native: bool = False
    name: ClassVar[str] = "deepseek"
    metadata: ClassVar[Mapping[str, str]] = {}
    published: ClassVar[bool] = False
    respelled: ClassVar[Mapping[str, str]] = {"deepseek": "v4"}
    spelled: ClassVar[Mapping[str, str]] = {"e2m1": "F4"}
    dialects: ClassVar[tuple[str, ...]] = ()
    foldered: ClassVar[bool] = False

    def arranged(self, families: Iterable[Family], shares: Shares | None, alone: str = "") -> Deepseek:
        if shares is None:
            raise UsageError("layout deepseek needs ranks", hint="dsctl shard SRC DST --layout deepseek --tp N")
        ranks = shares.ranks
        if ranks.ep != ranks.tp or ranks.pp != 1 or shares.placed:
            raise PlanError(
                f"layout deepseek needs as many expert-parallel parts as tensor-parallel ranks, not EP {ranks.ep} with "
                f"TP {ranks.tp} and PP {ranks.pp}, and assigns experts in contiguous blocks",
                hint="give --tp alone, or choose --layout published",
            )
        families = tuple(families)
        if native(families):
            return Deepseek(shares, {family.template: tuple(family.template.split(".")) for family in families}, True)
        names = {family.template: found for family in families if (found := _named(family.template))}
        other = next((one.template for one in families if one.role == "embedding" and one.template not in names), None)
        if other is not None:
            what = f"layout deepseek: DeepSeek's reference model has no {other}"
            raise PlanError(what, hint="choose --layout published")
        return Deepseek(shares, names)

    def slots(self, param: Param) -> tuple[Slot, ...]:
        assert self.shares is not None
        family, world = param.family, self.shares.ranks.world
        if family.derived or (self.native and family.twin):
            return ()
        parts = self.names.get(family.template) or name_of(family.template)
        numbers = {"{layer}": str(param.number), "{expert}": str(param.expert)}
        tensor = ".".join([numbers.get(part, part) for part in parts])
        origin, boxes = (0,) * len(family.shape), self.shares.boxes(param)
        if family.table:
            each = -(-family.shape[0] // world), *family.shape[1:]
            return tuple(
                [Slot(file_of(rank, world), tensor, box, each, origin, padded=box.shape != each) for rank, box in boxes]
            )
        return tuple([Slot(file_of(rank, world), tensor, box, box.shape, origin) for rank, box in boxes])

    def decoded(self, family: Family) -> str:
        parts = self.names.get(family.template, ())
        return _DECODED.get(parts[-2], "") if len(parts) > 1 else ""

    def drops_drafter(self, families: Iterable[Family]) -> bool:
        return not native(families)

    def shard_of(self, file: str) -> str:
        return file

    def file(self, shard: str, home: str) -> str:
        return shard

    def home(self, file: str) -> str | None:
        return None

    def texts(self, config: Mapping[str, Any]) -> dict[str, bytes]:
        made = native_config(config) if self.native else inference_config(config)
        return {CONFIG: (json.dumps(made, indent=4) + "\n").encode()}


def file_of(rank: int, world: int) -> str:
    """The file name of a rank."""
    return f"model{rank}-mp{world}.safetensors"


def rank_of(file: str) -> tuple[int, int] | None:
    """The rank and the number of ranks in a file's name, if it is the name of a rank's file."""
    head, _, tail = file.removesuffix(".safetensors").partition("-mp")
    digits = head.removeprefix("model"), tail
    if not all(one.isascii() and one.isdecimal() and len(one) < 5 for one in digits):
        return None
    rank, world = map(int, digits)
    return (rank, world) if rank < world and file == file_of(rank, world) else None


def name_of(template: str) -> tuple[str, ...]:
    """The parts of the reference model's name for a family.

    Raises:
        PlanError: the reference model does not have this family.
    """
    found = _named(template)
    if not found:
        raise PlanError(f"layout deepseek does not have {template}", hint="leave it out with --skip")
    return found


def _named(template: str) -> tuple[str, ...]:
    """The same, empty if the reference model does not have the family."""
    parts = template.split(".")
    parts = parts[parts[0] == "model" :]
    known = all(part in _PARTS or part in _SAME for part in parts)
    return tuple([_PARTS.get(part, part) for part in parts]) if known else ()


def inference_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config that the reference `generate.py` reads, made from a `config.json`."""
    said = {name: config[field] for name, field in _FIELDS.items() if config.get(field) is not None}
    rotary = config.get("rope_scaling")
    for name, (key, usual) in _ROTARY.items():
        value = rotary.get(key, usual) if isinstance(rotary, dict) else usual
        said |= {name: value} if value != usual else {}
    if config.get("rope_theta", 10000.0) != 10000.0:
        said["rope_theta"] = config["rope_theta"]
    quantization = config.get("quantization_config")
    quantization = quantization if isinstance(quantization, dict) else {}
    said["dtype"] = "fp8" if quantization.get("quant_method") == "fp8" else "bf16"
    return said | ({"scale_fmt": quantization["scale_fmt"]} if quantization.get("scale_fmt") else {})
