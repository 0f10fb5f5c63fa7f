"""The meaning of known differences: one table entry per difference, shown only if it is found, each with its source."""

from __future__ import annotations

from typing import NamedTuple

from dsctl.look.diff import Diff
from dsctl.look.diff_facts import (
    chat_template,
    dequantized,
    experts,
    heads,
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
    tokens_renumbered,
    training_only,
)
from dsctl.look.meaning import Meaning
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
    prefixed,
    routed_by_token,
    scales_as_bytes,
    state_gained,
    streams_gained,
    streams_lost,
    vision_gained,
    work_per_token,
)
from dsctl.look.shared_meanings import SHARED


class Said(NamedTuple):
    """A meaning that applies, with its numbers."""

    key: str
    text: str
    source: str


def meanings(diff: Diff) -> tuple[Said, ...]:
    """The meanings of the differences found, in the table's order.

    If the architecture of a side is unknown, so are the roles of its tensors: only fields and files are compared then.
    """
    unknown = diff.a.model is None or diff.b.model is None
    told = [meaning for meaning in MEANINGS if not unknown or meaning.key in _OF_FIELDS]
    found = ((meaning, meaning.facts(diff)) for meaning in told)
    return tuple(Said(m.key, m.text.format_map(facts), m.source) for m, facts in found if facts is not None)


# Meanings that rest on fields of config.json or on other files, not on what a tensor is for.
_OF_FIELDS = frozenset({"vocabulary", "context", "chat-template", "tokens-renumbered"})
_V2, _V3, _V32 = "DeepSeek-V2 paper (arXiv 2405.04434)", "DeepSeek-V3 paper (arXiv 2412.19437)", "DeepSeek-V3.2 report"
_V4, _CODE = "DeepSeek-V4 report (arXiv 2606.19348)", "deepseek-ai/DeepSeek-V4-Flash inference/model.py"
_DRAFTING = "deepseek-ai/DeepSeek-V4-Flash-0731, config.json, inference/model.py and tensor names"

