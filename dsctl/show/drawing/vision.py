"""V4's parts that read images, in a block diagram.

deepseek-ai/DeepSeek-V4-Flash-Vision-Exp, inference/model.py and tensor names.
"""

from __future__ import annotations

from collections.abc import Iterable

from dsctl.show.drawing.names import named
from dsctl.show.drawing.pieces import GAP, LEFT, MIDDLE, RIGHT, WIDE, Drawn, lines, through
from dsctl.show.drawing.sheet import Line, needed

_TOWER, _BLOCK = "vision.", "vision.blocks.{layer}."
IMAGE = ("image_start", "image_end", "image_newline", "image_pad")
PATCHES = named(f"{_TOWER}patch_embed.proj.", "weight bias")
SEEING = (
    named(_BLOCK, "norm1.weight"), named(f"{_BLOCK}attn.wqkv.", "weight bias"),
    named(f"{_BLOCK}attn.wo.", "weight bias"), named(_BLOCK, "norm2.weight"), named(f"{_BLOCK}mlp.", "w1.weight"),
    named(f"{_BLOCK}mlp.", "w2.weight"),
)  # fmt: skip
ALIGNED = (
    named(_TOWER, "norm.weight"), named("aligner.w1.", "weight bias"), named("aligner.w2.", "weight bias"),
)  # fmt: skip
ALL = (*IMAGE, *PATCHES, *(name for names in (*SEEING, *ALIGNED) for name in names))


def vision(drawn: Drawn, y: float) -> float:
    """Patches of an image through their own blocks and a projection to the width of the model, and the marks around an
    image."""
    y = _boxes(drawn, (PATCHES,), y)
    blocks, width = _numbers(drawn)
    if drawn.has(name for names in SEEING for name in names):
        drawn.sheet.down(MIDDLE, y, y + GAP, width)
        frame = drawn.sheet.frame(LEFT + 20, y + GAP, RIGHT - LEFT - 40, [Line(f"{blocks} blocks", "title")])
        y = _boxes(drawn, SEEING, y + GAP + 26) + 10
        drawn.sheet.close(frame, y)
        drawn.sheet.down(MIDDLE, y, y + GAP, width)
        y += GAP
    y = _boxes(drawn, ALIGNED, y)
    marks = drawn.take(*IMAGE)
    if marks:
        height = drawn.row("marks", needed(lines(marks, WIDE, "in place of text tokens")))
        drawn.box(marks, MIDDLE - WIDE / 2, y + 12, WIDE, height, "in place of text tokens")
        y += 12 + height
    return y


def _numbers(drawn: Drawn) -> tuple[str, str]:
    """The number of blocks and their width; V4.1 has them in `vision_config`."""
    inner = drawn.config.get("vision_config")
    if not isinstance(inner, dict):
        return drawn.number("vision_n_layers"), drawn.number("vision_dim")
    values = (inner.get(name) for name in ("num_hidden_layers", "hidden_size"))
    blocks, width = (f"{value:,}" if type(value) is int else "" for value in values)
    return blocks, width


def _boxes(drawn: Drawn, groups: Iterable[tuple[str, ...]], y: float) -> float:
    """A box for each existing group of parameters, below each other."""
    found = [pieces for names in groups if (pieces := drawn.take(*names))]
    for number, pieces in enumerate(found):
        if number:
            drawn.sheet.down(MIDDLE, y, y + GAP)
            y += GAP
        height = drawn.row(pieces[0].key, needed(lines(pieces, WIDE, through(pieces[0]))))
        drawn.box(pieces, MIDDLE - WIDE / 2, y, WIDE, height, through(pieces[0]))
        y += height
    return y
