"""Recast one form to a different one with the same values, without decoding: move or look up codes, rewrite scales.

Every block is checked. A block whose values the other form cannot hold is refused with its position, or counted if that
is allowed. Pure; torch is imported when called.

E2M1 to E4M3 by blocks is deepseek-ai/DeepSeek-V4-Flash inference/convert.py (`cast_e2m1fn_to_e4m3fn`): a block's scale
is its largest group's / 2^6, so that a code of 6 becomes 384. E4M3 has powers of two down to 2^-9: in a group whose
scale is smaller by 2^14, 0.5 becomes exactly that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import lcm
from typing import TYPE_CHECKING

from dsctl.codecs import group_scales, nibbles
from dsctl.codecs.codec import CODES, INEXACT, SCALE, SWEPT, Codec, Inexact
from dsctl.codecs.grids import chunk, chunks
from dsctl.codecs.scales import powers

if TYPE_CHECKING:
    import torch

Stored = Mapping[str, "torch.Tensor"]
# 2^6 * 6 = 384 is E4M3's largest code of that mantissa; 2^14 below it, a code of 0.5 is the least subnormal.
HEADROOM, DEEPEST = 6, 14
# From this distance on every code becomes zero.
_VANISHED = 24


@dataclass(frozen=True, slots=True)
class Recast:
    """A recast from one codec to a different one; `lossy` allows inexact blocks and counts them."""

    source: Codec
    target: Codec
    lossy: bool = False

    @property
    def block(self) -> tuple[int, int]:
        """The granularity in rows and columns that cuts no block of either codec."""
        one, other = self.source.block, self.target.block
        return lcm(one[0], other[0]), lcm(one[1], other[1])

    def room(self, shape: tuple[int, ...]) -> int:
        """The most bytes that `write` needs beside its arguments."""
        if self.source.form.codes == "e2m1":
            # Two codes a byte: an index of 32 bits, the found codes, and a scale's position for each group.
            return 8 * chunk(shape, (self.target.form.group[0], self.source.form.group[1]))
        if self.source.form.scale == "E8M0":
            # A scale for each group of the target, spread over rows and then over columns.
            return shape[0] * shape[1] // 8
        # If scales are not powers of two: the decoded values.
        besides = self.source.room(shape, 4, False), self.target.room(shape, 4, True)
        return 4 * shape[0] * shape[1] + max(besides)

    @property
    def surveys(self) -> bool:
        """Whether `write` needs the largest scale of the whole parameter and of those that loaders fuse with it."""
        return self.target.surveys

    def write(self, held: Stored, out: Stored, largest: int | None = None) -> dict[str, int]:
        """Fill the parts of a region from the source's parts; the counts go to the audit.

        `largest` is that largest scale (E8M0), if needed.

        Raises:
            Inexact: a block would lose values and that is not allowed; it has the first such block.
        """
        if largest is not None:
            return group_scales.regrouped(self.target, self.lossy, held, out, largest)
        four_bits = self.source.form.codes == "e2m1"
        return _widened(self, held, out) if four_bits else _rescaled(self, held, out)


@lru_cache
def recast(source: Codec, target: Codec, lossy: bool = False) -> Recast | None:
    """The recast from one codec to a different one, or None if it does not exist."""
    held, wanted = source.form, target.form
    if held.powers and held.codes == wanted.codes == "e2m1" and wanted.scale == "E4M3":
        return Recast(source, target, lossy) if not held.group[1] % wanted.group[1] else None
    if not held.powers or wanted.codes != "e4m3":
        return None
    if held.codes == "e2m1":
        fits = wanted.powers and not wanted.group[0] % held.group[0] and not wanted.group[1] % held.group[1]
        return Recast(source, target, lossy) if fits and wanted.group[0] > 1 else None
    finer = not held.group[0] % wanted.group[0] and bool(wanted.group[1]) and not held.group[1] % wanted.group[1]
    rewritten = held.codes == "e4m3" and held != wanted and finer and wanted.scale in ("F32", "E8M0")
    return Recast(source, target, lossy) if rewritten else None


def _widened(way: Recast, held: Stored, out: Stored) -> dict[str, int]:
    """E2M1 with group scales to E4M3 with block scales."""
    import torch

    block, group = way.target.form.group, way.source.form.group[1]
    codes, scales = held[CODES].view(torch.uint8), held[SCALE].view(torch.uint8)
    each, lost = block[1] // group, 0
    for rows, places in chunks(codes.shape[0], 2 * codes.shape[1], (block[0], group)):
        band = scales[rows].to(torch.int32)
        largest = _largest(band, block[0], each)
        written = (largest - HEADROOM).clamp_(min=0)
        below = _spread(written, band.shape, block[0], each).add_(HEADROOM).sub_(band)
        if int(below.amax()) > DEEPEST:
            lost += _losing(way, codes[rows], below, each, places.start)
        pairs = codes[rows].to(torch.int32).view(*band.shape, -1)
        pairs += below.clamp_max_(_VANISHED).mul_(256).unsqueeze_(2)
        table, made = _table(codes.device), out[CODES][rows].view(torch.uint8).view(torch.int16)
        torch.index_select(table, 0, pairs.view(-1), out=made.view(-1))
        _store(out[SCALE][places], written.to(torch.uint8))
    return {SWEPT: out[SCALE].numel()} | ({INEXACT: lost} if lost else {})


def _largest(band: torch.Tensor, rows: int, each: int) -> torch.Tensor:
    """The largest scale of every block of `rows` rows and `each` groups; partial blocks at the edges."""
    import torch

    down, across = -len(band) % rows, -band.shape[1] % each
    whole = torch.nn.functional.pad(band, (0, across, 0, down))
    return whole.view(len(whole) // rows, rows, -1, each).amax((1, 3))


def _spread(blocks: torch.Tensor, shape: torch.Size, rows: int, each: int) -> torch.Tensor:
    """A block's number for each of its groups."""
    wide = blocks.repeat_interleave(rows, 0)[: shape[0]]
    return wide.repeat_interleave(each, 1)[:, : shape[1]]


