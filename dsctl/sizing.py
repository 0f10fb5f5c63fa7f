"""What it takes to hold and serve a checkpoint: bytes per rank, cache, disk, and which cuts go through blocks. Numbers.

How ranks share a model: dsctl/layouts/ranks.py. docs/costs.md tells more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dsctl.codecs import CODECS, Codec
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.plain import FLOATS, Plain
from dsctl.costs import Attention, attention, indexed_layers
from dsctl.description import Description, Group
from dsctl.errors import UsageError
from dsctl.layouts.cuts import Cut, illegal
from dsctl.layouts.ranks import Ranks, main_layers, stages
from dsctl.layouts.ranks import check as check_ranks
from dsctl.models import Family
from dsctl.recipes import takes

STORED = "as stored"
USUAL_TP = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Cache:
    """What sequences keep: `batch` of them with `context` tokens each, latents in a format of `CACHE_FORMATS`."""

    attention: Attention | None
    indexed: frozenset[int]
    context: int
    batch: int = 1
    format: str = "bf16"

    @classmethod
    def of(cls, description: Description, context: int | None, batch: int, format_: str) -> Cache:
        """The cache of a description; its longest context where none is given, or 4,096 where it names none."""
        longest = description.config.get("max_position_embeddings")
        tokens = context or (longest if type(longest) is int and 0 < longest < 1 << 32 else 4096)
        indexed = frozenset(indexed_layers(description))
        return cls(attention(description), indexed, tokens, batch, format_)

    def per_token(self, layer: int) -> int:
        """Bytes per token in one layer."""
        if self.attention is None:
            return 0
        keys = self.attention.indexer_bytes() if layer in self.indexed else 0
        return self.attention.layer_bytes(self.format) + keys


class Load(NamedTuple):
    """The fullest rank: bytes of weights and of caches."""

    ranks: Ranks
    weights: int
    cache: int

    @property
    def nbytes(self) -> int:
        return self.weights + self.cache


def check(description: Description, ranks: Ranks) -> None:
    """Refuse sizes that do not fit together or the model; raises as `dsctl.layouts.ranks.check`."""
    check_ranks((group.family for group in description.known), ranks, description.name)


def formats(description: Description, names: tuple[str, ...] = ()) -> dict[str, Codec | None]:
    """Codecs by name, with None for what is stored now: those named, or the two that releases are stored in.

    Raises:
        UsageError: a name is unknown.
    """
    unknown = [name for name in names if name not in CODECS]
    if unknown:
        raise UsageError(f"--to: {unknown[0]!r} is unknown", hint=f"known: {', '.join(CODECS)}")
    stored = {group.codec.name for group in description.known if group.family.quantizable}
    usual = tuple(name for name in ("bf16", "fp8-block") if {name} != stored)
    return {STORED: None} | {name: CODECS[name] for name in names or usual}


def base_dtype(description: Description) -> str:
    """The dtype of most values that are stored plain."""
    values: dict[str, int] = {}
    for group in description.known:
        if isinstance(group.codec, Plain):
            values[group.codec.dtype] = values.get(group.codec.dtype, 0) + group.values
    return max(values, key=lambda dtype: values[dtype], default="BF16")


def codec_of(group: Group, to: Codec | None, base: str) -> Codec:
    """How a group would be stored after a conversion: as `dsctl convert` chooses (dsctl/target.py)."""
    if to is None:
        return group.codec
    plain = isinstance(to, Plain)
    if not isinstance(group.codec, Plain):
        return to if plain or takes(to, group.family) else Plain("BF16")
    if not plain and takes(to, group.family):
        return to
    stored = group.codec.dtype
    if stored != base or stored not in FLOATS or group.family.dtype == "F32":
        return group.codec
    return to if plain else Plain(stored if stored == "F16" else group.family.dtype)


def nbytes(codec: Codec, shape: tuple[int, ...]) -> int:
    """Bytes of one parameter of this shape."""
    return sum(spec.nbytes for spec in codec.specs(shape).values())


def disk(description: Description, to: Codec | None) -> int:
    """Tensor bytes on disk in a format, kept scales included."""
    base = base_dtype(description)
    groups = description.known
    stored = sum(group.count * nbytes(codec_of(group, to, base), group.family.shape) for group in groups)
    return stored + kept_scales(description, to)


def kept_scales(description: Description, to: Codec | None) -> int:
    """Bytes of the original scales that a decoding from blocks keeps aside, to restore them one day."""
    base, total = base_dtype(description), 0
    for group in description.known:
        if isinstance(group.codec, Fp8Block) and isinstance(codec_of(group, to, base), Plain):
            _, *scales = group.specs.values()
            total += group.count * sum(scale.nbytes for scale in scales)
    return total


def load(description: Description, ranks: Ranks, to: Codec | None, cache: Cache) -> Load:
    """The fullest rank. MLA's cache is one latent for all heads: every tensor-parallel rank keeps the whole of it."""
    base = base_dtype(description)
    stage_of_layer = stage_of(description, ranks.pp)
    weights, caches = [0] * ranks.pp, [0] * ranks.pp
    for group in description.known:
        each = nbytes(codec_of(group, to, base), part(group.family, ranks)) * max(1, group.family.experts // ranks.ep)
        if not group.layers:
            weights[-1 if group.family.role in ("head", "norm") else 0] += each
        for layer in group.layers:
            weights[stage_of_layer.get(layer, ranks.pp - 1)] += each
    tokens = -(-cache.batch // ranks.copies) * cache.context
    for layer, stage in stage_of_layer.items():
        caches[stage] += tokens * cache.per_token(layer)
    fullest = max(range(ranks.pp), key=lambda stage: weights[stage] + caches[stage])
    return Load(ranks, weights[fullest], caches[fullest])


def stage_of(description: Description, pp: int) -> dict[int, int]:
    """The stage of every main layer; MTP layers go with the last."""
    return stages(main_layers(group.family for group in description.known), pp)


def part(family: Family, ranks: Ranks) -> tuple[int, ...]:
    """The shape of what one rank holds of a parameter, the largest where it does not divide."""
    cut = ranks.cut(family)
    if family.split is None:
        return family.shape
    shape = list(family.shape)
    shape[family.split] = -(-shape[family.split] // cut)
    return tuple(shape)


def cuts(description: Description, ranks: Ranks, to: Codec | None) -> Iterator[Cut]:
    """The cuts that cannot be made: heads or a length do not divide, or a part would begin within a block."""
    base, heads = base_dtype(description), description.config.get("num_attention_heads")
    stored = ((group.family, codec_of(group, to, base)) for group in description.known)
    yield from illegal(stored, ranks, heads if type(heads) is int else None)
