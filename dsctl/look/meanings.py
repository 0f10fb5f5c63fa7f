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
from dsctl.look.newer_facts import (
    cache_per_token,
    compression_changed,
    compression_gained,
    compression_lost,
    copies_gone,
    drafter_gained,
    drafter_lost,
    experts_narrowed,
    experts_widened,
    grouped_output,
    routed_by_token,
    scales_as_bytes,
    streams_gained,
    streams_lost,
    vision_gained,
    work_per_token,
)

# One phrase per field of config.json whose name does not say it.
FIELDS: dict[str, str] = {
    "compress_ratios": "tokens that an entry of each layer stands for",
    "compress_rope_theta": "rotary base of compressed layers",
    "dspark_block_size": "tokens that the drafter drafts at a time",
    "dspark_markov_rank": "width of the drafter's Markov head",
    "dspark_noise_token_id": "token in place of those to draft",
    "dspark_target_layer_ids": "layers whose states the drafter reads",
    "expert_dtype": "how routed experts are stored",
    "first_k_dense_replace": "layers at the start without experts",
    "hc_mult": "residual streams",
    "hc_sinkhorn_iters": "rounds that balance the mixing of streams",
    "head_dim": "width of a head",
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
    "num_hash_layers": "layers at the start that choose experts by token",
    "num_nextn_predict_layers": "multi-token-prediction layers",
    "o_groups": "groups that heads go out through",
    "o_lora_rank": "width of a group's output",
    "q_lora_rank": "width that queries are compressed to",
    "quantization_config.scale_fmt": "how scales are chosen",
    "quantization_config.weight_block_size": "block that shares a scale",
    "rope_scaling.factor": "how far the context was stretched",
    "routed_scaling_factor": "weight of the routed experts' sum",
    "sliding_window": "tokens that every layer attends to",
    "swiglu_limit": "limit of an expert's activations",
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
_V4, _CODE = "DeepSeek-V4 report (arXiv 2606.19348)", "deepseek-ai/DeepSeek-V4-Flash inference/model.py"
_DRAFTING = "deepseek-ai/DeepSeek-V4-Flash-0731, config.json, inference/model.py and tensor names"

MEANINGS: tuple[Meaning, ...] = (
    Meaning(
        "compression-gained", compression_gained,
        "Compressed attention: every layer attends to a window of the last {window} tokens, and beside it, {kinds}. "
        "All {heads} heads share one vector of {size} values per entry, key and value at once, and each head has a "
        "sink, a logit of its own in the softmax.",
        f"{_V4}, section 2.3; {_CODE}",
    ),
    Meaning(
        "compression-lost", compression_lost,
        "No compression: every token has a latent of its own in the cache, and there is no window and no sink. Before, "
        "{kinds}.",
        f"{_V4}, section 2.3; {_CODE}",
    ),
    Meaning(
        "compression-changed", compression_changed,
        "Attention beside the window is compressed differently: {after}. Before, {before}.",
        "config.json, compress_ratios, index_topk, sliding_window",
    ),
    Meaning(
        "cache-compressed", cache_per_token,
        "A token adds {after} bytes to the cache, {before} before ({format}, with the keys of indexers): {share}."
        "{reported}{fixed}",
        f"{_V4}, section 1; docs/costs.md",
    ),
    Meaning(
        "work-compressed", work_per_token,
        "After {context} tokens of context a new token takes {after}, {before} before: {share}. Attention takes "
        "{attention} of them, {attention_before} before; the rest is two for each active value.{reported}",
        f"{_V4}, section 1; docs/costs.md",
    ),
    Meaning(
        "streams-gained", streams_gained,
        "Hyper-connections: {streams} residual streams pass through the layers instead of one. Attention and experts "
        "each read one input from them, and a mixture of {numbers} numbers, computed for every token, writes back. "
        "These {tensors} tensors ({values} million values) are float32 and must stay so.",
        f"{_V4}, section 2.2; {_CODE}; huggingface/transformers issue 46167",
    ),
    Meaning(
        "streams-lost", streams_lost,
        "One residual stream, {streams} with hyper-connections before.",
        f"{_V4}, section 2.2",
    ),
    Meaning(
        "grouped-output", grouped_output,
        "Grouped output projection: what the heads give goes out in {groups} groups, each through {rank} values of its "
        "own, before one matrix joins them. A cut over ranks must keep groups whole.",
        f"{_CODE} and inference/convert.py",
    ),
    Meaning(
        "routed-by-token", routed_by_token,
        "The first {layers} layers look up the {chosen} experts of a token in a table of whole numbers (tid2eid, I64): "
        "the router there only weighs them and has no bias. No layer is dense.",
        f"{_V4}, section 2.1; {_CODE}",
    ),
    Meaning(
        "experts-narrowed", experts_narrowed,
        "Routed experts are stored in four bits (E2M1, two codes in a byte, with a scale for every {columns} columns): "
        "{bits} bits per value, {share} % of all bytes. What takes their I8 tensors for integers reads nonsense.",
        f"{_V4}, section 3; ml-explore/mlx-lm issue 1192",
    ),
    Meaning(
        "experts-widened", experts_widened,
        "Routed experts no longer take four bits{share}.{told}",
        "vllm-project/vllm issue 42970",
    ),
    Meaning(
        "scales-as-bytes", scales_as_bytes,
        "Scales are stored as E8M0: one byte e that means 2^(e - 127). Copied as a number into a float32 parameter it "
        "makes fluent nonsense, and nothing fails.",
        "vllm-project/vllm issues 43416 and 51946",
    ),
    Meaning(
        "drafter-gained", drafter_gained,
        "A block drafter of {stages} stages {instead}: {values} billion values, which draft {block}.{told} "
        "Count the stages by their names, mtp.0 to the last: a loader that takes "
        "them for multi-token prediction drafts nothing right.",
        f"{_DRAFTING}; vllm-project/vllm issues 52165 and 52111",
    ),
    Meaning(
        "drafter-lost", drafter_lost,
        "No block drafter: its {stages} stages are gone. {left} The main model does not need them.",
        _DRAFTING,
    ),
    Meaning(
        "copies-gone", copies_gone,
        "The prediction layer has no embedding and head of its own any more ({bytes} of copies): a loader must give it "
        "the main model's, or nothing that it drafts is accepted.",
        "vllm-project/vllm issue 43456",
    ),
    Meaning(
        "vision-gained", vision_gained,
        "It reads images: {count} parameters with {values} million values turn patches into tokens, and every router "
        "has a second bias for them. The architecture's name in config.json stays the same.",
        "deepseek-ai/DeepSeek-V4-Flash-Vision-Exp, config.json and tensor names",
    ),
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
        "them: all heads share what it keeps.",
        f"{_V2}, section 2.1",
    ),
    Meaning(
        "queries-compressed", queries_compressed,
        "Queries are compressed to {rank} values and expanded again{as}.",
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
