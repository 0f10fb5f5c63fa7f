"""The parts of DeepSeek V4 releases that read images: a tower of layers, and an aligner to the language model's width.

Names and shapes: deepseek-ai/DeepSeek-V4-Flash-Vision-Exp, config.json and published tensors; the tower and the aligner
of DeepSeek-V4.1-Flash have the same names and shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dsctl.core.params import Family

if TYPE_CHECKING:
    from dsctl.models.deepseek_v4_dimensions import Dimensions


def vision_tower(d: Dimensions) -> Iterator[Family]:
    """The parts of V4-Flash-Vision-Exp that read images; they are copied unchanged."""
    yield from (Family(f"image_{name}", (d.hidden_size,), "vision") for name in ("start", "end", "newline", "pad"))
    yield from tower(d.vision_n_layers, d.vision_dim, d.vision_inter_dim, d.vision_patch_size)
    yield from aligner(d.vision_dim * d.vision_downsample_ratio**2, d.hidden_size)


def _both(name: str, rows: int, columns: int) -> Iterator[Family]:
    yield Family(f"{name}.weight", (rows, columns), "vision")
    yield Family(f"{name}.bias", (rows,), "vision")


def tower(layers: int, size: int, inner: int, patch: int) -> Iterator[Family]:
    """Layers of width `size` over square patches of `patch` pixels in three colours; `inner` is the MLP's width."""
    yield from _both("vision.patch_embed.proj", size, 3 * patch**2)
    for block in range(layers):
        at = f"vision.blocks.{block}."
        yield from (Family(f"{at}norm{number}.weight", (size,), "vision") for number in (1, 2))
        yield from _both(f"{at}attn.wqkv", 3 * size, size)
        yield from _both(f"{at}attn.wo", size, size)
        yield Family(f"{at}mlp.w1.weight", (2 * inner, size), "vision")
        yield Family(f"{at}mlp.w2.weight", (size, inner), "vision")
    yield Family("vision.norm.weight", (size,), "vision")


def aligner(columns: int, hidden: int) -> Iterator[Family]:
    """Two matrices from the joined vectors of neighbouring patches to the language model's width."""
    yield from _both("aligner.w1", hidden, columns)
    yield from _both("aligner.w2", hidden, hidden)
