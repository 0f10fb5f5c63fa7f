"""Stored formats, ratios and runs of numbers in a few words."""

from __future__ import annotations

from collections.abc import Iterable

from dsctl.checkpoint.groups import Group
from dsctl.codecs.codec import SCALE, Codec
from dsctl.core.params import Traits


def form(codec: Codec) -> str:
    """A stored format in a few words: BF16, FP8 ue8m0, FP8 E8M0. The usual blocks of 128x128 and F32 scales are left
    out."""
    if not codec.scale_fmt:
        return codec.name if codec.quantized else codec.name.upper()
    words = ["FP8"]
    if codec.block != (128, 128):
        words.append(f"{codec.block[0]}x{codec.block[1]}")
    dtype = codec.specs(codec.block)[SCALE].dtype
    if dtype != "F32":
        # E8M0 holds only powers of two.
        words.append(dtype.removeprefix("F8_"))
    elif codec.scale_fmt == "ue8m0":
        words.append("ue8m0")
    return " ".join(words)


def forms(groups: Iterable[Group]) -> str:
    """The stored formats of matrices that releases quantize, without those of tables."""
    stored = (group for group in groups if group.family.quantizable and not group.family.table)
    return ", ".join(dict.fromkeys(form(group.codec) for group in stored))


def drafting(traits: Traits) -> str:
    """The part that drafts further tokens, in words."""
    return "the block drafter" if traits.drafter == "dspark" else "multi-token prediction"


def ratio(number: float) -> str:
    """A factor: two digits after the point below 2, one above."""
    return f"{number:.2f}" if number < 2 else f"{number:,.1f}"


def times(before: float, after: float) -> str:
    """13.3 times less; 1.25 times more; the same."""
    if before == after:
        return "the same"
    return f"{ratio(max(before, after) / min(before, after))} times {'less' if before > after else 'more'}"


def short(template: str) -> str:
    """A template without the prefix of main layers and without `.weight`."""
    return template.removeprefix("model.").removeprefix("layers.{layer}.").removesuffix(".weight")


def ranges(numbers: Iterable[int]) -> str:
    """Numbers with runs folded, also runs with a step: 0-61; 0-2, 6-78 by 4; 1, 5."""
    left, said = sorted(numbers), []
    while left:
        run = 1
        while run < len(left) and left[run] - left[0] == run * (left[1] - left[0]):
            run += 1
        step = left[1] - left[0] if run > 1 else 1
        if run < 3 and step > 1:
            run, step = 1, 1
        first, last = left[0], left[run - 1]
        said.append(f"{first}" if run == 1 else f"{first}-{last}" + (f" by {step}" if step > 1 else ""))
        left = left[run:]
    return ", ".join(said)
