"""The costs of attention whose layers share caches: V4.1. Formulas only.

docs/costs.md gives every formula with an example. Sources: deepseek-ai/DeepSeek-V4.1-Flash, technical report, sections
2.2 to 2.4, and inference/model.py; the rows of 288 and 528 bytes, sgl-project/sglang pull request 39123 and
vllm-project/vllm pull request 56893.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from dsctl.core.attention import SharedCaches
from dsctl.look.cache_formats import BF16, FP4, FP8, STATE_BYTES, Kept, fp4_key, number

# Values per scale: FP4 entries have E4M3 scales, FP8 entries E8M0 scales.
ENTRY_GROUP = {FP4: 16, FP8: 32}


@dataclass(frozen=True, slots=True)
class SharedAttention:
    """V4.1's attention: a window in every layer, and the best entries of a cache that several layers share."""

    sizes: SharedCaches

    @property
    def layers(self) -> int:
        return self.sizes.layers

    @property
    def usual(self) -> str:
        return FP4

    @property
    def formats(self) -> tuple[str, ...]:
        return BF16, FP8, FP4

    @property
    def keys(self) -> str:
        return FP4

    @property
    def linear(self) -> bool:
        return False

    @property
    def passed(self) -> int:
        """The layers before the source of candidates. Later ones read a cache that is made of the state after these, so
        that a prompt has to pass them only with its last window of tokens."""
        source = self.sizes.pool_source
        return source if 0 < source < self.layers else self.layers

    @property
    def owners(self) -> tuple[int, ...]:
        return self.sizes.caches

    def entry_bytes(self, format_: str = FP4) -> int:
        """Bytes of one entry of a shared cache.

        FP4: E2M1 codes with an E4M3 scale per 16 values; 256 + 32 = 288 in V4.1. FP8: E4M3 codes with an E8M0 scale per
        32 values; 512 + 16 = 528.
        """
        size = self.sizes.size
        if format_ == BF16:
            return 2 * size
        codes = -(-size // 2) if format_ == FP4 else size
        return codes + -(-size // ENTRY_GROUP[format_])

    def window_format(self, format_: str) -> str:
        """A window is never FP4: the report keeps it in FP8 (section 2.4.4)."""
        return FP8 if format_ == FP4 else format_

    def window_bytes(self, format_: str = FP4) -> int:
        """Bytes of one entry of a window.

        FP8 is the row of engines that store the scales. inference/model.py keeps rounded values in BF16.
        """
        return self.entry_bytes(self.window_format(format_))

    def key_bytes(self) -> int:
        """Bytes of one indexer key: FP4 with an E8M0 scale per 32 values; 64 + 4 = 68 in V4.1."""
        return fp4_key(self.sizes.index_size)

    def _per_token(self, each: int) -> float:
        """Bytes that a token adds to the caches of all owners, with `each` bytes per entry."""
        ratios = (self.sizes.ratios[layer] for layer in self.sizes.caches)
        return number(sum((Fraction(each, ratio) for ratio in ratios), Fraction(0)))

    def cache_bytes(self, format_: str = BF16) -> float:
        return self._per_token(self.entry_bytes(format_))

    def index_bytes(self) -> float:
        return self._per_token(self.key_bytes())

    def kept(self, layer: int, context: int, format_: str = BF16) -> Kept:
        one = self.sizes
        window = self.window_bytes(format_) * min(context, one.window)
        if layer not in one.caches:
            return Kept(window=window)
        many, ratio = context // one.ratios[layer], one.ratios[layer]
        # The keys follow from finished entries, so that they have no groups of their own. Ratio 1 has none at all.
        state = STATE_BYTES * ratio * one.size if ratio > 1 else 0
        return Kept(self.entry_bytes(format_) * many, self.key_bytes() * many, window, state)

    def chosen(self, layer: int, context: int) -> int:
        """Entries of a shared cache that a query attends to in a layer."""
        ratio = self.sizes.ratios[layer]
        return min(self.sizes.topk, context // ratio) if ratio else 0

    def attended(self, layer: int, context: int) -> int:
        """Entries that a query attends to in a layer: the window's and the chosen ones."""
        return min(context, self.sizes.window) + self.chosen(layer, context)

    def scored(self, layer: int, context: int) -> int:
        """Keys that the indexer of a layer reads: all of its cache, or the candidates of an earlier layer."""
        many = context // self.sizes.ratios[layer]
        return min(many, self.sizes.pool) if layer > self.sizes.pool_source else many

    def _all_scored(self, context: int) -> int:
        return sum(self.scored(layer, context) for layer in self.sizes.indexers)

    def read_bytes(self, context: int, format_: str = BF16) -> int:
        """The entries that the token attends to, and the keys that indexers score."""
        window = self.layers * min(context, self.sizes.window) * self.window_bytes(format_)
        chosen = sum(self.chosen(layer, context) for layer in range(self.layers))
        return window + chosen * self.entry_bytes(format_) + self._all_scored(context) * self.key_bytes()

    def work(self, context: int) -> int:
        """Per head and attended entry: a dot product and a weighted sum, both as wide as an entry. The indexer, per
        head and scored key: a dot product. Projections, compressors and norms do not grow with the context.
        """
        one = self.sizes
        attended = sum(self.attended(layer, context) for layer in range(self.layers))
        return 4 * one.heads * one.size * attended + 2 * one.index_heads * one.index_size * self._all_scored(context)
