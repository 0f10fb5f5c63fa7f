"""The names under which an adapter may speak of a model's parameters: releases', transformers', and joined modules'.

Names are generated from the model's families, as far as somebody asks for them. PEFT names modules; parameters of
stacked experts belong to the module `experts` (huggingface/transformers 5, models/deepseek_v3 and models/deepseek_v4:
`gate_up_proj`, `down_proj`). Pure, no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dsctl.core.params import Family, Param
from dsctl.layouts.fused import fused_names, stacked_names
from dsctl.layouts.joins import Join, joined
from dsctl.layouts.transformers import SPELLINGS

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
    """What the names that were asked for stand for.

    `modules`: the parameters of a linear module or an embedding, joined by rows. `tensors`: a parameter by its own
    name. `stacks`: by a module of experts and the name of its tensor, the parameters of each expert.
    """

    modules: dict[str, list[Place]] = field(default_factory=dict)
    tensors: dict[str, Param] = field(default_factory=dict)
    stacks: dict[str, dict[str, dict[int, list[Place]]]] = field(default_factory=dict)


class _Asked:
    """Names that somebody asks for, and what they begin with up to a dot: a model has a hundred thousand names."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self.begins = {name[: at + 1] for name in self.names for at, sign in enumerate(name) if sign == "."}

    def of(self, family: Family, template: str, without: str = "") -> Iterator[tuple[str, Param]]:
        """The parameters of a family whose names by this template, `without` an ending, are asked for."""
        template = template.removesuffix(without)
        head, mark, tail = template.partition("{layer}")
        before, several, after = tail.partition("{expert}")
        for layer in family.layers if mark else (None,):
            begin = head if layer is None else f"{head}{layer - family.first_layer}{before}"
            if not several:
                if begin in self.names:
                    yield begin, _param(family, layer, None)
            elif begin in self.begins:
                names = ((f"{begin}{expert}{after}", expert) for expert in range(family.experts))
                yield from ((name, _param(family, layer, expert)) for name, expert in names if name in self.names)


def names_of(families: Sequence[Family], asked: Iterable[str]) -> Names:
    """The parameters of these families that have one of these names, in any spelling."""
    wanted, found = _Asked(asked), Names()
    for family in families:
        for template in _headless(_templates(family)):
            for name, param in wanted.of(family, template):
                found.tensors.setdefault(name, param)
            if len(family.shape) == 2 and template.endswith(_WEIGHT):
                for name, param in wanted.of(family, template, _WEIGHT):
                    found.modules.setdefault(name, [Place(param, 0, family.shape[0])])
    _add_joined(found, families, wanted)
    _add_stacks(found, families, wanted)
    return found


def _param(family: Family, layer: int | None, expert: int | None) -> Param:
    return Param(family.named(family.template, layer, expert), family, layer, expert)


def _headless(templates: Iterable[str]) -> Iterator[str]:
    """Templates, and the same without `model.` in front, as adapters of a model without its head have them."""
    known = tuple(templates)
    return iter(dict.fromkeys((*known, *(one.removeprefix("model.") for one in known))))


def _templates(family: Family) -> tuple[str, ...]:
    """Every template of a family's own tensors, without those of stacked experts."""
    spelled = SPELLINGS.get(family.template, ())
    return (family.template, *(one for one in spelled if "{expert}" in one or not family.experts))


def _add_joined(found: Names, families: Sequence[Family], asked: _Asked) -> None:
    """Add modules that loaders make of several matrices: rows of one below those of the other."""
    for family, join in _joins(families, fused_names(families)):
        template = join.template.removesuffix(_WEIGHT)
        head, dot, last = template.rpartition(".")
        others = (head + dot + _ALSO[last],) if last in _ALSO else ()
        for one in _headless((template, *others)):
            for name, param in asked.of(family, one):
                _add(found.modules.setdefault(name, []), _place(param, join))


def _add_stacks(found: Names, families: Sequence[Family], asked: _Asked) -> None:
    """Add the tensors in which all experts of a layer are stacked."""
    for names in _spelled_stacks(families):
        for family, join in _joins(families, names):
            module, _, tensor = join.template.rpartition(".")
            for template in _headless((module,)):
                for name, first in asked.of(family, template):
                    stack = found.stacks.setdefault(name, {}).setdefault(tensor, {})
                    for expert in range(family.experts):
                        _add(stack.setdefault(expert, []), _place(_param(family, first.layer, expert), join))


def _add(places: list[Place], place: Place) -> None:
    """Add a place, once: two spellings can give one name."""
    if place not in places:
        places.append(place)


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


def _joins(families: Sequence[Family], names: Mapping[str, str]) -> Iterator[tuple[Family, Join]]:
    known = joined(families, names)
    return ((family, join) for family in families if (join := known.get((family.template, family.mtp))))


def _place(param: Param, join: Join) -> Place:
    above, below = (sum(family.shape[0] for family in side) for side in (join.before, join.after))
    return Place(param, above, above + param.shape[0] + below)
