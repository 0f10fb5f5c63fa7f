"""What known differences mean: one table entry per difference, said only where it is found, each with its source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dsctl.codecs.fp8_block import Fp8Block
from dsctl.description import Description
from dsctl.diff import CLERICAL_FIELDS, CONTEXTS, Diff

Facts = dict[str, Any]

# One phrase per field of config.json whose name does not say it.
FIELDS: dict[str, str] = {
    "first_k_dense_replace": "layers at the start without experts",
    "index_head_dim": "width of an indexer head",
    "index_n_heads": "heads of the indexer",
    "index_topk": "tokens that a query attends to",
    "index_topk_freq": "every so many layers choose their own tokens",
    "indexer_types": "which layers have an indexer of their own",
    "intermediate_size": "width of a dense MLP",
    "kv_lora_rank": "width of the latent that is cached",
    "max_position_embeddings": "longest context",
    "moe_intermediate_size": "width of an expert",
    "n_group": "groups that experts are chosen by",
    "n_routed_experts": "experts per layer",
    "n_shared_experts": "experts that every token passes",
    "num_experts_per_tok": "experts chosen per token",
    "num_nextn_predict_layers": "multi-token-prediction layers",
    "q_lora_rank": "width that queries are compressed to",
    "quantization_config.scale_fmt": "how scales are chosen",
    "quantization_config.weight_block_size": "block that shares a scale",
    "rope_scaling.factor": "how far the context was stretched",
    "routed_scaling_factor": "weight of the routed experts' sum",
    "scoring_func": "how the router scores",
    "topk_group": "groups that a token's experts come from",
    "topk_method": "how experts are chosen",
}


class Meaning(NamedTuple):
    """A difference by its key: `facts` finds it and what its text tells of it, or None where it is not there."""

    key: str
    facts: Callable[[Diff], Facts | None]
    text: str
    source: str


class Said(NamedTuple):
    """A meaning that applies, with its numbers."""

    key: str
    text: str
    source: str


def meanings(diff: Diff) -> tuple[Said, ...]:
    """What the differences found mean, in the table's order."""
    found = ((meaning, meaning.facts(diff)) for meaning in MEANINGS)
    return tuple(Said(m.key, m.text.format_map(facts), m.source) for m, facts in found if facts is not None)


def _indexer_gained(diff: Diff) -> Facts | None:
    before, after = diff.attention
    if before is None or after is None or before.indexers or not after.indexers:
        return None
    longest = CONTEXTS[-1]
    if before.work(longest) <= after.work(longest):
        return None
    return {
        "layers": after.indexers,
        "heads": after.index_heads,
        "topk": f"{after.topk:,}",
        "context": f"{longest:,}",
        "work": f"{before.work(longest) / after.work(longest):.1f}",
        "read": f"{before.read_bytes(longest) / after.read_bytes(longest):.1f}",
        "bytes": f"{after.index_bytes():,}",
    }


def _indexer_lost(diff: Diff) -> Facts | None:
    return _indexer_gained(Diff(diff.b, diff.a))


def _indexers_shared(diff: Diff) -> Facts | None:
    before, after = diff.attention
    if not before or not after or not before.indexers or not after.indexers:
        return None
    shared = before.indexers < before.layers, after.indexers < after.layers
    if not any(shared) or before.indexers == after.indexers:
        return None
    return {"before": before.indexers, "after": after.indexers, "layers": after.layers}


def _scales(description: Description) -> set[str]:
    return {group.codec.scale_fmt for group in description.groups if isinstance(group.codec, Fp8Block)}


def _scales_rounded(diff: Diff) -> Facts | None:
    return {} if _scales(diff.a) == {"float32"} and _scales(diff.b) == {"ue8m0"} else None


def _scales_free(diff: Diff) -> Facts | None:
    return _scales_rounded(Diff(diff.b, diff.a))


