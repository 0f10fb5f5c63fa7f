"""The parts of an n-gram table of DeepSeek V4.1: one for each n-gram length and hash head. Pure.

deepseek-ai/DeepSeek-V4.1-Flash, inference/engram.py: every part has a prime number of rows, the next unused one at or
above `engram_vocab_size`, counted on from layer to layer; a table is its parts one below the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, count, islice
from math import isqrt
from typing import Any

from dsctl.core.attention import whole_numbers
from dsctl.core.config_fields import text_fields

_LAYERS, _ROWS, _VOCABULARY = "engram_layer_ids", "engram_num_embeddings", "engram_vocab_size"
_NGRAM, _HEADS = "engram_max_ngram_size", "engram_n_heads"
# Larger sizes than a release's take too long to search for primes, and are not a release's.
_LARGEST, _MOST = 1 << 26, 1 << 12


def part_sizes(tables: int, parts: int, least: int) -> list[tuple[int, ...]]:
    """The rows of every part, by table: primes from `least` on, all different."""
    return list(_sizes(tables, parts, least))


@lru_cache
def _sizes(tables: int, parts: int, least: int) -> tuple[tuple[int, ...], ...]:
    found = tuple(islice((number for number in count(max(2, least)) if _is_prime(number)), tables * parts))
    return tuple(found[table * parts : (table + 1) * parts] for table in range(tables))


def _is_prime(number: int) -> bool:
    if number < 4 or number % 2 == 0:
        return number in (2, 3)
    return all(number % divisor for divisor in range(3, isqrt(number) + 1, 2))


def sizes_of(config: Mapping[str, Any]) -> list[tuple[int, ...]] | None:
    """The rows of every part of a config's tables; None if its numbers of rows do not follow from the other fields."""
    said = text_fields(config)
    numbers, rows = whole_numbers(said, _NGRAM, _HEADS, _VOCABULARY), said.get(_ROWS)
    if numbers is None or not isinstance(rows, list) or not 1 <= numbers[2] <= _LARGEST:
        return None
    parts = (numbers[0] - 1) * numbers[1]
    if not 0 < parts * len(rows) <= _MOST:
        return None
    found = part_sizes(len(rows), parts, numbers[2])
    return found if [sum(sizes) for sizes in found] == rows else None


def compacted(config: Mapping[str, Any], layers: Sequence[int], least: int) -> dict[str, Any]:
    """The fields of tables with parts of at least `least` rows in the main layers `layers`, by their new numbers.

    `least` of 0, or not below a release's, keeps the size of every table.
    """
    said = text_fields(config)
    tables = dict(zip(said.get(_LAYERS) or (), said.get(_ROWS) or (), strict=False))
    kept = {layers.index(layer): rows for layer, rows in tables.items() if layer in layers}
    changes: dict[str, Any] = {_LAYERS: list(kept), _ROWS: list(kept.values())}
    numbers = whole_numbers(said, _NGRAM, _HEADS, _VOCABULARY)
    if not kept or not least or numbers is None or least >= numbers[2]:
        return changes if _LAYERS in said else {}
    sizes = part_sizes(len(kept), (numbers[0] - 1) * numbers[1], least)
    return {_LAYERS: list(kept), _ROWS: [sum(one) for one in sizes], _VOCABULARY: least}


def kept_rows(
    before: Mapping[str, Any], after: Mapping[str, Any], layer: int, new: int
) -> Iterator[tuple[int, int]] | None:
    """The ranges of rows that a smaller table takes: the first rows of every part of the table of `layer`.

    `new` is the layer's number in the smaller config. None if the parts of a table are not known.
    """
    large, small = sizes_of(before), sizes_of(after)
    if large is None or small is None:
        return None
    old, now = large[text_fields(before)[_LAYERS].index(layer)], small[text_fields(after)[_LAYERS].index(new)]
    begins = accumulate(old, initial=0)
    return ((begin, begin + size) for begin, size in zip(begins, now, strict=False))
