"""Published names with the matrices joined that loaders join (`gate_up_proj`, `fused_qkv_a_proj`), or experts stacked.

vllm-project/vllm, model_executor/models/deepseek_v2.py (`stacked_params_mapping`): the rows of gate above those of up,
those of q_a above those of kv_a, on every rank. huggingface/transformers 5, models/deepseek_v3 (`gate_up_proj`
[experts, 2 * inner, hidden] and `down_proj` [experts, hidden, inner]).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from dsctl.core.boxes import Box
from dsctl.core.errors import PlanError
from dsctl.core.params import Family, Param
from dsctl.layouts.folders import RankFolders
from dsctl.layouts.joins import Join, joined, stack_of
from dsctl.layouts.layout import Slot, native, refuse_own_experts
from dsctl.layouts.ranks import Shares

_EXPERT = "{expert}."


def fused_names(families: Iterable[Family]) -> dict[str, str]:
    """The weight of every joined module, by the templates of its members."""
    return {family.template: f"{family.fused}.weight" for family in families if family.fused}


def stacked_names(families: Iterable[Family]) -> dict[str, str]:
    """The tensor of all of a layer's experts by the templates of their matrices: gate and up joined, and down."""
    names = {}
    for family in families:
        head, mark, tail = (family.fused or family.template.removesuffix(".weight")).partition(_EXPERT)
        if family.experts and mark:
            names[family.template] = head + tail
    return names


@dataclass(frozen=True, slots=True)
class Fused(RankFolders):
    """The published layout with joined tensors, in one name space or a folder per rank; `stacked`: experts stacked."""

    name: str = "fused"
    stacked: bool = False
    joins: Mapping[tuple[str, bool], Join] = field(default_factory=dict)
    published: ClassVar[bool] = False
    respelled: ClassVar[Mapping[str, str]] = {}

    def arranged(self, families: Iterable[Family], shares: Shares | None, alone: str = "") -> Fused:
        families = tuple(families)
        if native(families):
            raise PlanError(
                f"layout {self.name}: no loader reads joined tensors under DeepSeek V4's own names",
                hint="choose --layout published, transformers or deepseek",
            )
        refuse_own_experts(self.name, families)
        names = stacked_names(families) if self.stacked else fused_names(families)
        return replace(self, shares=shares, alone=alone, joins=joined(families, names))

    def slots(self, param: Param) -> tuple[Slot, ...]:
        join = self.joins.get((param.template, param.family.mtp), Join(param.template))
        return tuple([joined_slot(join, param, self.shares, *one) for one in self.held(param)])


def joined_slot(join: Join, param: Param, shares: Shares | None, shard: str, rank: int, box: Box) -> Slot:
    """A rank's share of a parameter in its joined tensor."""
    parts = shares.ranks.cut(param.family) if shares else 1
    container, at = join.container(box, parts) if box.start else ((), ())
    tensor = join.tensor(param)
    if not join.stacked or param.layer is None or param.expert is None:
        return Slot(shard, tensor, box, container, at)
    stack = stack_of(shares, rank, param.layer, param.expert, param.family.experts)
    return Slot(shard, tensor, box, container, at, stack)
