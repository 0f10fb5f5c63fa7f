"""What a model is made of: parameters, and families of those that differ only in layer and expert. Data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

# The roles of known architectures, in the order of a printed table; `in_order` puts others behind them.
ROLES = (
    "embedding", "attention", "indexer", "dense mlp", "routed experts", "shared experts", "router", "norm", "head",
    "mtp",
)  # fmt: skip


# The role of tensors that belong to no parameter of the architecture.
OTHER = "other"


def in_order(roles: Iterable[str]) -> list[str]:
    """Every role once: those of `ROLES` first, then any others in the order given, `OTHER` last."""
    found = list(dict.fromkeys(roles))
    place = {role: number for number, role in enumerate(ROLES)} | {OTHER: len(ROLES) + 1}
    return sorted(found, key=lambda role: place.get(role, len(ROLES)))


class Param(NamedTuple):
    """One logical parameter: its name, its family, and which layer and expert it belongs to."""

    name: str
    family: Family
    layer: int | None
    expert: int | None

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
    `derived`: it follows from the config, and loaders that name their own modules have no place for it.
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
        if not mark:
            return [f"{head}{layer}{tail}" for layer in self.layers]
        return [f"{head}{layer}{before}{expert}{after}" for layer in self.layers for expert in range(self.experts)]

    def params(self) -> Iterator[Param]:
        """Every parameter, layer by layer, expert by expert."""
        if not self.layers:
            yield Param(self.template, self, None, None)
            return
        for layer in self.layers:
            head, _, tail = self.template.partition("{layer}")
            before, mark, after = tail.partition("{expert}")
            if not mark:
                yield Param(f"{head}{layer}{tail}", self, layer, None)
                continue
            start = f"{head}{layer}{before}"
            for expert in range(self.experts):
                yield Param(f"{start}{expert}{after}", self, layer, expert)
