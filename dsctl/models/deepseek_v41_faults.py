"""Impossible fields of DeepSeek V4.1's `config.json`, and fields that the stored tensors contradict. Pure.

How loaders use each field: deepseek-ai/DeepSeek-V4.1-Flash, inference/model.py and inference/engram.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dsctl.core.header import TensorSpec
from dsctl.core.params import Traits
from dsctl.models.deepseek_v4_faults import MAIN_PROJECTION
from dsctl.models.deepseek_v41_dimensions import Dimensions
from dsctl.models.deepseek_v41_tables import sizes_of
from dsctl.models.model import Contradiction

# Tokens that an entry of a shared cache stands for; 0 for layers that attend to the window alone.
RATIOS = (0, 1, 2)


def contradictions(
    d: Dimensions, said: Mapping[str, Any], stored: Mapping[str, TensorSpec], traits: Traits
) -> Iterator[Contradiction]:
    """All contradictions; `said` are the config's fields, `stored` the tensors by name, `traits` what they show."""
    yield from _stages(d, said, traits.stages or 0)
    yield from _ratios(d)
    yield from _sources(d, said)
    yield from _tables(d, said)
    yield from _targets(d, stored)
    quantization = said.get("quantization_config")
    if isinstance(quantization, dict) and quantization.get("quant_method") == "fp8" and "scale_fmt" not in quantization:
        what = 'quantization_config has no scale_fmt: vLLM stops without it ("ue8m0" in the release)'
        yield Contradiction("scale-fmt-missing", what)


def _stages(d: Dimensions, said: Mapping[str, Any], stored: int) -> Iterator[Contradiction]:
    if stored and d.stages != stored:
        what = f"compress_ratios has entries for {d.stages} drafter stages, stored: {stored}"
        yield Contradiction("drafter-stages", what)
    elif said.get("num_nextn_predict_layers", d.stages) != d.stages:
        what = f"num_nextn_predict_layers is {said['num_nextn_predict_layers']!r}, but compress_ratios has entries for "
        yield Contradiction("drafter-stages", f"{what}{d.stages} drafter stages")


def _ratios(d: Dimensions) -> Iterator[Contradiction]:
    for layer, ratio in enumerate(d.compress_ratios):
        known = RATIOS if layer < d.num_hidden_layers else (0,)
        if ratio not in known:
            where = f"layer {layer}" if layer < d.num_hidden_layers else f"drafter stage {layer - d.num_hidden_layers}"
            what = f"compress_ratios has {ratio} for {where}, allowed: {', '.join(map(str, known))}"
            yield Contradiction("compress-ratios", what)
            return


def _sources(d: Dimensions, said: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Every layer with a shared cache needs an owner of the same ratio at or before it, and a choice of entries."""
    owner: int | None = None
    for layer in range(d.num_hidden_layers):
        ratio = d.compress_ratios[layer]
        owner = layer if layer in d.kv_source_layer_ids else owner
        if not ratio:
            if layer in (*d.kv_source_layer_ids, *d.index_source_layer_ids):
                yield Contradiction("cache-sources", f"layer {layer} is a source, but attends to the window alone")
                return
            continue
        if owner is None or d.compress_ratios[owner] != ratio:
            sources = list(d.kv_source_layer_ids)
            what = f"layer {layer} has ratio {ratio}, but kv_source_layer_ids {sources} has no layer of this ratio"
            yield Contradiction("cache-sources", f"{what} at or before it")
            return
        if not any(owner <= source <= layer for source in d.index_source_layer_ids):
            what = f"no layer of index_source_layer_ids chooses entries of layer {owner}'s cache for layer {layer}"
            yield Contradiction("cache-sources", what)
            return
    pool = said.get("candidate_source_layer_id")
    if d.index_source_layer_ids and (type(pool) is not int or pool not in d.index_source_layer_ids):
        sources = list(d.index_source_layer_ids)
        what = f"candidate_source_layer_id {pool!r} is not among index_source_layer_ids {sources}"
        yield Contradiction("cache-sources", what)


def _tables(d: Dimensions, said: Mapping[str, Any]) -> Iterator[Contradiction]:
    if d.engram_layer_ids and "engram_vocab_size" in said and sizes_of(said) is None:
        what = "engram_num_embeddings are not the sums of primes from engram_vocab_size on: lookups would miss rows"
        yield Contradiction("engram-tables", f"{what}; they are {list(d.engram_num_embeddings)}")


def _targets(d: Dimensions, stored: Mapping[str, TensorSpec]) -> Iterator[Contradiction]:
    """The layers that the drafter reads: they must exist, and match its first matrix in number."""
    targets, matrix = d.dspark_target_layer_ids, stored.get(MAIN_PROJECTION)
    if targets is None or matrix is None:
        return
    if not targets or max(targets) >= d.num_hidden_layers:
        what = f"dspark_target_layer_ids {list(targets)} are not all among the {d.num_hidden_layers} layers"
        yield Contradiction("drafter-targets", f"{what} (numbered from 0)")
    elif len(matrix.shape) == 2 and matrix.shape[1] % d.hidden_size == 0:
        taken = matrix.shape[1] // d.hidden_size
        if taken != len(targets):
            what = f"dspark_target_layer_ids names {len(targets)} layers, {MAIN_PROJECTION} takes {taken}"
            yield Contradiction("drafter-targets", what)
