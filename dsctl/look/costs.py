"""What attention costs per token: cache bytes, bytes read and arithmetic, as functions of the context. Formulas only.

docs/costs.md has every formula with an example. Sources: MLA and its cache, DeepSeek-V2 paper (arXiv 2405.04434),
sections 2.1.2 and 2.1.3; the indexer and the token selection, DeepSeek-V3.2 report, section 2.1; cache layouts,
vllm-project/vllm v1/attention/backends/mla/flashmla_sparse.py and deepseek-ai/DeepSeek-V3.2-Exp inference/model.py;
compressed attention, DeepSeek-V4 report (arXiv 2606.19348) and deepseek-ai/DeepSeek-V4-Flash inference/model.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dsctl import models
from dsctl.core.attention import Compressed, Latent, Sizes

if TYPE_CHECKING:
    from dsctl.look.description import Description

# The FP8 latent cache of sparse attention keeps one float32 scale per so many values of the latent vector, and the
# rotary part in BF16.
LATENT_GROUP = 128
# The indexer's key cache has one float32 scale per so many FP8 values.
INDEX_GROUP = 128
# Entries of compressed attention in FP8: one E8M0 scale per so many values, and as a whole so many bytes or a multiple.
ENTRY_GROUP, ENTRY_STEP = 64, 8
# The keys of its indexer are FP4, with one E8M0 scale per so many values.
FP4_GROUP = 32
# A group that a compressor has not finished is kept in float32: values, and scores that weigh them.
STATE_BYTES = 2 * 4
BF16, FP8 = "bf16", "fp8"
CACHE_FORMATS = (BF16, FP8)


class Kept(NamedTuple):
    """Bytes that a sequence keeps. `entries` and `keys` (of indexers) grow with the context; `window` and `state` (of
    compressors) do not, once the context is as long as the window."""

    entries: int = 0
    keys: int = 0
    window: int = 0
    state: int = 0

    @property
    def nbytes(self) -> int:
        return sum(self)


class Attention(Protocol):
    """The costs of attention of one kind. The prediction layers do not count."""

    @property
    def layers(self) -> int:
        """Main layers."""

    @property
    def usual(self) -> str:
        """The format of `CACHE_FORMATS` in which costs are told where none is asked for."""

    @property
    def keys(self) -> str:
        """The format of the indexers' keys."""

    def cache_bytes(self, format_: str = BF16) -> float:
        """Bytes that a token adds to the cache for good, all layers together, without the indexers' keys."""

    def index_bytes(self) -> float:
        """Bytes that a token adds to the keys of all indexers together."""

    def kept(self, layer: int, context: int, format_: str = BF16) -> Kept:
        """What a sequence of `context` tokens keeps for one main layer."""

    def read_bytes(self, context: int, format_: str = BF16) -> int:
        """Bytes of cache that one new token reads."""

    def work(self, context: int) -> int:
        """Floating-point operations of one new token that grow with the context; a multiply and an add are two."""


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """MLA, with an indexer that chooses tokens or without."""

    sizes: Latent

    @property
    def layers(self) -> int:
        return self.sizes.layers

    @property
    def indexers(self) -> int:
        """Layers with an indexer of their own; 0 where attention is full."""
        return len(self.sizes.indexed)

    @property
    def usual(self) -> str:
        return BF16

    @property
    def keys(self) -> str:
        return FP8

    def layer_bytes(self, format_: str = BF16) -> int:
        """Bytes of latent cache per token in one layer: kv_lora_rank + qk_rope_head_dim values, for all heads.

        FP8 of full attention: every value as one byte, 576 in V3 (vLLM 0.32, mla_attention.py). FP8 of sparse
        attention: the latent part as E4M3 with a float32 scale per 128 values, the rotary part still BF16; 656 in V3.2
        (deepseek-ai/FlashMLA README; vLLM, flashmla_sparse.py).
        """
        latent, rotary = self.sizes.latent, self.sizes.rotary
        if format_ == FP8 and not self.indexers:
            return latent + rotary
        if format_ == FP8:
            return latent + 4 * -(-latent // LATENT_GROUP) + 2 * rotary
        return 2 * (latent + rotary)

    def indexer_bytes(self) -> int:
        """Bytes of key cache per token of one indexer: an FP8 key, with a float32 scale per 128 values.

        132 in V3.2 (deepseek-ai/DeepSeek-V3.2-Exp inference/model.py: k_cache, k_scale_cache).
        """
        return self.sizes.index_size + 4 * -(-self.sizes.index_size // INDEX_GROUP)

    def cache_bytes(self, format_: str = BF16) -> int:
        return self.layers * self.layer_bytes(format_)

    def index_bytes(self) -> int:
        return self.indexers * self.indexer_bytes()

    def kept(self, layer: int, context: int, format_: str = BF16) -> Kept:
        keys = self.indexer_bytes() if layer in self.sizes.indexed else 0
        return Kept(self.layer_bytes(format_) * context, keys * context)

    def full(self) -> LatentAttention:
        """The same sizes without an indexer: every query attends to every earlier token."""
        return LatentAttention(replace(self.sizes, indexed=(), index_heads=0, index_size=0, topk=0))

    def attended(self, context: int) -> int:
        """Tokens that a query attends to."""
        return min(context, self.sizes.topk) if self.sizes.topk else context

    def read_bytes(self, context: int, format_: str = BF16) -> int:
        """The latents that it attends to, and every indexer key."""
        return self.cache_bytes(format_) * self.attended(context) + self.index_bytes() * context

    def work(self, context: int) -> int:
        """Attention in MLA's multi-query form, per head and attended token: a dot product with latent and rotary part,
        and a weighted sum of latents. That is how decoding runs; prefill in multi-head form takes less
        (docs/costs.md). Indexer, per head and every token: a dot product, and its weighted sum.
        """
        one = self.sizes
        attention = one.layers * one.heads * 2 * (2 * one.latent + one.rotary) * self.attended(context)
        return attention + self.indexers * one.index_heads * 2 * (one.index_size + 1) * context


@dataclass(frozen=True, slots=True)
class CompressedAttention:
    """V4's attention: a window of tokens, and entries that stand for 4 or 128 tokens before it."""

    sizes: Compressed

    @property
    def layers(self) -> int:
        return self.sizes.layers

    @property
    def usual(self) -> str:
        return FP8

    @property
    def keys(self) -> str:
        return "fp4"

    def entry_bytes(self, format_: str = FP8) -> int:
        """Bytes of one entry, of the window or compressed, for all heads.

        FP8: the rotary part in BF16, the rest E4M3 with an E8M0 scale per 64 values, filled up to a multiple of 8
        bytes; 448 + 7 + 128 + 1 = 584 in V4 (vLLM's notes on V4 for XPU; arXiv 2606.19348).
        """
        size, rotary = self.sizes.size, self.sizes.rotary
        if format_ == BF16:
            return 2 * size
        each = size - rotary + -(-(size - rotary) // ENTRY_GROUP) + 2 * rotary
        return -(-each // ENTRY_STEP) * ENTRY_STEP

    def key_bytes(self) -> int:
        """Bytes of an indexer's key for one entry: FP4 with an E8M0 scale per 32 values; 64 + 4 = 68 in V4."""
        return -(-self.sizes.index_size // 2) + -(-self.sizes.index_size // FP4_GROUP)

    def cache_bytes(self, format_: str = BF16) -> float:
        ratios = [ratio for ratio in self.sizes.ratios if ratio]
        return _number(sum((Fraction(self.entry_bytes(format_), ratio) for ratio in ratios), Fraction(0)))

    def index_bytes(self) -> float:
        chosen = self.sizes.chosen
        return _number(Fraction(self.key_bytes() * self.sizes.counted(chosen), chosen))

    def kept(self, layer: int, context: int, format_: str = BF16) -> Kept:
        ratio = self.sizes.ratios[layer]
        entry, window = self.entry_bytes(format_), min(context, self.sizes.window)
        if not ratio:
            return Kept(window=entry * window)
        many = context // ratio
        keys = self.key_bytes() * many if ratio == self.sizes.chosen else 0
        return Kept(entry * many, keys, entry * window, self.state_bytes(ratio))

    def state_bytes(self, ratio: int) -> int:
        """Bytes that the compressors of one layer keep of groups not finished, values and scores in float32.

        Overlapping groups have twice the tokens in twice the width, and a compressor of the indexer's keys beside
        theirs (deepseek-ai/DeepSeek-V4-Flash inference/model.py: kv_state, score_state).
        """
        if ratio == self.sizes.chosen:
            return STATE_BYTES * 2 * ratio * 2 * (self.sizes.size + self.sizes.index_size)
        return STATE_BYTES * ratio * self.sizes.size

    def attended(self, ratio: int, context: int) -> int:
        """Entries that a query attends to in a layer of this ratio: those of the window, and compressed ones."""
        window = min(context, self.sizes.window)
        if not ratio:
            return window
        many = context // ratio
        return window + (min(many, self.sizes.topk) if ratio == self.sizes.chosen else many)

    def read_bytes(self, context: int, format_: str = BF16) -> int:
        """The entries that it attends to, and every indexer key."""
        one = self.sizes
        keys = one.counted(one.chosen) * self.key_bytes() * (context // one.chosen)
        return self.entry_bytes(format_) * sum(self.attended(ratio, context) for ratio in one.ratios) + keys

    def work(self, context: int) -> int:
        """Per head and attended entry: a dot product and a weighted sum, both as wide as an entry. Indexer, per head
        and entry: a dot product. Projections, compressors and norms do not grow with the context.
        """
        one = self.sizes
        attention = 4 * one.heads * one.size * sum(self.attended(ratio, context) for ratio in one.ratios)
        return attention + one.counted(one.chosen) * 2 * one.index_heads * one.index_size * (context // one.chosen)


def _number(value: Fraction) -> float:
    """A whole number as one."""
    return value.numerator if value.denominator == 1 else float(value)


def costs(sizes: Sizes | None) -> Attention | None:
    """The costs of attention of these sizes."""
    if sizes is None:
        return None
    return LatentAttention(sizes) if isinstance(sizes, Latent) else CompressedAttention(sizes)


def attention(description: Description) -> Attention | None:
    """The costs of a description's attention, or None where its config does not give the sizes."""
    model = models.MODELS[description.model] if description.model else None
    return costs(model.attention(description.config)) if model else None


def kept(attention: Attention, context: int, format_: str = BF16) -> Kept:
    """What a sequence of `context` tokens keeps, all main layers together."""
    return Kept(*map(sum, zip(*(attention.kept(n, context, format_) for n in range(attention.layers)), strict=True)))
