"""Judge stored values against those of a source: the same bytes, the same values, or as a form rounds. Loads torch.

A form with steps of width u rounds a quotient q = value / scale to the nearest code c, so |q - c| <= u / 2. Encoders
that round the quotient to bfloat16 first, and values that came by way of bfloat16, add 2^-9 of q each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from dsctl.codecs import by_row
from dsctl.codecs.codec import CODES, KEPT, PEAK, SCALE, VALUES, BadBlock, Codec, Misaligned, moves_to
from dsctl.codecs.plain import FLOATS
from dsctl.core.boxes import Box
from dsctl.look.verdicts import ENCODED, EXACT, OTHER, ROUNDED, Tally
from dsctl.look.verdicts import KEPT as KEPT_SCALES
from dsctl.plan.steps import Region
from dsctl.stores import Store
from dsctl.work.buffers import DTYPES, JobFiles
from dsctl.work.tasks import Context

# The share of a quotient by which it may be off before it is rounded.
SLACK = 2.0**-8
# How much larger or smaller a scale may be than the encoder's: rules differ in rounding powers of two up or down.
FARTHEST = 2.0 * (1 + SLACK)


class Grid(NamedTuple):
    """The codes of a form: bits after the leading one, the exponent of the smallest normal code, the largest code.

    `one` is the byte that holds codes for 1; `clips`: encoders may cut larger quotients off.
    """

    mantissa: int
    least: int
    largest: float
    one: int
    clips: bool = True


GRIDS = {
    "e4m3": Grid(3, -6, 448.0, 0x38, clips=False),
    "e2m1": Grid(1, 0, 6.0, 0x22),
    "int8": Grid(0, 0, 127.0, 0x01),
    "int4 in words of 32 bits": Grid(0, 0, 7.0, 0x99),
    "int8 in words of 32 bits": Grid(0, 0, 127.0, 0x81),
}
# Plain dtypes: bits after the leading one, and the exponent of the smallest normal number.
FLOAT_GRIDS = {"BF16": (7, -126), "F16": (10, -14), "F32": (23, -126)}


class Side:
    """The stored tensors of one checkpoint, in buffers that the next read uses again."""

    def __init__(self, store: Store) -> None:
        self._files = JobFiles(Context(store, ""), store, {})
        self.nbytes = 0

    def stored(self, region: Region, box: Box) -> tuple[Codec, dict[str, torch.Tensor]]:
        """The stored parts of a box of a region, and the codec that reads them.

        If the box cuts through rows of blocks, the codec has a scale for each row.

        Raises:
            Misaligned: the box cuts through the columns of a block. SourceError: they cannot be read.
        """
        codec, height = region.codec, region.codec.block[0]
        inner = box.relative_to(region.box.start).moved(region.at)
        found: dict[str, torch.Tensor] = {}
        aligned = not box.start or height == 1 or _is_aligned(inner, height, region.container[0])
        first = last = 0
        if not aligned:
            first, last = inner.start[0] // height, -(-inner.stop[0] // height)
        for part in region.parts:
            wide = inner
            if not aligned and part.name != CODES:
                stop = min(last * height, region.container[0])
                wide = Box((first * height, *inner.start[1:]), (stop, *inner.stop[1:]))
            place = codec.box(part.name, wide, region.container)
            held = found[part.name] = self._files.read(part.name, part, place)
            self.nbytes += held.numel() * held.itemsize
            if wide is not inner and part.name == SCALE:
                rows = torch.arange(inner.start[0], inner.stop[0]) // height - first
                found[part.name] = bytewise(held)[rows].contiguous().view(held.dtype)
        return (codec if aligned else by_row(codec)), found

    def values(self, regions: Sequence[Region], box: Box, dtype: torch.dtype) -> torch.Tensor:
        """The values of a box, decoded to a float dtype.

        Raises:
            BadBlock: a scale is impossible. SourceError: they cannot be read.
        """
        out = torch.empty(box.shape, dtype=dtype)
        for region in regions:
            both = region.box.intersect(box) if box.shape else box
            if both is None:
                continue
            wide = _widened(region, both)
            codec, stored = self.stored(region, wide)
            if wide == box:
                decoded(codec, stored, out)
                return out
            piece = torch.empty(wide.shape, dtype=dtype)
            decoded(codec, stored, piece)
            place = both.relative_to(box.start)
            out[_slices(place)] = piece[_slices(both.relative_to(wide.start))]
        return out


def decoded(codec: Codec, stored: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
    """Decode; float64, which holds integers, is for plain values only."""
    if codec.plain is not None or out.dtype != torch.float64:
        codec.decode(stored, out)
        return
    narrow = torch.empty(out.shape, dtype=torch.float32)
    codec.decode(stored, narrow)
    out.copy_(narrow)


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))


def _is_aligned(inner: Box, height: int, rows: int) -> bool:
    return inner.start[0] % height == 0 and (inner.stop[0] % height == 0 or inner.stop[0] == rows)


def _widened(region: Region, box: Box) -> Box:
    """A box with columns that cut through no block of the region."""
    width = region.codec.block[1]
    if len(box.shape) < 2 or width == 1:
        return box
    shift = region.at[1] - region.box.start[1]
    first = (box.start[1] + shift) // width * width - shift
    last = min(-(-(box.stop[1] + shift) // width) * width - shift, region.box.stop[1])
    return Box((box.start[0], max(first, region.box.start[1])), (box.stop[0], last))


def _raw(values: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor of any dtype."""
    return values.contiguous().view(-1).view(torch.uint8) if values.numel() else values.new_empty(0, dtype=torch.uint8)


