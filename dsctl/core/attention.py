"""The sizes that set what attention costs, by kind. Models give them, `dsctl.look.costs` has the formulae. Data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention: all heads share one latent per token and the rotary part of the keys.

    `indexed` lists the main layers that have their own indexer; `topk` is how many tokens a query then attends to. Both
    are empty or 0 if attention is full.
    """

    layers: int
    heads: int
    latent: int
    rotary: int
    indexed: tuple[int, ...] = ()
    index_heads: int = 0
    index_size: int = 0
    topk: int = 0


@dataclass(frozen=True, slots=True)
class Compressed:
    """Attention to a window of tokens and, before it, to entries that stand for several tokens each.

    `ratios` has an entry for each main layer: how many tokens a compressed entry stands for, or 0 for the
    window alone. Layers of ratio `chosen` compress overlapping groups, and attend to the `topk` entries that
    their own indexer chooses; all other layers attend to every entry. All heads share an entry of `size` values, which
    serves as key and as value; `rotary` of these values are the rotary part. Every head has a sink.
    """

    ratios: tuple[int, ...]
    chosen: int
    heads: int
    size: int
    rotary: int
    window: int
    index_heads: int
    index_size: int
    topk: int

    @property
    def layers(self) -> int:
        return len(self.ratios)

    def counted(self, ratio: int) -> int:
        """The number of layers with this ratio."""
        return self.ratios.count(ratio)


@dataclass(frozen=True, slots=True)
class SharedCaches:
    """Attention to a window of tokens, and to the best entries of a cache that several layers share.

    `ratios` has an entry for each main layer: how many tokens an entry of its cache stands for, or 0 for the window
    alone. The layers in `caches` own a cache of entries and of index keys; every layer uses that of the last owner at
    or before it. The layers in `indexers` choose the `topk` entries for themselves and for the layers up to the next
    one. The indexer of layer `pool_source` also chooses `pool` candidates, to which later indexers are limited; it is
    the first layer of the second half, whose layers a prompt does not have to pass. All heads share an entry of `size`
    values, `rotary` of which are the rotary part. Every head has a sink.
    """

    ratios: tuple[int, ...]
    caches: tuple[int, ...]
    indexers: tuple[int, ...]
    pool_source: int
    pool: int
    heads: int
    size: int
    rotary: int
    window: int
    index_heads: int
    index_size: int
    topk: int

    @property
    def layers(self) -> int:
        return len(self.ratios)


Sizes = Latent | Compressed | SharedCaches


def whole_numbers(config: Mapping[str, Any], *fields: str) -> list[int] | None:
    """The values of these config fields, or None if one of them is not a whole number."""
    found = [value for field in fields if type(value := config.get(field)) is int]
    return found if len(found) == len(fields) else None
