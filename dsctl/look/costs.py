"""What attention costs per token: cache bytes, bytes read and arithmetic, as functions of the context. Formulas only.

docs/costs.md has every formula with an example. Sources: MLA and its cache, DeepSeek-V2 paper (arXiv 2405.04434),
sections 2.1.2 and 2.1.3; the indexer and the token selection, DeepSeek-V3.2 report, section 2.1; cache layouts,
vllm-project/vllm v1/attention/backends/mla/flashmla_sparse.py and deepseek-ai/DeepSeek-V3.2-Exp inference/model.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from dsctl.look.description import Description

# The FP8 latent cache of sparse attention keeps one float32 scale per so many values of the latent vector, and the
# rotary part in BF16.
LATENT_GROUP = 128
# The indexer's key cache has one float32 scale per so many FP8 values.
INDEX_GROUP = 128
CACHE_FORMATS = ("bf16", "fp8")


class Attention(NamedTuple):
    """The sizes that set the costs. `indexers` is the number of layers with an indexer of their own, `topk` how many
    tokens a query then attends to; both 0 where attention is full."""

    layers: int
    heads: int
    latent: int
    rotary: int
    indexers: int = 0
    index_heads: int = 0
    index_size: int = 0
    topk: int = 0

    def layer_bytes(self, format_: str = "bf16") -> int:
        """Bytes of latent cache per token in one layer: kv_lora_rank + qk_rope_head_dim values, for all heads.

        FP8 of full attention: every value as one byte, 576 in V3 (vLLM 0.32, mla_attention.py). FP8 of sparse
        attention: the latent part as E4M3 with a float32 scale per 128 values, the rotary part still BF16; 656 in V3.2
        (deepseek-ai/FlashMLA README; vLLM, flashmla_sparse.py).
        """
        if format_ == "fp8" and not self.indexers:
            return self.latent + self.rotary
        if format_ == "fp8":
            return self.latent + 4 * -(-self.latent // LATENT_GROUP) + 2 * self.rotary
        return 2 * (self.latent + self.rotary)

    def indexer_bytes(self) -> int:
        """Bytes of key cache per token of one indexer: an FP8 key, with a float32 scale per 128 values.

        132 in V3.2 (deepseek-ai/DeepSeek-V3.2-Exp inference/model.py: k_cache, k_scale_cache).
        """
        return self.index_size + 4 * -(-self.index_size // INDEX_GROUP)

    def cache_bytes(self, format_: str = "bf16") -> int:
        """Bytes of latent cache per token, all layers together."""
        return self.layers * self.layer_bytes(format_)

    def index_bytes(self) -> int:
        """Bytes of indexer key cache per token, all indexers together."""
        return self.indexers * self.indexer_bytes()

    def full(self) -> Attention:
        """The same sizes without an indexer: every query attends to every earlier token."""
        return self._replace(indexers=0, index_heads=0, index_size=0, topk=0)

    def attended(self, context: int) -> int:
        """Tokens that a query attends to."""
        return min(context, self.topk) if self.topk else context

    def read_bytes(self, context: int, format_: str = "bf16") -> int:
        """Bytes of cache that one new token reads: the latents it attends to, and every indexer key."""
        return self.cache_bytes(format_) * self.attended(context) + self.index_bytes() * context

    def work(self, context: int) -> int:
        """Floating-point operations of one new token that grow with the context; a multiply and an add are two.

        Attention in MLA's multi-query form, per head and attended token: a dot product with latent and rotary part,
        and a weighted sum of latents. That is how decoding runs; prefill in multi-head form takes less
        (docs/costs.md). Indexer, per head and every token: a dot product, and its weighted sum.
        """
        attention = self.layers * self.heads * 2 * (2 * self.latent + self.rotary) * self.attended(context)
        return attention + self.indexers * self.index_heads * 2 * (self.index_size + 1) * context


def attention(description: Description) -> Attention | None:
    """The sizes of a description's attention, or None where its config does not give them. MTP layers do not count."""
    config = description.config
    sizes = [config.get(n) for n in ("num_hidden_layers", "num_attention_heads", "kv_lora_rank", "qk_rope_head_dim")]
    if description.model is None or not all(type(size) is int for size in sizes):
        return None
    layers, heads, latent, rotary = (int(size or 0) for size in sizes)
    indexers = indexed_layers(description)
    if not indexers:
        return Attention(layers, heads, latent, rotary)
    size = {name: _int(config.get(name)) for name in ("index_n_heads", "index_head_dim", "index_topk")}
    return Attention(
        layers, heads, latent, rotary, len(indexers), size["index_n_heads"], size["index_head_dim"], size["index_topk"]
    )


def indexed_layers(description: Description) -> set[int]:
    """The main layers that have an indexer of their own."""
    groups = (g for g in description.groups if g.family.role == "indexer" and not g.family.mtp)
    return {layer for group in groups for layer in group.layers}


def _int(value: Any) -> int:
    return value if type(value) is int else 0