def bytewise(values: torch.Tensor) -> torch.Tensor:
    """A tensor whose rows can be chosen in any dtype: types of eight bits as bytes."""
    return values.view(torch.uint8) if values.itemsize == 1 else values


class Pair(NamedTuple):
    """A stored region of a checkpoint, and the regions of the source that hold the same parameter.

    `native` is the dtype of the source's values if they are plain. `peak` is the largest magnitude that a global scale
    must reach (float32 [1]). `whole`: blocks are read whole, so that they can be encoded.
    """

    ours: Region
    theirs: tuple[Region, ...]
    native: str | None
    peak: torch.Tensor | None = None
    whole: bool = True


def judge(pair: Pair, box: Box, ours: Side, theirs: Side) -> Tally:
    """The verdict on a box of values.

    Raises:
        SourceError: a side cannot be read. BadBlock: a scale of the source is impossible.
    """
    tally, parts = Tally(values=box.size), same_bytes(pair, box, ours, theirs)
    if parts is not None and not any(parts.values()):
        return tally
    tally.parts = parts or {}
    numbers = {region.codec.plain for region in (pair.ours, *pair.theirs)} - {None, *FLOATS}
    dtype = torch.float64 if numbers else torch.float32
    s = theirs.values(pair.theirs, box, dtype)
    try:
        x = ours.values((pair.ours,), box, dtype)
    except BadBlock as error:
        tally.kind, tally.broken, tally.others = OTHER, str(error), box.size
        return tally
    # Without NaN this shows it quickest.
    if torch.equal(x, s):
        tally.kind = EXACT
        return tally
    nearest = s.to(DTYPES[pair.ours.codec.plain]).to(s.dtype) if pair.ours.codec.plain in FLOAT_GRIDS else None
    if nearest is not None and torch.equal(x, nearest):
        tally.kind = ENCODED
        return tally
    same = (x == s) | (x.isnan() & s.isnan())
    if bool(same.all()):
        tally.kind = EXACT
        return tally
    if pair.ours.codec.quantized:
        tally.kind, bad = _quantized(pair, box, ours, (x, s, same))
    elif nearest is not None:
        tally.kind, bad = _plain(pair.ours.codec.plain or "", x, s, same | (x == nearest))
    else:
        tally.kind, bad = OTHER, ~same
    if tally.kind == OTHER:
        _note(tally, box, x, s, bad)
    return tally


def same_bytes(pair: Pair, box: Box, ours: Side, theirs: Side) -> dict[str, int] | None:
    """The number of differing bytes by stored part; None if the sides have different forms or cuts."""
    found: dict[str, int] = {}
    for region in pair.theirs:
        both = region.box.intersect(box) if box.shape else box
        if both is None:
            continue
        if not is_same_form(pair.ours.codec, region.codec):
            return None
        try:
            (_, mine), (_, other) = ours.stored(pair.ours, both), theirs.stored(region, both)
        except Misaligned:
            return None
        if mine.keys() != other.keys():
            return None
        for part, held in mine.items():
            wanted = other[part]
            a, b = _raw(held), _raw(wanted)
            if not torch.equal(a, b):
                found[part] = found.get(part, 0) + (int((a != b).sum()) if len(a) == len(b) else len(a))
    return found


def is_same_form(one: Codec, other: Codec) -> bool:
    """Whether the same bytes mean the same values."""
    return moves_to(one, other) or moves_to(other, one)


