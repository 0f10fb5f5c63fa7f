"""A DeepSeek-V3 forward pass in plain float64 torch, of a whole model or of one rank's parts of it.

DeepSeek-V3 paper, sections 2.1.1 (latent attention) and 2.1.2 (sigmoid gates, a bias for choosing, groups of experts);
deepseek-ai/DeepSeek-V3 inference/model.py for which parts are summed over ranks. As a program it is a group of
processes: `python -m tests.peers.forward OUT WORLD STORE FOLDER...` saves the logits of each folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed
from torch.nn.functional import silu

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.core.params import Param
from dsctl.layouts.layout import Layout, Slot
from dsctl.stores import store_at
from dsctl.work.buffers import DTYPES

TOKENS = (3, 141, 59, 26, 53, 58, 97, 93, 238, 46)
Weights = Mapping[str, torch.Tensor]


def held(folder: str, rank: int) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The config of a checkpoint and, by the names of parameters, what a rank holds of it, as its layout tells."""
    checkpoint = open_checkpoint(store_at(folder))
    assert checkpoint.config is not None
    found = {}
    for param in checkpoint.params:
        for slot, place in zip(checkpoint.layout.slots(param), ranks_of(checkpoint.layout, param), strict=True):
            if place == rank:
                found[param.name] = values(checkpoint, slot)
    return checkpoint.config, found


def ranks_of(layout: Layout, param: Param) -> list[int]:
    """The ranks of a parameter's slots."""
    return [rank for rank, _ in layout.shares.boxes(param)] if layout.shares else [0]


def values(checkpoint: Checkpoint, slot: Slot) -> torch.Tensor:
    """What is stored in a slot, float64; a plain format only."""
    ref = checkpoint.catalogue[slot.shard][slot.tensor]
    data = bytearray(checkpoint.store.read(ref.file, ref.begin, ref.end))
    whole = torch.frombuffer(data, dtype=DTYPES[ref.spec.dtype]).view(ref.spec.shape)
    whole = whole if slot.stack is None else whole[slot.stack[0]]
    return whole[tuple(slice(at, at + size) for at, size in zip(slot.at, slot.region.shape, strict=True))].double()


