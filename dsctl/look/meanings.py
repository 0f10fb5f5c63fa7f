"""What known differences mean: one table entry per difference, said only where it is found, each with its source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dsctl.look.costs import Attention
from dsctl.look.description import Description
from dsctl.look.diff import CLERICAL_FIELDS, CONTEXTS, Diff

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


def _indexer_gained(diff: Diff) -> Facts | None:
    before, after = diff.attention
    if before is None or after is None or before.indexers or not after.indexers:
        return None
    saved = _saved(after)
    own = "" if before == after.full() else ", beside full attention in its own sizes,"
    return saved and saved | {"own": own, "shared": _shared(after), "cache": _cache(before, after)}


def _indexer_lost(diff: Diff) -> Facts | None:
    before, after = diff.attention
    if before is None or after is None or not before.indexers or after.indexers:
        return None
    saved = _saved(before)
    return saved and saved | {"own": "" if after == before.full() else " and in the sizes of the side that had one,"}


def _saved(sparse: Attention) -> Facts | None:
    """An indexer's sizes, and what it saves beside full attention in the same sizes."""
    full, longest = sparse.full(), CONTEXTS[-1]
    if full.work(longest) <= sparse.work(longest) or full.read_bytes(longest) <= sparse.read_bytes(longest):
        return None
    return {
        "layers": sparse.indexers,
        "heads": sparse.index_heads,
        "topk": f"{sparse.topk:,}",
        "context": f"{longest:,}",
        "work": f"{full.work(longest) / sparse.work(longest):.1f}",
        "read": f"{full.read_bytes(longest) / sparse.read_bytes(longest):.1f}",
    }


def _shared(after: Attention) -> str:
    if after.indexers == after.layers:
        return ""
    return f" The other {after.layers - after.indexers} layers attend to the tokens that an earlier one chose."


def _cache(before: Attention, after: Attention) -> str:
    kept, keys = (before.cache_bytes(), after.cache_bytes()), f"{after.index_bytes():,}"
    if kept[0] == kept[1]:
        return f"The KV cache stays, and the indexer's keys add {keys} bytes per token."
    return f"The KV cache takes {kept[1]:,} bytes per token, {kept[0]:,} before; the indexer's keys add {keys}."


def _indexers_shared(diff: Diff) -> Facts | None:
    before, after = diff.attention
    if not before or not after or not before.indexers or not after.indexers:
        return None
    shared = before.indexers < before.layers, after.indexers < after.layers
    if not any(shared) or before.indexers == after.indexers:
        return None
    return {"before": before.indexers, "after": after.indexers, "layers": after.layers}


def _scales(description: Description) -> set[str]:
    return {group.codec.scale_fmt for group in description.groups if group.codec.scale_fmt}


def _scales_rounded(diff: Diff) -> Facts | None:
    return {} if _scales(diff.a) == {"float32"} and _scales(diff.b) == {"ue8m0"} else None


def _scales_free(diff: Diff) -> Facts | None:
    return _scales_rounded(Diff(diff.b, diff.a))


def _quantized(diff: Diff) -> Facts | None:
    if diff.a.quantized or not diff.b.quantized:
        return None
    return {"count": f"{diff.b.quantized:,}", "share": _share(diff), "format": _formats(diff.b)}


def _dequantized(diff: Diff) -> Facts | None:
    if not diff.a.quantized or diff.b.quantized:
        return None
    return {"count": f"{diff.a.quantized:,}", "share": _share(diff), "format": _formats(diff.a)}


def _share(diff: Diff) -> str:
    share = diff.b.nbytes / diff.a.nbytes if diff.a.nbytes and diff.same_parameters else None
    return f" in {share:.2f} times the bytes" if share else ""


def _formats(description: Description) -> str:
    codecs = [group.codec for group in description.known if group.codec.quantized]
    return " and ".join(dict.fromkeys("FP8" if codec.scale_fmt else codec.name for codec in codecs))


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
    had, groups = ([group for group in side.known if group.family.mtp] for side in (diff.a, diff.b))
    if had or not groups:
        return None
    layers = len({layer for group in groups for layer in group.layers})
    what = "a further layer" if layers == 1 else f"{layers} further layers"
    return {"values": _many(_mtp(diff.b)), "layers": what}


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
    if any(change.top not in CLERICAL_FIELDS for change in diff.config):
        return None
    return {"compared": _listed(diff.compared), "not_compared": _listed(diff.not_compared)}


def _listed(words: tuple[str, ...]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


_V2, _V3, _V32 = "DeepSeek-V2 paper (arXiv 2405.04434)", "DeepSeek-V3 paper (arXiv 2412.19437)", "DeepSeek-V3.2 report"

MEANINGS: tuple[Meaning, ...] = (
    Meaning(
        "indexer-gained", _indexer_gained,
        "Sparse attention: in {layers} layers a lightning indexer of {heads} small heads scores every earlier token, "
        "and attention then looks at the {topk} best alone.{shared} At {context} tokens of context{own} a new token "
        "takes {work} times less attention arithmetic while decoding and reads {read} times less cache. {cache}",
        f"{_V32}, section 2.1; docs/costs.md",
    ),
    Meaning(
        "indexer-lost", _indexer_lost,
        "Attention is full again: no indexer, every query attends to every earlier token. At {context} tokens of "
        "context{own} a new token takes {work} times more attention arithmetic while decoding and reads {read} times "
        "more cache.",
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
        "{count} matrices are stored in {format}, with a scale per block{share}. A loader needs all tensors of each.",
        "deepseek-ai/DeepSeek-V3 README_WEIGHTS.md",
    ),
    Meaning(
        "dequantized", _dequantized,
        "{count} matrices that were {format} with scales are plain now{share}. They load without {format} kernels.",
        "deepseek-ai/DeepSeek-V3 README_WEIGHTS.md",
    ),
    Meaning(
        "norms-widened", _norms_widened,
        "Norms are stored in float32 instead of BF16: a cast of the whole checkpoint to BF16 may round them.",
        "tensor listing of deepseek-ai/DeepSeek-V3.2",
    ),
    Meaning(
        "mtp-gained", _mtp_gained,
        "Multi-token prediction: {layers} with {values} values to draft the token after next, copies of embedding and "
        "head apart. That serves for speculative decoding; without it they need not be loaded.",
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
        "The router has a correction bias that evens out how often experts are chosen, in place of a loss term. "
        "Releases keep it in float32, and it must stay so: rounding it changes which experts are chosen.",
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
        "config.json allows {max_position_embeddings_b} positions (max_position_embeddings), "
        "{max_position_embeddings_a} before. The context that a model card publishes can be shorter.",
        "config.json",
    ),
    Meaning(
        "training-only", _training_only,
        "By what dsctl knows of both, only the training differs: {compared} agree, apart from fields that set nothing. "
        "Not looked at: {not_compared}. Before one replaces the other in a loader, compare those in two folders.",
        "config.json and tensor inventory of both",
    ),
)  # fmt: skip
