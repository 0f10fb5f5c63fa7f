"""vLLM's sharded state: one file per rank with its modules' parameters. docs/layouts.md says which versions load it.

vllm-project/vllm, model_executor/model_loader/sharded_state_loader.py (file names, no metadata; tensors are copied into
the state dict of the model before its weights are processed), model_executor/models/deepseek_v2.py (joined modules) and
model_executor/layers/fused_moe (`w13_weight` [experts, 2 * inner, hidden], `w2_weight` [experts, hidden, inner]).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dsctl.core.errors import PlanError, UsageError
from dsctl.core.params import Family, Param
from dsctl.layouts.fused import fused_names, joined_slot
from dsctl.layouts.joins import Join, joined
from dsctl.layouts.layout import Slot, native
from dsctl.layouts.ranks import Shares

_EXPERT = "{expert}."


def _names(families: Iterable[Family]) -> dict[str, str]:
    names = fused_names(families)
    for family in families:
        head, mark, _ = family.template.partition(_EXPERT)
        if family.experts and mark:
            names[family.template] = head + ("w13_weight" if family.fused else "w2_weight")
    return names


@dataclass(frozen=True, slots=True)
class Vllm:
    """One name space and one file per rank."""

    shares: Shares | None = None
    joins: Mapping[tuple[str, bool], Join] = field(default_factory=dict)
    name: ClassVar[str] = "vllm"
    metadata: ClassVar[Mapping[str, str]] = {}
    published: ClassVar[bool] = False
    respelled: ClassVar[Mapping[str, str]] = {}
    spelled: ClassVar[Mapping[str, str]] = {}
    dialects: ClassVar[tuple[str, ...]] = ()
    foldered: ClassVar[bool] = False

    def arranged(self, families: Iterable[Family], shares: Shares | None, alone: str = "") -> Vllm:
        families = tuple(family for family in families if not family.mtp)
        if shares is None:
            raise UsageError("layout vllm needs ranks", hint="dsctl shard SRC DST --layout vllm --tp N")
        if native(families):
            raise PlanError(
                "layout vllm: only the modules of vLLM's deepseek_v2.py are supported, not DeepSeek V4's",
                hint="let vLLM read the published layout, or choose --layout published or deepseek",
            )
        if any(family.role == "vision" for family in families):
            raise PlanError(
                "layout vllm: vLLM's own names for the parts that read images are not supported",
                hint="let vLLM read the published layout, or choose --layout published",
            )
        ranks = shares.ranks
        if ranks.ep not in (1, ranks.tp) or ranks.pp != 1 or shares.placed:
            hint = "give --tp N alone, or --tp N --ep N, as vLLM's --enable-expert-parallel"
            raise PlanError(f"layout vllm: TP {ranks.tp}, EP {ranks.ep}, PP {ranks.pp} is not supported", hint=hint)
        if any(family.role == "indexer" for family in families):
            raise PlanError(
                "layout vllm: only some versions of vLLM join the indexer's wk, decoded, with weights_proj",
                hint="let vLLM read the published layout, or choose --layout published",
            )
        return Vllm(shares, joined(families, _names(families)))

    def slots(self, param: Param) -> tuple[Slot, ...]:
        if self.shares is None or param.family.mtp or param.family.derived:
            return ()
        join = self.joins.get((param.template, False), Join(param.template))
        return tuple(
            [joined_slot(join, param, self.shares, file_of(rank), rank, box) for rank, box in self.shares.boxes(param)]
        )

    def decoded(self, family: Family) -> str:
        return ""

    def drops_drafter(self, families: Iterable[Family]) -> bool:
        return True

    def shard_of(self, file: str) -> str:
        return file

    def file(self, shard: str, home: str) -> str:
        return shard

    def home(self, file: str) -> str | None:
        return None

    def texts(self, config: Mapping[str, Any]) -> dict[str, bytes]:
        return {}


def file_of(rank: int) -> str:
    """The file name of a rank."""
    return f"model-rank-{rank}-part-0.safetensors"
