"""A model's parameters, and families of parameters that differ only in layer and expert number. Data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import msgspec

from dsctl.core.header import TensorSpec

# The roles of known architectures, in the order of a printed table; `in_order` appends any others.
ROLES = (
    "embedding", "engram tables", "engram", "attention", "compressor", "indexer", "dense mlp", "routed experts",
    "shared experts", "router", "hyper-connections", "norm", "head", "mtp", "vision",
)  # fmt: skip


# The role of tensors that belong to no parameter of the architecture.
OTHER = "other"


def in_order(roles: Iterable[str]) -> list[str]:
    """Every role once: those of `ROLES` first, then any others in the given order, `OTHER` last."""
    found = list(dict.fromkeys(roles))
    place = {role: number for number, role in enumerate(ROLES)} | {OTHER: len(ROLES) + 1}
    return sorted(found, key=lambda role: place.get(role, len(ROLES)))


class Published(NamedTuple):
    """How releases of an architecture store the parameters of a role that they quantize.

    `format` is a name of `dsctl.codecs.CODECS`, `dialect` one of `dsctl.layouts.naming.DIALECTS`; `scale_fmt` is
    the scale format of FP8, stored or requested, if configs have such a field; `why` gives the reason. `fields` are the
    fields of `config.json` outside `quantization_config` that declare the format: for each name its values by kind of
    codes (`Form.codes`), first the one that loaders assume if the field is absent; a field of `quantization_config` is
    given as `quantization_config.name`. `block` are the rows and columns of FP8 blocks if no config declares them;
    `own_block`: they are these whatever the config declares. `dtypes` are the codec's dtypes that releases spell
    differently, by the codec's field.
    """

    format: str
    dialect: str
    scale_fmt: str | None = None
    why: str = ""
    fields: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    block: tuple[int, int] = (128, 128)
    own_block: bool = False
    dtypes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Traits:
    """Facts that only a checkpoint's tensors show: `config.json` omits them or gets them wrong.

    `drafter` is the kind of drafter, `stages` the number of its stages (None: as in the config); `own`: the drafter has
    its own embedding and head; `vision`: the model has parts that read images. `experts` is the code of routed experts
    (`Form.codes`) and `scales` the dtype of their scales, empty if the tensors do not show it. `rotary` is the spec of
    the rotary buffer that every layer stores, None if there is none or it is the usual one. `bias` is the dtype of
    router biases, empty if it is the usual one.
    """

    drafter: str = ""
    stages: int | None = None
    own: bool = False
    vision: bool = False
    experts: str = ""
    scales: str = ""
    rotary: TensorSpec | None = None
    bias: str = ""


# The kinds of drafters: layers for multi-token prediction, and a block drafter.
MTP, DSPARK = "mtp", "dspark"


class Drafter(NamedTuple):
    """A drafter: its kind (`MTP`, `DSPARK`, or "" if there is none), and what the names of each stage begin with, such
    as `model.layers.61` or `mtp.0`. A config may name a kind without a stage."""

    kind: str = ""
    stages: tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        """Whether a tensor or parameter of this name belongs to a stage; DeepSeek's own names omit `model.`."""
        return name.startswith(tuple(f"{stage}." for one in self.stages for stage in (one, one.removeprefix("model."))))

    def json(self, alone: bool) -> dict[str, Any] | None:
        """Return it as JSON, or None if there is none; `alone`: it is without its model."""
        told = {"kind": self.kind, "stages": len(self.stages), "text": str(self), "alone": alone}
        return told if self.stages else None

    def __str__(self) -> str:
        """Return it in words: "MTP, 1 layer (model.layers.61)", or "DSpark, 3 stages (mtp.0 to mtp.2)"."""
        many = f"{len(self.stages)} {'stage' if self.kind == DSPARK else 'layer'}{'s' * (len(self.stages) != 1)}"
        named = f" ({self.stages[0]}{f' to {self.stages[-1]}' * (len(self.stages) > 1)})" if self.stages else ""
        return f"{'DSpark' if self.kind == DSPARK else 'MTP'}, {many}{named}" if self.kind else "none"


NO_DRAFTER = Drafter()


class Unit(NamedTuple):
    """Units of attention that no rank may split: how many there are, and their name."""

    number: int
    noun: str


# For a model whose config has all the facts.
PLAIN_TRAITS = Traits()


class Param(msgspec.Struct, frozen=True, gc=False):
    """One logical parameter: its name, its family, and which layer and expert it belongs to."""

    name: str
    family: Family
    layer: int | None
    expert: int | None

    @property
    def number(self) -> int | None:
        """The layer number that the name contains."""
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
    """Parameters that differ only in layer and expert number.

    `split` is the dimension that tensor parallelism cuts (None: every rank holds the whole). `dtype` is what a release
    stores if the parameter is not quantized. `layers` is empty for parameters outside the layers; `experts` is
    the number of routed experts, or 0. `role` says what the parameter does; `mtp` marks the parameters of a
    multi-token-prediction layer. `active` of `experts` are used per token. `twin` names the parameter that this one
    duplicates (the MTP layer's embedding and head). `fused` names the module into which loaders join it with others.
    `derived`: it follows from the config, and loaders that name their own modules do not store it. `last`: it goes with
    the last pipeline stage. `below`: its values are whole numbers from 0 up to this number. `table`: a token looks up
    single rows, so a scale must belong to one row; ranks that share its rows have equal parts, the last one padded.
    `variant` separates it from
    other families with the same template, such as those of layers with a different compression. Layers are numbered
    through the model, MTP layers after all others; names count from `first_layer` on.
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
    table: bool = False
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
        """The role under which totals are printed: all parameters of an MTP layer count as `mtp`."""
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
        """A different template, such as that of a joined module, with the numbers of a parameter of this family."""
        return template.format(layer=None if layer is None else layer - self.first_layer, expert=expert)


def drafter_of(families: Iterable[Family], kind: str) -> Drafter:
    """The drafter among these families, with its stages by number; `kind` is its kind if there is one."""
    drafts = [family for family in families if family.mtp]
    layers = sorted({layer for family in drafts for layer in family.layers})
    head, first = drafts[0].template.partition("{layer}")[0] if drafts else "", drafts[0].first_layer if drafts else 0
    return Drafter(kind, tuple(f"{head}{layer - first}" for layer in layers)) if layers else NO_DRAFTER