MEANINGS: tuple[Meaning, ...] = (
    *SHARED,
    Meaning(
        "compression-gained", compression_gained,
        "Compressed attention: every layer attends to a window of the last {window} tokens. In addition to the window, "
        "{kinds}. All {heads} heads share one vector of {size} values per entry, which is key and value at once. Each "
        "head has a sink: its own logit in the softmax.",
        f"{_V4}, section 2.3; {_CODE}",
    ),
    Meaning(
        "compression-lost", compression_lost,
        "No compression: every token has its own latent in the cache, without a window or sinks. Previously, in "
        "addition to the window, {kinds}.",
        f"{_V4}, section 2.3; {_CODE}",
    ),
    Meaning(
        "compression-changed", compression_changed,
        "Outside the window, attention is compressed differently: {after}. Previously, {before}.",
        "config.json, compress_ratios, index_topk, sliding_window",
    ),
    Meaning(
        "cache-compressed", cache_per_token,
        "Cache per token: {before} → {after} bytes ({format}, with indexer keys), {share}.{reported}{fixed}",
        f"{_V4}, section 1; docs/costs.md",
    ),
    Meaning(
        "work-compressed", work_per_token,
        "Arithmetic of a new token after {context} tokens: {before} → {after} in all, {share}; attention alone, "
        "{attention_before} → {attention}. The rest is two operations per active value.{reported} After {short} "
        "tokens: {early_before} → {early} in all; attention alone, {early_attention_before} → {early_attention}.",
        f"{_V4}, section 1; docs/costs.md",
    ),
    Meaning(
        "streams-gained", streams_gained,
        "Hyper-connections: {streams} residual streams instead of one pass through the layers. Attention and experts "
        "each read one input that is mixed from them, and write back through a mixture of {numbers} numbers that is "
        "computed for every token. These {tensors} tensors ({values} million values) are float32 and must stay "
        "float32.",
        f"{_V4}, section 2.2; {_CODE}; huggingface/transformers issue 46167",
    ),
    Meaning(
        "streams-lost", streams_lost,
        "Residual streams: {streams} with hyper-connections → 1.",
        f"{_V4}, section 2.2",
    ),
    Meaning(
        "grouped-output", grouped_output,
        "Grouped output projection: the outputs of the heads pass through {groups} groups, each {rank} values wide, "
        "before one matrix joins them. Tensor parallelism must keep groups whole.",
        f"{_CODE} and inference/convert.py",
    ),
    Meaning(
        "routed-by-token", routed_by_token,
        "The first {layers} layers look up the {chosen} experts of a token in an integer table (tid2eid, I64). Their "
        "router only weighs these experts and has no bias. There are no dense layers.",
        f"{_V4}, section 2.1; {_CODE}",
    ),
    Meaning(
        "experts-narrowed", experts_narrowed,
        "Routed experts are stored in four bits: E2M1, two codes per byte, with a scale for every {columns} columns. "
        "They take {bits} bits per value and {share} % of all bytes. A loader that reads their I8 tensors as integers "
        "gets meaningless weights.",
        f"{_V4}, section 3; ml-explore/mlx-lm issue 1192",
    ),
    Meaning(
        "experts-widened", experts_widened,
        "Routed experts are no longer stored in four bits{share}.{told}",
        "vllm-project/vllm issue 42970",
    ),
    Meaning(
        "scales-as-bytes", scales_as_bytes,
        "Scales are stored as E8M0: one byte e that means 2^(e - 127). A loader that copies the byte as a number into "
        "a float32 parameter reports no error, and the model produces fluent nonsense.",
        "vllm-project/vllm issues 43416 and 51946",
    ),
    Meaning(
        "drafter-gained", drafter_gained,
        "A block drafter of {stages} stages {instead}: {values} billion values that draft {block}.{told} "
        "Count the stages by their names, from mtp.0 to the last. A loader that treats them as multi-token prediction "
        "drafts wrong tokens.",
        f"{_DRAFTING}; vllm-project/vllm issues 52165 and 52111",
    ),
    Meaning(
        "drafter-lost", drafter_lost,
        "No block drafter: its {stages} stages are removed. {left} The main model does not need them.",
        _DRAFTING,
    ),
    Meaning(
        "copies-gone", copies_gone,
        "The MTP layer no longer has its own copies of embedding and head ({bytes}). A loader must use the main "
        "model's, or no drafted token is accepted.",
        "vllm-project/vllm issue 43456",
    ),
    Meaning(
        "vision-gained", vision_gained,
        "Image input: {count} parameters with {values} million values turn patches into tokens{routers}.{named}",
        "deepseek-ai/DeepSeek-V4-Flash-Vision-Exp and DeepSeek-V4.1-Flash, moonshotai/Kimi-K2.5, config.json and names "
        "of tensors",
    ),
    Meaning(
        "indexer-gained", indexer_gained,
        "Sparse attention: in {layers} layers a lightning indexer of {heads} small heads scores every earlier token, "
        "and attention uses only the {topk} best.{shared} At {context} tokens of context{own} a new token takes {work} "
        "times less attention arithmetic while decoding ({whole} for the whole token) and reads {read} times less "
        "cache. At {short} tokens attention takes {short_work}, the whole token {short_whole}. {cache}",
        f"{_V32}, section 2.1; docs/costs.md",
    ),
    Meaning(
        "indexer-lost", indexer_lost,
        "Full attention: without an indexer, every query attends to every earlier token. At {context} tokens of "
        "context{own} a new token takes {work} times more attention arithmetic while decoding ({whole} for the whole "
        "token) and reads {read} times more cache. At {short} tokens attention takes {short_work}, the whole token "
        "{short_whole}.",
        f"{_V32}, section 2.1; docs/costs.md",
    ),
    Meaning(
        "indexers-shared", indexers_shared,
        "Layers with their own indexer: {before} → {after} of {layers}. The others use the tokens that an "
        "earlier layer chose.",
        "config.json, indexer_types",
    ),
    Meaning(
        "scales-rounded", scales_rounded,
        "FP8 scales are powers of two (ue8m0). BF16 holds every code times its scale exactly, so decoding does not "
        "round. To quantize again, round each scale before computing codes with it, and keep scale_fmt in config.json.",
        "deepseek-ai/DeepSeek-V3.1 model card; deepseek-ai/DeepGEMM, per_block_cast_to_fp8",
    ),
    Meaning(
        "scales-free", scales_free,
        "FP8 scales are any float32 numbers, not only powers of two (ue8m0): decoding to BF16 rounds.",
        "deepseek-ai/DeepSeek-V3 README_WEIGHTS.md",
    ),
    Meaning(
        "quantized", quantized,
        "{count} matrices are stored in {format}, with a scale per block{share}. A loader needs every tensor "
        "of each matrix.",
        "deepseek-ai/DeepSeek-V3 README_WEIGHTS.md",
    ),
    Meaning(
        "dequantized", dequantized,
        "{count} matrices that were {format} with scales are now plain{share}. They load without {format} kernels.",
        "deepseek-ai/DeepSeek-V3 README_WEIGHTS.md",
    ),
    Meaning(
        "norms-widened", norms_widened,
        "Norms are stored in float32 instead of BF16. Casting the whole checkpoint to BF16 may round them.",
        "tensor listing of deepseek-ai/DeepSeek-V3.2",
    ),
    Meaning(
        "mtp-gained", mtp_gained,
        "Multi-token prediction: {layers} with {values} values, not counting copies of embedding and head, to draft "
        "the token after next. Only speculative decoding needs to load it.",
        f"{_V3}, section 2.2",
    ),
    Meaning(
        "mtp-lost", mtp_lost,
        "No MTP layer: its own {values} values are removed, so speculative decoding cannot draft with them. The main "
        "model does not need it.",
        f"{_V3}, section 2.2",
    ),
    Meaning(
        "router-bias", router_bias,
        "The router has a correction bias that balances how often experts are chosen, instead of a loss term. "
        "Releases store it in float32, and it must stay float32: rounding it changes which experts are chosen.",
        f"{_V3}, section 2.1.2; vllm-project/vllm pull request 23640",
    ),
    Meaning(
        "experts", experts, "Routed experts per layer: {many}; active per token: {active}.",
        "config.json",
    ),
    Meaning(
        "heads", heads,
        "Attention heads: {num_attention_heads}. The KV cache does not depend on them, because all heads share it.",
        f"{_V2}, section 2.1",
    ),
    Meaning(
        "prefixed", prefixed,
        "The names of the language model's tensors {change} with {prefix} The tables below pair names without it.",
        "config.json and tensor names of both",
    ),
    Meaning(
        "state-gained", state_gained,
        "Kimi Delta Attention: {layers} of {all} layers keep a state per sequence, whose size does not depend on the "
        "context, instead of cache entries for every token.",
        "config.json, linear_attn_config; arXiv 2607.24653",
    ),
    Meaning(
        "queries-compressed", queries_compressed,
        "Queries are compressed to {rank} values and expanded again{as}.",
        f"{_V2}, section 2.1.3",
    ),
    Meaning(
        "vocabulary", numbers_of("vocab_size"),
        "Vocabulary: {vocab_size}. Tokenizers, embeddings, heads and draft models of the two sides are not "
        "interchangeable.",
        "config.json",
    ),
    Meaning(
        "context", numbers_of("max_position_embeddings"),
        "Positions that config.json allows (max_position_embeddings): {max_position_embeddings}. The context length on "
        "the model card can be shorter.",
        "config.json",
    ),
    Meaning(
        "chat-template", chat_template,
        "Chat template: {before} → {after}.{note}",
        "the files, or the model cards of the releases; strands-rl/strands-sglang pull request 24",
    ),
    Meaning(
        "tokens-renumbered", tokens_renumbered,
        "Special tokens have different numbers: {tokens}. Update stop lists and parsers that use the numbers.",
        "the files, or the sources of the releases' special tokens (dsctl models --json)",
    ),
    Meaning(
        "training-only", training_only,
        "According to the built-in descriptions, only the training differs: {compared} agree, apart from fields "
        "without effect. Not compared: {not_compared}. Compare these in two folders before you replace one model with "
        "the other in a loader.",
        "config.json and tensor inventory of both",
    ),
)  # fmt: skip
