"""The names under which an adapter may speak of a model's parameters: releases', transformers', and joined modules'.

All names are generated from the model's families. PEFT names modules; parameters of stacked experts belong to the
module `experts` (huggingface/transformers 5, models/deepseek_v3 and models/deepseek_v4: `gate_up_proj`, `down_proj`).
Pure, no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from dsctl.core.params import Family, Param
from dsctl.layouts.fused import fused_names, stacked_names
from dsctl.layouts.joins import Join, joined
from dsctl.layouts.transformers import SPELLINGS

T = TypeVar("T")
_WEIGHT = ".weight"
# SGLang's name for a joined module.
_ALSO = {"fused_qkv_a_proj": "fused_qkv_a_proj_with_mqa"}


class Place(NamedTuple):
    """A parameter within a joined matrix of `rows` rows: its first row there."""

    param: Param
    row: int
    rows: int


@dataclass
class Names:
    """What each name stands for.

    `modules`: the parameters of a linear module or an embedding, joined by rows. `tensors`: a parameter by its own
    name. `stacks`: by a module of experts and the name of its tensor, the parameters of each expert.
    """

    modules: dict[str, list[Place]] = field(default_factory=dict)
    tensors: dict[str, Param] = field(default_factory=dict)
    stacks: dict[str, dict[str, dict[int, list[Place]]]] = field(default_factory=dict)


def names_of(families: Sequence[Family]) -> Names:
    """The names of all parameters of these families, in every spelling."""
    found = Names()
    for family in families:
        templates = _templates(family)
        for param in family.params():
            for template in templates:
                name = family.named(template, param.layer, param.expert)
                found.tensors.setdefault(name, param)
                if len(param.shape) == 2 and name.endswith(_WEIGHT):
                    place = Place(param, 0, param.shape[0])
                    found.modules.setdefault(name.removesuffix(_WEIGHT), [place])
    _add_joined(found, families)
    _add_stacks(found, families)
    _add_headless(found)
    return found


def _templates(family: Family) -> tuple[str, ...]:
    """Every template of a family's own tensors, without those of stacked experts."""
    spelled = SPELLINGS.get(family.template, ())
    return tuple(dict.fromkeys((family.template, *(one for one in spelled if "{expert}" in one or not family.experts))))


def _add_joined(found: Names, families: Sequence[Family]) -> None:
    """Add modules that loaders make of several matrices: rows of one below those of the other."""
    for family, join in _joins(families, fused_names(families)):
        for param in family.params():
            name = join.tensor(param).removesuffix(_WEIGHT)
            head, dot, last = name.rpartition(".")
            for one in (name, *((head + dot + _ALSO[last],) if last in _ALSO else ())):
                found.modules.setdefault(one, []).append(_place(param, join))


def _add_stacks(found: Names, families: Sequence[Family]) -> None:
    """Add the tensors in which all experts of a layer are stacked."""
    for names in _spelled_stacks(families):
        for family, join in _joins(families, names):
            for param in family.params():
                module, _, tensor = join.tensor(param).rpartition(".")
                stack = found.stacks.setdefault(module, {}).setdefault(tensor, {})
                stack.setdefault(param.expert or 0, []).append(_place(param, join))


def _spelled_stacks(families: Sequence[Family]) -> Iterator[dict[str, str]]:
    """For each spelling of stacked tensors, their templates by those of their members."""
    spelled = {
        family.template: [one for one in SPELLINGS[family.template] if "{expert}" not in one]
        for family in families
        if family.experts and family.template in SPELLINGS
    }
    if not spelled:
        yield stacked_names(families)
    for number in range(max(map(len, spelled.values()), default=0)):
        yield {template: names[number] for template, names in spelled.items() if number < len(names)}


def _joins(families: Sequence[Family], names: dict[str, str]) -> Iterator[tuple[Family, Join]]:
    known = joined(families, names)
    return ((family, join) for family in families if (join := known.get((family.template, family.mtp))))


def _place(param: Param, join: Join) -> Place:
    above, below = (sum(family.shape[0] for family in side) for side in (join.before, join.after))
    return Place(param, above, above + param.shape[0] + below)


def _add_headless(found: Names) -> None:
    """Add names without `model.` in front, as adapters of a model without its head have them."""
    _shorten(found.modules)
    _shorten(found.tensors)
    _shorten(found.stacks)


def _shorten(table: dict[str, T]) -> None:
    for name, held in list(table.items()):
        table.setdefault(name.removeprefix("model."), held)
