"""The table of layouts, and what is usual for each."""

from __future__ import annotations

from dsctl.layouts.deepseek import Deepseek
from dsctl.layouts.fused import Fused
from dsctl.layouts.layout import Layout
from dsctl.layouts.published import PublishedLayout
from dsctl.layouts.ranks import Ranks
from dsctl.layouts.transformers import MIXED, NAME, UNSCALED, Transformers
from dsctl.layouts.vllm import Vllm

LAYOUTS: dict[str, Layout] = {
    "published": PublishedLayout(),
    "deepseek": Deepseek(),
    "fused": Fused(),
    "stacked": Fused(name="stacked", stacked=True),
    "vllm": Vllm(),
    NAME: Transformers(),
}
# What dsctl's own files, and people who knew it before, call the published layout.
RECORDED = "hf"
# Layouts whose writer keeps in float32 what releases have in BF16, and that of a folder with names of two kinds.
WIDENED = (NAME, MIXED)
# What is to be said of quantized experts in a layout.
SAID_OF_EXPERTS = {NAME: UNSCALED}


def layout_name(recorded: str) -> str:
    """The name of a layout that a file or a person may call as it was called before."""
    return "published" if recorded == RECORDED else recorded


def recorded_name(name: str) -> str:
    """What a layout is called in files, which older versions read too."""
    return RECORDED if name == "published" else name


def usual_ep(name: str, tp: int) -> int:
    """The expert-parallel parts of a layout where none are asked for: DeepSeek's has as many as ranks."""
    return tp if name == "deepseek" else 1


def follows(name: str, ranks: Ranks) -> bool:
    """Whether a layout so spread has as many expert-parallel parts as tensor-parallel ranks, whatever their number."""
    return name == "deepseek" or (name == "vllm" and ranks.ep == ranks.tp > 1)