def _quantized(diff: Diff) -> Facts | None:
    if diff.a.quantized or not diff.b.quantized:
        return None
    share = diff.b.nbytes / diff.a.nbytes if diff.a.nbytes and diff.same_parameters else None
    return {"count": f"{diff.b.quantized:,}", "share": f" in {share:.2f} times the bytes" if share else ""}


def _dequantized(diff: Diff) -> Facts | None:
    if not diff.a.quantized or diff.b.quantized:
        return None
    share = diff.b.nbytes / diff.a.nbytes if diff.a.nbytes and diff.same_parameters else None
    return {"count": f"{diff.a.quantized:,}", "share": f" in {share:.2f} times the bytes" if share else ""}


def _norm_dtypes(description: Description) -> set[str]:
    return {spec.dtype for group in description.known if group.family.role == "norm" for spec in group.specs.values()}


def _norms_widened(diff: Diff) -> Facts | None:
    return {} if _norm_dtypes(diff.a) == {"BF16"} and _norm_dtypes(diff.b) == {"F32"} else None


def _mtp(description: Description) -> int:
    """Values of the MTP layers, without their copies of the main embedding and head."""
    return sum(group.values for group in description.known if group.family.mtp and not group.family.twin)


def _many(number: int) -> str:
    """A number in words: 11.5 billion; 350,720."""
    for unit, factor in (("billion", 1e9), ("million", 1e6)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number:,}"


def _mtp_gained(diff: Diff) -> Facts | None:
    if _mtp(diff.a) or not _mtp(diff.b):
        return None
    return {"values": _many(_mtp(diff.b))}


def _mtp_lost(diff: Diff) -> Facts | None:
    return _mtp_gained(Diff(diff.b, diff.a))


def _router_bias(diff: Diff) -> Facts | None:
    def has(description: Description) -> bool:
        return any("e_score_correction_bias" in group.family.template for group in description.known)

    return {} if has(diff.b) and not has(diff.a) else None


def _fields(*names: str) -> Callable[[Diff], Facts | None]:
    """Facts of config fields where at least one differs; both sides must have them all as numbers."""

    def facts(diff: Diff) -> Facts | None:
        before, after = ([side.config.get(name) for name in names] for side in (diff.a, diff.b))
        if before == after or not all(type(value) is int for value in (*before, *after)):
            return None
        sides = (("a", before), ("b", after))
        return {f"{n}_{side}": f"{value:,}" for side, values in sides for n, value in zip(names, values, strict=True)}

    return facts


def _queries(diff: Diff) -> Facts | None:
    before, after = (side.config.get("q_lora_rank") for side in (diff.a, diff.b))
    if diff.a.model is None or diff.b.model is None or before is not None or type(after) is not int:
        return None
    return {"rank": f"{after:,}"}


def _training_only(diff: Diff) -> Facts | None:
    releases = diff.a.release, diff.b.release
    if None in releases or releases[0] == releases[1] or not diff.same_storage:
        return None
    return {} if all(change.top in CLERICAL_FIELDS for change in diff.config) else None


_V2, _V3, _V32 = "DeepSeek-V2 paper (arXiv 2405.04434)", "DeepSeek-V3 paper (arXiv 2412.19437)", "DeepSeek-V3.2 report"