@dataclass(frozen=True)
class Rank:
    """One process: which of how many, and how its partial sums become whole."""

    number: int = 0
    world: int = 1

    def total(self, partial: torch.Tensor) -> torch.Tensor:
        if self.world > 1:
            distributed.all_reduce(partial)
        return partial

    def joined(self, part: torch.Tensor) -> torch.Tensor:
        if self.world == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.world)]
        distributed.all_gather(parts, part.contiguous())
        return torch.cat(parts, -1)


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotated(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding of [tokens, heads, size], pairs of neighbours."""
    size = x.shape[-1]
    angles = torch.outer(torch.arange(len(x)).double(), theta ** (-torch.arange(0, size, 2).double() / size))
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(-2)


def attention(x: torch.Tensor, weights: Weights, prefix: str, config: Mapping[str, Any], rank: Rank) -> torch.Tensor:
    """Multi-head latent attention over the heads that are held; partial sums are made whole."""
    nope, rope, value = (config[key] for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    eps, theta = config["rms_norm_eps"], float(config["rope_theta"])
    query = norm(x @ weights[f"{prefix}q_a_proj.weight"].T, weights[f"{prefix}q_a_layernorm.weight"], eps)
    query = (query @ weights[f"{prefix}q_b_proj.weight"].T).unflatten(-1, (-1, nope + rope))
    latent = x @ weights[f"{prefix}kv_a_proj_with_mqa.weight"].T
    latent, shared = latent.split([config["kv_lora_rank"], rope], -1)
    latent = norm(latent, weights[f"{prefix}kv_a_layernorm.weight"], eps)
    keys, values = (
        (latent @ weights[f"{prefix}kv_b_proj.weight"].T).unflatten(-1, (-1, nope + value)).split([nope, value], -1)
    )
    heads = keys.shape[1]
    query = torch.cat([query[..., :nope], rotated(query[..., nope:], theta)], -1)
    keys = torch.cat([keys, rotated(shared[:, None], theta).expand(-1, heads, -1)], -1)
    scores = torch.einsum("qhd,khd->hqk", query, keys) * (nope + rope) ** -0.5
    scores = scores.masked_fill(torch.ones(len(x), len(x), dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
    out = torch.einsum("hqk,khd->qhd", scores, values).flatten(1)
    return rank.total(out @ weights[f"{prefix}o_proj.weight"].T)


def gated(x: torch.Tensor, weights: Weights, prefix: str) -> torch.Tensor:
    """A gated MLP over the rows that are held: a partial sum."""
    inner = silu(x @ weights[f"{prefix}gate_proj.weight"].T) * (x @ weights[f"{prefix}up_proj.weight"].T)
    return inner @ weights[f"{prefix}down_proj.weight"].T


def experts(x: torch.Tensor, weights: Weights, prefix: str, config: Mapping[str, Any], rank: Rank) -> torch.Tensor:
    """Shared and chosen experts, those that are held; partial sums are made whole."""
    scores = torch.sigmoid(x @ weights[f"{prefix}gate.weight"].T)
    choice = scores + weights[f"{prefix}gate.e_score_correction_bias"]
    groups = choice.unflatten(-1, (config["n_group"], -1))
    best = groups.topk(2, -1).values.sum(-1).topk(config["topk_group"], -1).indices
    allowed = torch.zeros(groups.shape[:2], dtype=torch.bool).scatter(1, best, True)
    choice = groups.masked_fill(~allowed[..., None], -torch.inf).flatten(1)
    chosen = choice.topk(config["num_experts_per_tok"], -1).indices
    shares = scores.gather(1, chosen)
    shares = shares / shares.sum(-1, keepdim=True) * config["routed_scaling_factor"]
    out = gated(x, weights, f"{prefix}shared_experts.")
    for expert in range(config["n_routed_experts"]):
        name = f"{prefix}experts.{expert}."
        if f"{name}up_proj.weight" in weights:
            share = torch.where(chosen == expert, shares, 0.0).sum(-1, keepdim=True)
            out = out + share * gated(x, weights, name)
    return rank.total(out)


def forward(config: Mapping[str, Any], weights: Weights, rank: Rank) -> torch.Tensor:
    """Logits of `TOKENS`, float64 [tokens, vocabulary]."""
    eps, table = config["rms_norm_eps"], weights["model.embed_tokens.weight"]
    local = torch.tensor(TOKENS) - rank.number * len(table) * (rank.world > 1)
    here = (local >= 0) & (local < len(table))
    x = rank.total(torch.where(here[:, None], table[local.clamp(0, len(table) - 1)], 0.0))
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        x = x + attention(
            norm(x, weights[f"{prefix}input_layernorm.weight"], eps), weights, f"{prefix}self_attn.", config, rank
        )
        y = norm(x, weights[f"{prefix}post_attention_layernorm.weight"], eps)
        dense = layer < config["first_k_dense_replace"]
        x = x + (
            rank.total(gated(y, weights, f"{prefix}mlp."))
            if dense
            else experts(y, weights, f"{prefix}mlp.", config, rank)
        )
    return rank.joined(norm(x, weights["model.norm.weight"], eps) @ weights["lm_head.weight"].T)


def main(out: str, world: int, store: str, *folders: str) -> None:
    """Fork into as many processes as there are ranks, before torch has threads; the exit code counts failures."""
    children = []
    for number in range(world):
        child = os.fork()
        if not child:
            compute(out, Rank(number, world), store, folders)
            os._exit(0)
        children.append(child)
    sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))


def compute(out: str, rank: Rank, store: str, folders: Sequence[str]) -> None:
    """One rank's part of every folder's logits, which the first rank saves."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", world_size=rank.world, rank=rank.number)
    logits = [forward(*held(folder, rank.number), rank) for folder in folders]
    if rank.number == 0:
        torch.save(logits, out)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
