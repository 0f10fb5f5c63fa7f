"""The cuts that are possible in a format: whole heads and groups, equal lengths, whole blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from dsctl.codecs.codec import Codec, Misaligned
from dsctl.core.params import Family, Unit
from dsctl.layouts.ranks import Ranks, rows_left, share


class Cut(NamedTuple):
    """An impossible cut: the parameters, the dimension and length to divide, the number of parts, and the reason.

    `blocks`: the length divides, but a cut goes through blocks, so the values would have to be re-quantized.
    """

    template: str
    dimension: int
    length: int
    parts: int
    why: str
    blocks: bool = False


def cut_of(family: Family, codec: Codec, parts: int, units: Sequence[Unit]) -> Cut | None:
    """The reason why a parameter of a family cannot be cut into this number of parts; None if it can."""
    if family.split is None or parts == 1:
        return None
    length = family.shape[family.split]
    uneven = _uneven(family, parts, units)
    why = uneven or _through_blocks(family, codec, parts)
    return Cut(family.template, family.split, length, parts, why, not uneven) if why else None


def _uneven(family: Family, parts: int, units: Sequence[Unit]) -> str:
    if family.split is None or parts == 1:
        return ""
    split = next((unit for unit in units if unit.number % parts), None) if family.role == "attention" else None
    if split is not None:
        return f"{split.number} {split.noun} / {parts}"
    if family.table:
        return "" if rows_left(family, parts) else f"{family.shape[0]:,} rows / {parts} leave parts without rows"
    length = family.shape[family.split]
    return f"{length:,} / {parts}" if length % parts else ""


def _through_blocks(family: Family, codec: Codec, parts: int) -> str:
    dimension = family.split or 0
    for part in codec.parts:
        for index in range(parts):
            try:
                codec.box(part, share(family.shape, dimension, index, parts, family.table), family.shape)
            except Misaligned:
                each, block = family.shape[dimension] // parts, codec.block[dimension]
                return f"{each:,} = {each / block:.4g} x {block}"
    return ""


def illegal(stored: Iterable[tuple[Family, Codec]], ranks: Ranks, units: Sequence[Unit]) -> Iterator[Cut]:
    """The first impossible cut of every family."""
    seen: set[str] = set()
    for family, codec in stored:
        cut = None if family.template in seen else cut_of(family, codec, ranks.cut(family), units)
        if cut:
            seen.add(family.template)
            yield cut


def legal_sizes(
    stored: Iterable[tuple[Family, Codec]], ep: int | None, units: Sequence[Unit], most: int = 128
) -> list[int]:
    """The tensor-parallel sizes up to `most` at which every cut is possible; with `ep` None, EP equals TP."""
    pairs = list(dict.fromkeys(stored))
    return [size for size in range(1, most + 1) if _fits(pairs, Ranks(size, ep or size), units)]


def _fits(pairs: list[tuple[Family, Codec]], ranks: Ranks, units: Sequence[Unit]) -> bool:
    """Whether every cut is possible. The checks that do not need blocks come first."""
    if max(ranks.tp, ranks.ep) % min(ranks.tp, ranks.ep):
        return False
    if any(family.experts % ranks.ep or _uneven(family, ranks.cut(family), units) for family, _ in pairs):
        return False
    return not any(True for _ in illegal(pairs, ranks, units))
