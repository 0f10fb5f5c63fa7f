"""The parts of DeepSeek-V4-Flash-Vision-Exp that read images.

Names and shapes: deepseek-ai/DeepSeek-V4-Flash-Vision-Exp, config.json and published tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dsctl.core.params import Family

if TYPE_CHECKING:
    from dsctl.models.deepseek_v4_dimensions import Dimensions


def vision_tower(d: Dimensions) -> Iterator[Family]:
    """The parts that read images; they are copied unchanged."""
    size, inner, hidden = d.vision_dim, d.vision_inter_dim, d.hidden_size
    blocks = tuple(range(d.vision_n_layers))

    def both(name: str, rows: int, columns: int) -> Iterator[Family]:
        yield Family(f"{name}.weight", (rows, columns), "vision")
        yield Family(f"{name}.bias", (rows,), "vision")

    yield from (Family(f"image_{name}", (hidden,), "vision") for name in ("start", "end", "newline", "pad"))
    yield from both("vision.patch_embed.proj", size, 3 * d.vision_patch_size**2)
    for block in blocks:
        at = f"vision.blocks.{block}."
        yield from (Family(f"{at}norm{number}.weight", (size,), "vision") for number in (1, 2))
        yield from both(f"{at}attn.wqkv", 3 * size, size)
        yield from both(f"{at}attn.wo", size, size)
        yield Family(f"{at}mlp.w1.weight", (2 * inner, size), "vision")
        yield Family(f"{at}mlp.w2.weight", (size, inner), "vision")
    yield Family("vision.norm.weight", (size,), "vision")
    yield from both("aligner.w1", hidden, size * d.vision_downsample_ratio**2)
    yield from both("aligner.w2", hidden, hidden)
