"""The table of layouts, and what is usual for each."""

from __future__ import annotations

from dsctl.layouts.deepseek import Deepseek
from dsctl.layouts.fused import Fused
from dsctl.layouts.hf import Hf
from dsctl.layouts.layout import Layout
from dsctl.layouts.ranks import Ranks
from dsctl.layouts.vllm import Vllm

LAYOUTS: dict[str, Layout] = {
    "hf": Hf(),
    "deepseek": Deepseek(),
    "fused": Fused(),
    "stacked": Fused("stacked", True),
    "vllm": Vllm(),
}
# Layouts that leave the MTP layer out unless it is asked for; the last has no place for it.
WITHOUT_MTP = ("deepseek", "vllm")


def usual_ep(name: str, tp: int) -> int:
    """The expert-parallel parts of a layout where none are asked for: DeepSeek's has as many as ranks."""
    return tp if name == "deepseek" else 1


def follows(name: str, ranks: Ranks) -> bool:
    """Whether a layout so spread has as many expert-parallel parts as tensor-parallel ranks, whatever their number."""
    return name == "deepseek" or (name == "vllm" and ranks.ep == ranks.tp > 1)
