"""What a model is made of: parameters, and families of those that differ only in layer and expert. Data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import msgspec

# The roles of known architectures, in the order of a printed table; `in_order` puts others behind them.
ROLES = (
    "embedding", "attention", "compressor", "indexer", "dense mlp", "routed experts", "shared experts", "router",
    "hyper-connections", "norm", "head", "mtp", "vision",
)  # fmt: skip


# The role of tensors that belong to no parameter of the architecture.
OTHER = "other"


def in_order(roles: Iterable[str]) -> list[str]:
    """Every role once: those of `ROLES` first, then any others in the order given, `OTHER` last."""
    found = list(dict.fromkeys(roles))
    place = {role: number for number, role in enumerate(ROLES)} | {OTHER: len(ROLES) + 1}
    return sorted(found, key=lambda role: place.get(role, len(ROLES)))


class Published(NamedTuple):
    """How releases of an architecture store the parameters of a role that they quantize.

    `format` is a name of `dsctl.codecs.CODECS`, `dialect` one of `dsctl.layouts.naming.DIALECTS`; `scale_fmt` is
    that of FP8, stored or asked for, where configs speak of one; `why` says what that follows from. `fields` are those
    of `config.json`, beside `quantization_config`, that say so: by name their values by kind of codes (`Form.codes`),
    first the one that loaders take where the field is absent.
    """

    format: str
    dialect: str
    scale_fmt: str | None = None
    why: str = ""
    fields: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Traits:
    """What a checkpoint's tensors tell of it and `config.json` does not, or not truly.

    `drafter` is the kind of what drafts further tokens, `stages` how many there are (None: as the config has it);
    `own`: it has an embedding and a head of its own; `vision`: there are parts that read images. `experts` is how
    routed experts are coded (`Form.codes`) and `scales` the dtype of their scales, empty where that is not told.
    """

    drafter: str = ""
    stages: int | None = None
    own: bool = False
    vision: bool = False
    experts: str = ""
    scales: str = ""


class Unit(NamedTuple):
    """What attention is made of and no rank may hold a part of: how many there are, and what they are called."""

    number: int
    noun: str


# Of a model of which its config tells everything.
PLAIN_TRAITS = Traits()


class Param(msgspec.Struct, frozen=True, gc=False):
    """One logical parameter: its name, its family, and which layer and expert it belongs to."""

    name: str
    family: Family
    layer: int | None
    expert: int | None

    @property
    def number(self) -> int | None:
        """The layer's number in the name."""
        return None if self.layer is None else self.layer - self.family.first_layer

    @property
    def template(self) -> str:
        return self.family.template

    @property
    def shape(self) -> tuple[int, ...]:
        return self.family.shape

    @property
    def role(self) -> str:
        return self.family.role

    @property
    def quantizable(self) -> bool:
        return self.family.quantizable


@dataclass(frozen=True, slots=True)
class Family:
    """Parameters that differ only in layer and expert.

    `split` is the dimension that tensor parallelism cuts (None: every rank holds the whole). `dtype` is the stored
    dtype of a release where it is not quantized. `layers` is empty for parameters outside the layers; `experts` is
    the number of routed experts, 0 where there are none. `role` says what the parameter does; `mtp` marks those of a
    multi-token-prediction layer. `active` of `experts` are used per token. `twin` names the parameter that this one
    duplicates (the MTP layer's embedding and head). `fused` names the module into which loaders join it with others.
    `derived`: it follows from the config, and loaders that name their own modules have no place for it. `last`: where
    layers are dealt out over pipeline stages, it goes with the last of them. `below`: its values are whole numbers
    from 0 up to this. `variant` tells it from other families of its template, such as those of layers that compress
    otherwise. Layers are counted through the model, those of multi-token prediction behind all others; names count
    from `first_layer` on.
    """

    template: str
    shape: tuple[int, ...]
    role: str
    quantizable: bool = False
    split: int | None = None
    dtype: str = "BF16"
    layers: tuple[int, ...] = ()
    experts: int = 0
    active: int = 0
    mtp: bool = False
    twin: str | None = None
    fused: str = ""
    derived: bool = False
    last: bool = False
    first_layer: int = 0
    below: int = 0
    variant: str = ""

    @property
    def count(self) -> int:
        return max(1, len(self.layers)) * max(1, self.experts)

    @property
    def values(self) -> int:
        """Elements of one parameter of the family."""
        return prod(self.shape)

    @property
    def group(self) -> str:
        """The role under which totals are printed: an MTP layer's parameters count as `mtp`."""
        return "mtp" if self.mtp else self.role

    def names(self) -> list[str]:
        """The name of every parameter, in the order of `params`."""
        if not self.layers:
            return [self.template]
        head, _, tail = self.template.partition("{layer}")
        before, mark, after = tail.partition("{expert}")
        numbers = [layer - self.first_layer for layer in self.layers]
        if not mark:
            return [f"{head}{number}{tail}" for number in numbers]
        return [f"{head}{number}{before}{expert}{after}" for number in numbers for expert in range(self.experts)]

    def params(self) -> Iterator[Param]:
        """Every parameter, layer by layer, expert by expert."""
        if not self.layers:
            yield Param(self.template, self, None, None)
            return
        names = iter(self.names())
        experts = range(self.experts) if "{expert}" in self.template else (None,)
        for layer in self.layers:
            for expert in experts:
                yield Param(next(names), self, layer, expert)

    def named(self, template: str, layer: int | None, expert: int | None = None) -> str:
        """Another template, such as that of a joined module, with the numbers of a parameter of this family."""
        return template.format(layer=None if layer is None else layer - self.first_layer, expert=expert)
