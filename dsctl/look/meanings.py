"""What known differences mean: one table entry per difference, said only where it is found, each with its source."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dsctl.look.diff import Diff
from dsctl.look.diff_facts import (
    Facts,
    dequantized,
    indexer_gained,
    indexer_lost,
    indexers_shared,
    mtp_gained,
    mtp_lost,
    norms_widened,
    numbers_of,
    quantized,
    queries_compressed,
    router_bias,
    scales_free,
    scales_rounded,
    training_only,
)

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
    "max_position_embeddings": "positions that the config allows",
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


_V2, _V3, _V32 = "DeepSeek-V2 paper (arXiv 2405.04434)", "DeepSeek-V3 paper (arXiv 2412.19437)", "DeepSeek-V3.2 report"

MEANINGS: tuple[Meaning, ...] = (
    Meaning(
        "indexer-gained", indexer_gained,
        "Sparse attention: in {layers} layers a lightning indexer of {heads} small heads scores every earlier token, "
        "and attention then looks at the {topk} best alone.{shared} At {context} tokens of context{own} a new token "
        "takes {work} times less attention arithmetic while decoding and reads {read} times less cache. {cache}",
        f"{_V32}, section 2.1; docs/costs.md",
    ),
    Meaning(
        "indexer-lost", indexer_lost,
        "Attention is full again: no indexer, every query attends to every earlier token. At {context} tokens of "
        "context{own} a new token takes {work} times more attention arithmetic while decoding and reads {read} times "
        "more cache.",
        f"{_V32}, section 2.1; docs/costs.md",
    ),
    Meaning(
        "indexers-shared", indexers_shared,
        "Of {layers} layers {after} choose tokens with an indexer of their own, {before} before; a layer without one "
        "attends to the tokens that an earlier layer chose.",
        "config.json, indexer_types",
    ),
    Meaning(
        "scales-rounded", scales_rounded,
        "FP8 scales are powers of two (ue8m0). BF16 then holds every code times its scale exactly, so that decoding "
        "rounds nothing. Whoever quantizes again must round a scale before computing codes with it, and keep scale_fmt "
        "in config.json.",
        "deepseek-ai/DeepSeek-V3.1 model card; deepseek-ai/DeepGEMM, per_block_cast_to_fp8",
    ),
    Meaning(
        "scales-free", scales_free,
        "FP8 scales are any float32 numbers, no longer powers of two alone (ue8m0): decoding to BF16 rounds.",
        "deepseek-ai/DeepSeek-V3 README_WEIGHTS.md",
    ),
    Meaning(
        "quantized", quantized,
        "{count} matrices are stored in {format}, with a scale per block{share}. A loader needs all tensors of each.",
        "deepseek-ai/DeepSeek-V3 README_WEIGHTS.md",
    ),
    Meaning(
        "dequantized", dequantized,
        "{count} matrices that were {format} with scales are plain now{share}. They load without {format} kernels.",
        "deepseek-ai/DeepSeek-V3 README_WEIGHTS.md",
    ),
    Meaning(
        "norms-widened", norms_widened,
        "Norms are stored in float32 instead of BF16: a cast of the whole checkpoint to BF16 may round them.",
        "tensor listing of deepseek-ai/DeepSeek-V3.2",
    ),
    Meaning(
        "mtp-gained", mtp_gained,
        "Multi-token prediction: {layers} with {values} values to draft the token after next, copies of embedding and "
        "head apart. That serves for speculative decoding; without it they need not be loaded.",
        f"{_V3}, section 2.2",
    ),
    Meaning(
        "mtp-lost", mtp_lost,
        "No multi-token-prediction layer: its {values} values of its own are gone, and with them what speculative "
        "decoding drafts with. The main model does not need it.",
        f"{_V3}, section 2.2",
    ),
    Meaning(
        "router-bias", router_bias,
        "The router has a correction bias that evens out how often experts are chosen, in place of a loss term. "
        "Releases keep it in float32, and it must stay so: rounding it changes which experts are chosen.",
        f"{_V3}, section 2.1.2; vllm-project/vllm pull request 23640",
    ),
    Meaning(
        "experts", numbers_of("n_routed_experts", "num_experts_per_tok"),
        "{n_routed_experts_b} routed experts per layer, {num_experts_per_tok_b} of them per token; "
        "{n_routed_experts_a} and {num_experts_per_tok_a} before.",
        "config.json",
    ),
    Meaning(
        "heads", numbers_of("num_attention_heads"),
        "{num_attention_heads_b} attention heads, {num_attention_heads_a} before. The KV cache does not depend on "
        "them: all heads share one latent per token.",
        f"{_V2}, section 2.1",
    ),
    Meaning(
        "queries-compressed", queries_compressed,
        "Queries are compressed to {rank} values and expanded again, as keys and values are.",
        f"{_V2}, section 2.1.3",
    ),
    Meaning(
        "vocabulary", numbers_of("vocab_size"),
        "Another vocabulary, {vocab_size_b} entries after {vocab_size_a}: tokenizers, embeddings and heads do not go "
        "together, and neither do draft models.",
        "config.json",
    ),
    Meaning(
        "context", numbers_of("max_position_embeddings"),
        "config.json allows {max_position_embeddings_b} positions (max_position_embeddings), "
        "{max_position_embeddings_a} before. The context that a model card publishes can be shorter.",
        "config.json",
    ),
    Meaning(
        "training-only", training_only,
        "By what dsctl knows of both, only the training differs: {compared} agree, apart from fields that set nothing. "
        "Not looked at: {not_compared}. Before one replaces the other in a loader, compare those in two folders.",
        "config.json and tensor inventory of both",
    ),
)  # fmt: skip
