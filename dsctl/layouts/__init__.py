"""The table of layouts, and the defaults of each."""

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
# The published layout's older name, which dsctl's own files and older scripts may use.
RECORDED = "hf"
# Layouts that are always sharded over ranks.
SHARDED = ("deepseek", "vllm")
# Layouts whose writer stores float32 where releases store BF16, and the layout of a folder with two kinds of names.
WIDENED = (NAME, MIXED)
# Warnings about quantized experts, by layout.
SAID_OF_EXPERTS = {NAME: UNSCALED}


def layout_name(recorded: str) -> str:
    """The current name of a layout that may be given by its older name."""
    return "published" if recorded == RECORDED else recorded


def recorded_name(name: str) -> str:
    """The layout's name in files, which older versions of dsctl can read."""
    return RECORDED if name == "published" else name


def usual_ep(name: str, tp: int) -> int:
    """The default number of expert-parallel parts: in DeepSeek's layout the number of ranks."""
    return tp if name == "deepseek" else 1


def follows(name: str, ranks: Ranks) -> bool:
    """Whether a layout always has as many expert-parallel parts as tensor-parallel ranks."""
    return name == "deepseek" or (name == "vllm" and ranks.ep == ranks.tp > 1)
