"""Encode with the scales of an earlier encoding, where that gives a group's values bit for bit. Pure.

A decoded value is its code times the scale, rounded once. That error is far below half a step of the codes, so dividing
by the same scale finds the code again. Decoding the codes so found shows whether a group is still what it was; any
other group is encoded as if no scale were kept. Torch is imported when called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from typing import TYPE_CHECKING

from dsctl.codecs.codec import CODES, KEPT, SCALE, SCALES, BadBlock, Codec
from dsctl.codecs.grids import GroupShape, chunk, chunks, grid, pieces

if TYPE_CHECKING:
    import torch

    Stored = Mapping[str, torch.Tensor]
    # Codes of some rows of values, by their scales.
    Quantize = Callable[[torch.Tensor, Stored, torch.Tensor], None]
    # The usual encoding of a run of rows of values, and of those of the grid.
    Write = Callable[[slice, slice], None]

# Groups whose kept scale is zero: their values do not show their codes.
ZERO = "groups_without_scale"


def encode(
    codec: Codec, group: GroupShape, values: torch.Tensor, stored: Stored, quantize: Quantize, write: Write
) -> dict[str, int]:
    """Fill codes and scales of a matrix; `stored` holds `KEPT + SCALE`. The counts go to the audit.

    Raises:
        BadBlock: a value is NaN or infinite, or a kept scale is impossible.
    """
    import torch

    codes, scales, kept = stored[CODES], stored[SCALE], stored[KEPT + SCALE].view(stored[SCALE].dtype)
    restored = without = 0
    for rows, places in chunks(values.shape[0], values.shape[1], group):
        known = {part: stored[KEPT + part] for part in SCALES if KEPT + part in stored} | {SCALE: kept[places]}
        same = torch.ones_like(kept[places], dtype=torch.bool)
        try:
            for piece in pieces(rows, values.shape[1]):
                same &= _restored(codec, group, values[piece], known | {CODES: codes[piece]}, quantize)
        except BadBlock as error:
            raise BadBlock(error.what, error.row + places.start, error.column) from None
        if not bool(same.all()):
            found = _bytes(codes[rows]).clone()
            write(rows, places)
            _mix(same, group, _bytes(codes[rows]), found)
        _bytes(scales[places]).copy_(torch.where(same, _bytes(known[SCALE]), _bytes(scales[places])))
        restored += int(same.sum())
        if codec.surveys:
            without += int((same & (known[SCALE].float() == 0)).sum())
    counts = {"groups_restored": restored, "groups_computed": kept.numel() - restored, ZERO: without}
    return {name: count for name, count in counts.items() if count}


def room(codec: Codec, shape: tuple[int, ...], width: int) -> int:
    """The most bytes that restoring needs beside `codec.room` for encoding; `width` is the size of a value."""
    group = codec.form.group
    # The codes of a run of rows a second time, and a mask of them; decoded values and a mask of different ones.
    codes = max(chunk(shape, group), min(shape[0], group[0]) * shape[1])
    return 4 * codes + (width + 2) * chunk(shape, group) + codec.room(shape, width, False)


def _bytes(one: torch.Tensor) -> torch.Tensor:
    """Codes or scales of eight bits as integers, which torch can choose from."""
    import torch

    return one.view(torch.uint8) if one.element_size() == 1 else one


def _restored(codec: Codec, group: GroupShape, values: torch.Tensor, known: Stored, quantize: Quantize) -> torch.Tensor:
    """Write codes for the kept scales; mask of the groups (bool [grid]) whose values they are, bit for bit."""
    import torch

    quantize(values, known, known[CODES])
    again = torch.empty_like(values)
    codec.decode(known, again)
    words = again.view(torch.int32 if values.dtype == torch.float32 else torch.int16)
    other = words != values.view(words.dtype)
    # Infinity does not show its code. Magnitudes have the same order as their bits, with infinity and NaN on top.
    words.bitwise_and_(0x7FFFFFFF if values.dtype == torch.float32 else 0x7FFF)
    if not float(words.amax().view(values.dtype)) < inf:
        other |= again.isfinite().logical_not_()
    return _any(other, group).logical_not_()


def _any(mask: torch.Tensor, group: GroupShape) -> torch.Tensor:
    """Whether a group has a value in a mask: bool [grid]."""
    import torch

    shape = grid(tuple(mask.shape), group)
    if group[0] == 1:
        width = mask.numel() // shape[0] // shape[1]
        # Eight at a time: negative numbers do not occur.
        wide = mask.view(torch.int64) if not width % 8 else mask.view(torch.uint8)
        return wide.view(*shape, -1).amax(2) != 0
    down, across = -mask.shape[0] % group[0], -mask.shape[1] % group[1]
    whole = torch.nn.functional.pad(mask, (0, across, 0, down)) if down or across else mask
    return whole.view(shape[0], group[0], shape[1], group[1]).any(3).any(1)


def _mix(same: torch.Tensor, group: GroupShape, codes: torch.Tensor, found: torch.Tensor) -> None:
    """Give restored groups the codes found for them, after a run of rows was encoded as usual."""
    import torch

    if group[0] == 1:
        # Several codes may be one word: a group has whole words.
        shape, mask = (*same.shape, -1), same.unsqueeze(2)
    else:
        shape = tuple(codes.shape)
        rows = same.repeat_interleave(group[0], 0)[: len(codes)]
        mask = rows.repeat_interleave(group[1], 1)[:, : codes.shape[1]]
    torch.where(mask, found.view(shape), codes.view(shape), out=codes.view(shape))