def _losing(way: Recast, codes: torch.Tensor, below: torch.Tensor, each: int, first: int) -> int:
    """The number of inexact blocks: a group is too far below the largest, and its codes are not all zero.

    Raises:
        Inexact: there is one and it is not allowed.
    """
    import torch

    deep = (below > DEEPEST).nonzero()
    rows, groups = deep[:, 0], deep[:, 1]
    held = codes.view(*below.shape, -1)[rows, groups].to(torch.int32)
    depth = below[rows, groups].clamp_max(_VANISHED).view(-1, 1)
    lossy = torch.index_select(_losses(codes.device), 0, (held + 256 * depth).view(-1)).view(held.shape).any(1)
    block = way.target.form.group[0]
    places = torch.stack((rows[lossy] // block, groups[lossy] // each), 1)
    places = torch.unique(places, dim=0)
    if len(places) and not way.lossy:
        row, column = places[0].tolist()
        inside = below[row * block : (row + 1) * block, column * each : (column + 1) * each]
        spread = int(inside.amax() - inside.amin())
        what = f"scales differ by 2^{spread}: {way.target.name} holds codes of scales that differ by 2^{DEEPEST}"
        raise Inexact(what, row + first, column)
    return len(places)


@lru_cache
def _table(device: torch.device) -> torch.Tensor:
    """The two E4M3 codes (int16) by a group's distance below the scale of 2^6 and by a byte of two codes."""
    import torch

    codes = _wide(device)
    return torch.stack((codes.repeat(1, 16), codes.repeat_interleave(16, 1)), 2).view(torch.int16).view(-1)


def _wide(device: torch.device) -> torch.Tensor:
    """E4M3 codes (uint8 [depth, 16]) of E2M1 codes, rounded to nearest even."""
    import torch

    values = torch.tensor(nibbles.E2M1, device=device)
    factors = torch.exp2(HEADROOM - torch.arange(_VANISHED + 1, dtype=torch.float32, device=device))
    return (values * factors[:, None]).to(torch.float8_e4m3fn).view(torch.uint8)


@lru_cache
def _losses(device: torch.device) -> torch.Tensor:
    """By the same: whether one of the two codes changed its value (bool)."""
    import torch

    values = torch.tensor(nibbles.E2M1, device=device)
    factors = torch.exp2(HEADROOM - torch.arange(_VANISHED + 1, dtype=torch.float32, device=device))
    lost = _wide(device).view(torch.float8_e4m3fn).float() != values * factors[:, None]
    # At this distance every code except zero is lost.
    lost[_VANISHED] = values != 0
    return (lost.repeat(1, 16) | lost.repeat_interleave(16, 1)).view(-1)


def _rescaled(way: Recast, held: Stored, out: Stored) -> dict[str, int]:
    """Unchanged E4M3 codes with the same powers of two in a different dtype or for parts of a block.

    Blocks whose scales are not powers of two, although their config says so, are decoded and quantized again.
    """
    import torch

    exponents = exact_exponents(held[SCALE])
    if exponents is None:
        return _recoded(way, held, out)
    out[CODES].view(torch.uint8).copy_(held[CODES].view(torch.uint8))
    block, wanted = way.source.form.group, way.target.form.group
    wide = exponents.repeat_interleave(block[0] // wanted[0], 0)[: out[SCALE].shape[0]]
    _store(out[SCALE], wide.repeat_interleave(block[1] // wanted[1], 1)[:, : out[SCALE].shape[1]])
    return {SWEPT: exponents.numel()}


def exact_exponents(scales: torch.Tensor) -> torch.Tensor | None:
    """E8M0 codes of scales, or None if one of them is not a power of two in the range of E8M0."""
    import torch

    if scales.dtype == torch.float8_e8m0fnu:
        return scales.view(torch.uint8)
    parts = torch.frexp(scales.double())
    if not bool(((parts.mantissa == 0.5) & (parts.exponent > -127) & (parts.exponent <= 128)).all()):
        return None
    return (parts.exponent + 126).to(torch.uint8)


def _recoded(way: Recast, held: Stored, out: Stored) -> dict[str, int]:
    import torch

    values = torch.empty(held[CODES].shape, dtype=torch.float32)
    way.source.decode(held, values)
    return way.target.encode(values, out) | {"blocks_requantized": held[SCALE].numel()}


def _store(out: torch.Tensor, exponents: torch.Tensor) -> None:
    """Write E8M0 codes (uint8) in the target's scale dtype."""
    import torch

    if out.dtype == torch.float32:
        out.copy_(powers(exponents.contiguous()))
    else:
        out.view(torch.uint8).copy_(exponents)
