"""The costs of attention per token: cache bytes, bytes read and arithmetic, as functions of the context. Formulas only.

docs/costs.md gives every formula with an example. Sources: MLA and its cache, DeepSeek-V2 paper (arXiv 2405.04434),
sections 2.1.2 and 2.1.3; the indexer and the token selection, DeepSeek-V3.2 report, section 2.1; cache layouts,
vllm-project/vllm v1/attention/backends/mla/flashmla_sparse.py and deepseek-ai/DeepSeek-V3.2-Exp inference/model.py;
compressed attention, DeepSeek-V4 report (arXiv 2606.19348) and deepseek-ai/DeepSeek-V4-Flash inference/model.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

from dsctl import models
from dsctl.core.attention import Compressed, Latent, SharedCaches, Sizes
from dsctl.look.cache_formats import BF16, FP4, FP8, STATE_BYTES, Kept, fp4_key, number
from dsctl.look.shared_costs import SharedAttention

if TYPE_CHECKING:
    from dsctl.look.description import Description

# The FP8 latent cache of sparse attention: values of the latent vector per float32 scale. The rotary part is BF16.
LATENT_GROUP = 128
# The key cache of an indexer: FP8 values per float32 scale.
INDEX_GROUP = 128
# FP8 entries of compressed attention: values per E8M0 scale, and the number of bytes that the size is a multiple of.
ENTRY_GROUP, ENTRY_STEP = 64, 8


class Attention(Protocol):
    """The costs of one kind of attention, without MTP layers."""

    @property
    def layers(self) -> int:
        """Main layers."""

    @property
    def usual(self) -> str:
        """The default one of `formats`."""

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of `CACHE_FORMATS` in which engines store its entries."""

    @property
    def keys(self) -> str:
        """The format of the indexers' keys."""

    def window_format(self, format_: str) -> str:
        """The format of the window if entries have this one."""

    @property
    def linear(self) -> bool:
        """Whether every token adds the same bytes to the cache, and a sequence adds no fixed bytes."""

    @property
    def passed(self) -> int:
        """The number of main layers that all tokens of a prompt pass; only generated tokens pass the others."""

    @property
    def owners(self) -> tuple[int, ...]:
        """The main layers with a cache of entries of their own."""

    def cache_bytes(self, format_: str = BF16) -> float:
        """Bytes that a token adds to the cache in all layers, without the indexers' keys."""

    def index_bytes(self) -> float:
        """Bytes that a token adds to the keys of all indexers."""

    def kept(self, layer: int, context: int, format_: str = BF16) -> Kept:
        """Bytes of a sequence of `context` tokens in one main layer."""

    def read_bytes(self, context: int, format_: str = BF16) -> int:
        """Bytes of cache that one new token reads."""

    def work(self, context: int) -> int:
        """Floating-point operations of one new token that grow with the context. A multiply-add counts as two."""


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """MLA, with or without an indexer that selects tokens."""

    sizes: Latent

    @property
    def layers(self) -> int:
        return self.sizes.layers

    @property
    def indexers(self) -> int:
        """Layers with an indexer of their own; 0 if attention is full."""
        return len(self.sizes.indexed)

    @property
    def usual(self) -> str:
        return BF16

    @property
    def formats(self) -> tuple[str, ...]:
        return BF16, FP8

    @property
    def passed(self) -> int:
        return self.layers

    @property
    def owners(self) -> tuple[int, ...]:
        return tuple(range(self.layers))

    @property
    def keys(self) -> str:
        return FP8

    def window_format(self, format_: str) -> str:
        return format_

    @property
    def linear(self) -> bool:
        return True

    def layer_bytes(self, format_: str = BF16) -> int:
        """Bytes of latent cache per token in one layer: kv_lora_rank + qk_rope_head_dim values, shared by all heads.

        FP8 with full attention stores every value in one byte: 576 in V3 (vLLM 0.32, mla_attention.py). FP8 with
        sparse attention stores the latent part in E4M3 with a float32 scale per 128 values, and the rotary part in
        BF16: 656 in V3.2 (deepseek-ai/FlashMLA README; vLLM, flashmla_sparse.py).
        """
        latent, rotary = self.sizes.latent, self.sizes.rotary
        if format_ == FP8 and not self.indexers:
            return latent + rotary
        if format_ == FP8:
            return latent + 4 * -(-latent // LATENT_GROUP) + 2 * rotary
        return 2 * (latent + rotary)

    def indexer_bytes(self) -> int:
        """Bytes of key cache per token of one indexer: an FP8 key with a float32 scale per 128 values.

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
        """The same sizes with full attention: every query attends to every earlier token."""
        return LatentAttention(replace(self.sizes, indexed=(), index_heads=0, index_size=0, topk=0))

    def attended(self, context: int) -> int:
        """Tokens that a query attends to."""
        return min(context, self.sizes.topk) if self.sizes.topk else context

    def read_bytes(self, context: int, format_: str = BF16) -> int:
        """The latents that the token attends to, and every indexer key."""
        return self.cache_bytes(format_) * self.attended(context) + self.index_bytes() * context

    def work(self, context: int) -> int:
        """Attention in MLA's multi-query form, per head and attended token: a dot product with the latent and the
        rotary part, and a weighted sum of latents. Decoding runs in this form; prefill in multi-head form takes less
        (docs/costs.md). The indexer, per head and token: a dot product and its weighted sum.
        """
        one = self.sizes
        attention = one.layers * one.heads * 2 * (2 * one.latent + one.rotary) * self.attended(context)
        return attention + self.indexers * one.index_heads * 2 * (one.index_size + 1) * context


@dataclass(frozen=True, slots=True)
class CompressedAttention:
    """V4's attention: a window of tokens, and entries that each represent 4 or 128 earlier tokens."""

    sizes: Compressed

    @property
    def layers(self) -> int:
        return self.sizes.layers

    @property
    def usual(self) -> str:
        return FP8

    @property
    def formats(self) -> tuple[str, ...]:
        return BF16, FP8

    @property
    def passed(self) -> int:
        return self.layers

    @property
    def owners(self) -> tuple[int, ...]:
        return tuple(layer for layer, ratio in enumerate(self.sizes.ratios) if ratio)

    @property
    def keys(self) -> str:
        return FP4

    def window_format(self, format_: str) -> str:
        return format_

    @property
    def linear(self) -> bool:
        return False

    def entry_bytes(self, format_: str = FP8) -> int:
        """Bytes of one entry, in the window or compressed, shared by all heads.

        FP8: the rotary part in BF16, the rest in E4M3 with an E8M0 scale per 64 values, padded to a multiple of 8
        bytes; 448 + 7 + 128 + 1 = 584 in V4 (vLLM's notes on V4 for XPU; arXiv 2606.19348).
        """
        size, rotary = self.sizes.size, self.sizes.rotary
        if format_ == BF16:
            return 2 * size
        each = size - rotary + -(-(size - rotary) // ENTRY_GROUP) + 2 * rotary
        return -(-each // ENTRY_STEP) * ENTRY_STEP

    def key_bytes(self) -> int:
        """Bytes of one indexer key: FP4 with an E8M0 scale per 32 values; 64 + 4 = 68 in V4."""
        return fp4_key(self.sizes.index_size)

    def cache_bytes(self, format_: str = BF16) -> float:
        ratios = [ratio for ratio in self.sizes.ratios if ratio]
        return number(sum((Fraction(self.entry_bytes(format_), ratio) for ratio in ratios), Fraction(0)))

    def index_bytes(self) -> float:
        chosen = self.sizes.chosen
        return number(Fraction(self.key_bytes() * self.sizes.counted(chosen), chosen))

    def kept(self, layer: int, context: int, format_: str = BF16) -> Kept:
        ratio = self.sizes.ratios[layer]
        entry, window = self.entry_bytes(format_), min(context, self.sizes.window)
        if not ratio:
            return Kept(window=entry * window)
        many = context // ratio
        keys = self.key_bytes() * many if ratio == self.sizes.chosen else 0
        return Kept(entry * many, keys, entry * window, self.state_bytes(ratio))

    def state_bytes(self, ratio: int) -> int:
        """Bytes of unfinished groups in the compressors of one layer: values and scores in float32.

        Overlapping groups have twice the tokens and twice the width; a second compressor makes the indexer's keys
        (deepseek-ai/DeepSeek-V4-Flash inference/model.py: kv_state, score_state).
        """
        if ratio == self.sizes.chosen:
            return STATE_BYTES * 2 * ratio * 2 * (self.sizes.size + self.sizes.index_size)
        return STATE_BYTES * ratio * self.sizes.size

    def attended(self, ratio: int, context: int) -> int:
        """Entries that a query attends to in a layer of this ratio: the window's and the compressed ones."""
        window = min(context, self.sizes.window)
        if not ratio:
            return window
        many = context // ratio
        return window + (min(many, self.sizes.topk) if ratio == self.sizes.chosen else many)

    def read_bytes(self, context: int, format_: str = BF16) -> int:
        """The entries that the token attends to, and every indexer key."""
        one = self.sizes
        keys = one.counted(one.chosen) * self.key_bytes() * (context // one.chosen)
        return self.entry_bytes(format_) * sum(self.attended(ratio, context) for ratio in one.ratios) + keys

    def work(self, context: int) -> int:
        """Per head and attended entry: a dot product and a weighted sum, both as wide as an entry. The indexer, per
        head and entry: a dot product. Projections, compressors and norms do not grow with the context.
        """
        one = self.sizes
        attention = 4 * one.heads * one.size * sum(self.attended(ratio, context) for ratio in one.ratios)
        return attention + one.counted(one.chosen) * 2 * one.index_heads * one.index_size * (context // one.chosen)


def costs(sizes: Sizes | None) -> Attention | None:
    """The costs of attention with these sizes; None without sizes."""
    if sizes is None:
        return None
    if isinstance(sizes, SharedCaches):
        return SharedAttention(sizes)
    return LatentAttention(sizes) if isinstance(sizes, Latent) else CompressedAttention(sizes)


def attention(description: Description) -> Attention | None:
    """The costs of a description's attention, or None if its config does not give the sizes."""
    model = models.MODELS[description.model] if description.model else None
    return costs(model.attention(description.config)) if model else None


def kept(attention: Attention, context: int, format_: str = BF16) -> Kept:
    """Bytes of a sequence of `context` tokens in all main layers."""
    return Kept(*map(sum, zip(*(attention.kept(n, context, format_) for n in range(attention.layers)), strict=True)))