MEANINGS: tuple[Meaning, ...] = (
    Meaning(
        "indexer-gained", _indexer_gained,
        "Sparse attention: in {layers} layers a lightning indexer of {heads} small heads scores every earlier token, "
        "and attention then looks at the {topk} best alone. At {context} tokens of context a new token takes {work} "
        "times less attention arithmetic and reads {read} times less cache. The KV cache stays, and the indexer's keys "
        "add {bytes} bytes per token.",
        f"{_V32}, section 2.1; docs/costs.md",
    ),
    Meaning(
        "indexer-lost", _indexer_lost,
        "Attention is full again: no indexer, every query attends to every earlier token. At {context} tokens of "
        "context a new token takes {work} times more attention arithmetic and reads {read} times more cache.",
        f"{_V32}, section 2.1; docs/costs.md",
    ),
    Meaning(
        "indexers-shared", _indexers_shared,
        "Of {layers} layers {after} choose tokens with an indexer of their own, {before} before; a layer without one "
        "attends to the tokens that an earlier layer chose.",
        "config.json, indexer_types",
    ),
    Meaning(
        "scales-rounded", _scales_rounded,
        "FP8 scales are powers of two (ue8m0). BF16 then holds every code times its scale exactly, so that decoding "
        "rounds nothing. Whoever quantizes again must round a scale before computing codes with it, and keep scale_fmt "
        "in config.json.",
        "deepseek-ai/DeepSeek-V3.1 model card; deepseek-ai/DeepGEMM, per_block_cast_to_fp8",
    ),
    Meaning(
        "scales-free", _scales_free,
        "FP8 scales are any float32 numbers, no longer powers of two alone (ue8m0): decoding to BF16 rounds.",
        "deepseek-ai/DeepSeek-V3 README_WEIGHTS.md",
    ),
    Meaning(
        "quantized", _quantized,
        "{count} matrices are stored in FP8 with a scale per block{share}. A loader needs both tensors of each.",
        "deepseek-ai/DeepSeek-V3 README_WEIGHTS.md",
    ),
    Meaning(
        "dequantized", _dequantized,
        "{count} matrices that were FP8 with scales are plain now{share}. They load without FP8 kernels.",
        "deepseek-ai/DeepSeek-V3 README_WEIGHTS.md",
    ),
    Meaning(
        "norms-widened", _norms_widened,
        "Norms are stored in float32 instead of BF16: a cast of the whole checkpoint to BF16 may round them.",
        "tensor listing of deepseek-ai/DeepSeek-V3.2",
    ),
    Meaning(
        "mtp-gained", _mtp_gained,
        "Multi-token prediction: a further layer with {values} values of its own, its copies of embedding and head "
        "apart, drafts the token after next. It serves for speculative decoding; without that it need not be loaded.",
        f"{_V3}, section 2.2",
    ),
    Meaning(
        "mtp-lost", _mtp_lost,
        "No multi-token-prediction layer: its {values} values of its own are gone, and with them what speculative "
        "decoding drafts with. The main model does not need it.",
        f"{_V3}, section 2.2",
    ),
    Meaning(
        "router-bias", _router_bias,
        "The router has a correction bias that evens out how often experts are chosen, in place of a loss term. It "
        "is float32 and must stay so: rounding it changes which experts are chosen.",
        f"{_V3}, section 2.1.2; vllm-project/vllm pull request 23640",
    ),
    Meaning(
        "experts", _fields("n_routed_experts", "num_experts_per_tok"),
        "{n_routed_experts_b} routed experts per layer, {num_experts_per_tok_b} of them per token; "
        "{n_routed_experts_a} and {num_experts_per_tok_a} before.",
        "config.json",
    ),
    Meaning(
        "heads", _fields("num_attention_heads"),
        "{num_attention_heads_b} attention heads, {num_attention_heads_a} before. The KV cache does not depend on "
        "them: all heads share one latent per token.",
        f"{_V2}, section 2.1",
    ),
    Meaning(
        "queries-compressed", _queries,
        "Queries are compressed to {rank} values and expanded again, as keys and values are.",
        f"{_V2}, section 2.1.3",
    ),
    Meaning(
        "vocabulary", _fields("vocab_size"),
        "Another vocabulary, {vocab_size_b} entries after {vocab_size_a}: tokenizers, embeddings and heads do not go "
        "together, and neither do draft models.",
        "config.json",
    ),
    Meaning(
        "context", _fields("max_position_embeddings"),
        "The longest context is {max_position_embeddings_b} tokens, {max_position_embeddings_a} before.",
        "config.json",
    ),
    Meaning(
        "training-only", _training_only,
        "Nothing here differs but how they were trained: whatever loads one loads the other. Names, shapes and dtypes "
        "were looked at, not numbers; `dsctl compare` looks at those.",
        "config.json and tensor inventory of both",
    ),
)  # fmt: skip