def _plain(dtype: str, x: torch.Tensor, s: torch.Tensor, same: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The verdict on plain values, some of which are the `same` or the nearest, and which of them are other."""
    if bool(same.all()):
        return ENCODED, ~same
    # Halfway between two numbers both are nearest.
    bits, least = FLOAT_GRIDS[dtype]
    bad = ~same & ~((x - s).abs() <= _steps(s, bits, least) / 2)
    return (OTHER if bool(bad.any()) else ROUNDED), bad


def _quantized(
    pair: Pair, box: Box, ours: Side, read: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> tuple[str, torch.Tensor]:
    """The verdict on codes and scales, and which values are other; `read` are both sides' values, and which agree."""
    x, s, same = read
    # The buffers of a side hold what was read last.
    codec, stored = ours.stored(pair.ours, box)
    encoder = None
    if pair.whole and codec == pair.ours.codec:
        direct = s if pair.native is None else s.to(DTYPES[pair.native])
        peak = {PEAK: pair.peak} if codec.surveys and pair.peak is not None else {}
        for kind in (ENCODED, KEPT_SCALES):
            # Encoders compute in the dtype of the values, and many come by way of bfloat16.
            for values in (direct, s.to(torch.bfloat16)) if direct.dtype != torch.bfloat16 else (direct,):
                made = _encoded(codec, values, stored, peak, kind == KEPT_SCALES)
                if made is not None and all(torch.equal(_raw(made[part]), _raw(stored[part])) for part in made):
                    return kind, ~same
                encoder = made if encoder is None else encoder
    grid = GRIDS.get(codec.form.codes)
    if grid is None:
        return OTHER, ~same
    factors = _factors(codec, stored, grid, x)
    quotients = s / factors
    bound = _steps(quotients, grid.mantissa, grid.least) / 2 + SLACK * quotients.abs()
    near = (quotients - x / factors).abs() <= bound
    if grid.clips or codec.form.powers:
        cut = quotients.abs() <= FARTHEST * grid.largest
        near |= cut & (quotients.abs() > grid.largest) & ((x / factors).abs() >= grid.largest) & (x * s > 0)
    if encoder is not None:
        wanted = _factors(codec, stored | encoder, grid, x)
        near &= (factors <= wanted * FARTHEST) & (wanted <= factors * FARTHEST)
    bad = ~(same | near)
    return (OTHER if bool(bad.any()) else ROUNDED), bad


def _encoded(
    codec: Codec, values: torch.Tensor, stored: Mapping[str, torch.Tensor], peak: Mapping[str, torch.Tensor], kept: bool
) -> dict[str, torch.Tensor] | None:
    """What the encoder gives for these values, or gives with the stored scales at hand; None if it refuses them."""
    made = {part: torch.empty_like(one) for part, one in stored.items()}
    given = {KEPT + part: one for part, one in stored.items() if part not in (CODES, VALUES)} if kept else {}
    if kept and not codec.keeps_scales:
        return None
    try:
        codec.encode(values.contiguous(), made | given | dict(peak))
    except BadBlock:
        return None
    return made


def _factors(codec: Codec, stored: Mapping[str, torch.Tensor], grid: Grid, like: torch.Tensor) -> torch.Tensor:
    """The scale of every value, as the codec applies it: the decoded values of codes for 1."""
    ones = stored[CODES].clone()
    ones.view(torch.uint8).fill_(grid.one)
    out = torch.empty(like.shape, dtype=torch.float32)
    codec.decode({**stored, CODES: ones}, out)
    return out.to(like.dtype)


def _steps(values: torch.Tensor, mantissa: int, least: int) -> torch.Tensor:
    """The distance of the two numbers of a grid between which a value lies."""
    exponents = torch.frexp(values).exponent - 1
    return torch.exp2((exponents.clamp_min(least) - mantissa).to(values.dtype))


def _note(tally: Tally, box: Box, x: torch.Tensor, s: torch.Tensor, bad: torch.Tensor) -> None:
    """Add the place and the size of other values."""
    tally.others = int(bad.sum())
    flat = bad.reshape(len(bad), -1) if bad.dim() else bad.reshape(1, 1)
    rows, columns = flat.any(1).nonzero(), flat.any(0).nonzero()
    first = box.start[0] if box.start else 0
    across = box.start[1] if len(box.start) == 2 else 0
    tally.rows = int(rows[0]) + first, int(rows[-1]) + first
    tally.columns = int(columns[0]) + across, int(columns[-1]) + across
    apart = (x - s).double()
    tally.largest = float(apart[bad].abs().max())
    tally.signal, tally.noise = float((s[bad].double() ** 2).sum()), float((apart[bad] ** 2).sum())
