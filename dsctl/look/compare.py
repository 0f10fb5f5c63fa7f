"""Compare the values of two checkpoints in any formats: per parameter, per role and in total.

Both sides are read in bands of whole blocks. Sums are in double precision. A quantized side is decoded as a conversion
would decode it: to the other side's dtype if that is plain, to float32 if both are quantized.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import NamedTuple

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.faults import require_whole
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.checkpoint.pieces import Piece
from dsctl.codecs.plain import FLOATS, Plain
from dsctl.core.boxes import Box
from dsctl.core.errors import PlanError
from dsctl.core.extras import require_torch
from dsctl.core.header import TensorRef
from dsctl.core.lists import globs
from dsctl.core.params import OTHER, Family, Param
from dsctl.core.processors import cores
from dsctl.core.progress import Advance
from dsctl.layouts.layout import whole
from dsctl.layouts.naming import stored_name
from dsctl.look.comparison import Compared, Comparison, Pair, Reshaped
from dsctl.plan.steps import Region, Step, region_of
from dsctl.stores import Store

THREADS = 16


class Pairing(NamedTuple):
    """The pairs to compare, and the names that cannot be compared."""

    stores: tuple[Store, Store]
    pairs: list[Pair]
    rest: Comparison

    @property
    def nbytes(self) -> int:
        """Bytes to read."""
        return sum(pair.nbytes for pair in self.pairs)


def pair(ours: Store, theirs: Store, only: str | Iterable[str] = (), skip: str | Iterable[str] = ()) -> Pairing:
    """Match the parameters of two checkpoints by name; `only` and `skip` are a glob or several.

    Raises:
        SourceError, FormatError: one of them cannot be opened, or contradicts itself.
        PlanError: they have no parameter in common. UsageError: `only` or `skip` does not hold globs.
    """
    only, skip = globs("only", only), globs("skip", skip)
    mine, other = _held(ours), _held(theirs)
    wanted = {name: None for name in (*mine, *other) if (not only or _matches(name, only)) and not _matches(name, skip)}
    pairs, reshaped, not_numbers = [], [], []
    for name in wanted:
        if name not in mine or name not in other:
            continue
        if mine[name][0].shape != other[name][0].shape:
            reshaped.append(Reshaped(name, mine[name][0].shape, other[name][0].shape))
        elif not (mine[name][1] and other[name][1]):
            not_numbers.append(name)
        else:
            pairs.append(_pair(*mine[name], other[name][1]))
    if not pairs:
        raise PlanError(f"{ours.place} and {theirs.place}: no parameter to compare", hint="check --only and --skip")
    rest = Comparison(
        (ours.place, theirs.place),
        (),
        tuple(name for name in wanted if name not in other),
        tuple(name for name in wanted if name not in mine),
        tuple(reshaped),
        tuple(not_numbers),
    )
    return Pairing((ours, theirs), pairs, rest)


def _matches(name: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def _held(store: Store) -> dict[str, tuple[Param, tuple[Piece, ...]]]:
    checkpoint = open_checkpoint(store)
    require_whole(checkpoint, allow_missing=True, allow_extra=True)
    return held_by(checkpoint)


def held_by(checkpoint: Checkpoint) -> dict[str, tuple[Param, tuple[Piece, ...]]]:
    """Every parameter of a checkpoint and its pieces; unknown tensors have their own names."""
    held = {
        param.name: (param, pieces)
        for param in checkpoint.params
        if (pieces := checkpoint.survey.pieces.get(param.name))
    }
    if checkpoint.generic is not None:
        held = {name: (param, pieces if _are_numbers(pieces) else ()) for name, (param, pieces) in held.items()}
    return held | _extras(checkpoint)


def _are_numbers(pieces: tuple[Piece, ...]) -> bool:
    return all(piece.codec.quantized or piece.codec.plain in FLOATS for piece in pieces)


def _extras(checkpoint: Checkpoint) -> dict[str, tuple[Param, tuple[Piece, ...]]]:
    """Tensors that the architecture does not have, a weight and its scale together; without pieces if no codec reads
    them as numbers."""
    names = {ref.name: ref for ref in checkpoint.survey.extra}
    found: dict[str, tuple[Param, tuple[Piece, ...]]] = {}
    parts: set[str] = set()
    for name, ref in names.items():
        param = Param(name, Family(name, ref.spec.shape, OTHER, dtype=ref.spec.dtype), None, None)
        piece = _extra(checkpoint, param, names)
        found[name] = (param, (piece,) if piece else ())
        parts |= {part.name for part in piece.refs[1:]} if piece else set()
    return {name: held for name, held in found.items() if name not in parts}


def _extra(checkpoint: Checkpoint, param: Param, names: dict[str, TensorRef]) -> Piece | None:
    slot = whole(param, "", param.name)
    for codec in checkpoint.codecs:
        stored = [stored_name(checkpoint.layout, param.name, codec.dialect, part) for part in codec.parts]
        if any(name not in names for name in stored) or (codec.plain and codec.plain not in FLOATS):
            continue
        refs = tuple(names[name] for name in stored)
        reader = codec.reads(param.shape, {part: ref.spec for part, ref in zip(codec.parts, refs, strict=True)})
        if reader is not None:
            return Piece(slot, reader, refs)
    return None


def _pair(param: Param, ours: tuple[Piece, ...], theirs: tuple[Piece, ...]) -> Pair:
    codecs = ours[0].codec, theirs[0].codec
    plain = [codec.plain for codec in codecs if codec.plain]
    dtype = plain[0] if len(plain) == 1 else "F32"
    steps = [_reading(param, pieces, dtype) for pieces in (ours, theirs)]
    return Pair(param, steps[0], steps[1], dtype, (codecs[0].name, codecs[1].name), Box.whole(param.shape))


def _reading(param: Param, pieces: tuple[Piece, ...], dtype: str) -> Step:
    target = Region(Box.whole(param.shape), Plain(dtype), (), param.shape, (0,) * len(param.shape))
    return Step(param.name, param.shape, "recode", tuple(region_of(piece) for piece in pieces), (target,))


def compare(pairing: Pairing, advance: Advance = lambda nbytes: None) -> Comparison:
    """Read both sides of every pair, each byte once, and sum.

    Raises:
        PlanError: torch is not installed. SourceError: a file cannot be read. FormatError: a scale is impossible.
    """
    require_torch("comparing values")
    # Loaded late, because it loads torch: --help and refusals should not have to wait for it.
    from dsctl.look.summing import PairReader

    order = sorted(
        pairing.pairs, key=lambda pair: (pair.ours.reads[0].parts[0].file, pair.ours.reads[0].parts[0].offset)
    )
    shares = [share for pair in order for share in pair.shares()]
    reader = PairReader(pairing.stores)
    found: dict[str, Compared] = {}
    pool = ThreadPoolExecutor(min(THREADS, cores()))
    try:
        for share, one in zip(shares, pool.map(reader.compared, shares), strict=True):
            if share.is_first:
                found[one.name] = one
            else:
                found[one.name].sums.add(one.sums)
            advance(share.nbytes)
    finally:
        reader.stop.set()
        pool.shutdown(cancel_futures=True)
    compared = tuple(found[pair.param.name] for pair in pairing.pairs)
    return replace(pairing.rest, compared=compared)
