"""The interface of models: a model yields its parameters from `config.json`. Names are generated, never parsed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from dsctl.core.attention import Sizes
from dsctl.core.header import TensorSpec
from dsctl.core.params import PLAIN_TRAITS, Drafter, Family, Param, Published, Traits, Unit


class Contradiction(NamedTuple):
    """An impossible field of `config.json`, or one that tensors contradict: a stable code and a description."""

    code: str
    what: str


class ExpertGroups(NamedTuple):
    """Groups of neighbouring experts, of equal size: a router chooses `chosen` of them, and experts in these.

    A group's score is the sum of its `scored` best experts.
    """

    number: int = 1
    chosen: int = 1
    scored: int = 1


class Model(Protocol):
    """One architecture."""

    name: str
    # Default sizes of its small checkpoint that differ from the usual ones.
    usual_sizes: Mapping[str, int]

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether this `config.json` has this architecture."""

    def traits(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Traits:
        """Facts that a checkpoint's tensors (by name) show beside its config."""

    def families(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Family, ...]:
        """Every parameter of the model, MTP layers included.

        Raises:
            FormatError: a field that sets a shape is missing or absurd.
        """

    def contradictions(
        self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec], traits: Traits
    ) -> Iterable[Contradiction]:
        """Problems of a config whose `families` are known; `stored` are the checkpoint's tensors by name.

        Raises:
            FormatError: a field that sets a shape is missing or absurd.
        """

    def published(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> Mapping[str, Published]:
        """How its releases store quantized roles; a role without an entry is not quantized."""

    def units(self, config: Mapping[str, Any]) -> tuple[Unit, ...]:
        """Units of attention that a tensor-parallel cut may not split, such as heads; empty if not in the config."""

    def attention(self, config: Mapping[str, Any]) -> Sizes | None:
        """The sizes that determine the cost of attention, or None if the config does not have them."""

    def restored(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The same config with the releases' fields, if a program saved it with different ones."""

    def drafter(self, config: Mapping[str, Any]) -> Drafter:
        """The drafter that a config declares.

        Raises:
            FormatError: a field that sets a shape is missing or absurd.
        """

    def stored_drafter(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Drafter:
        """The drafter that a checkpoint's tensors (by name) show, whatever its config declares."""

    def without_mtp(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The same config for a checkpoint without MTP layers."""

    def with_mtp(self, config: Mapping[str, Any], other: Mapping[str, Any], traits: Traits) -> dict[str, Any]:
        """The same config with the MTP layers or the drafter of another one; `traits` are those of that checkpoint."""

    def sliced(self, config: Mapping[str, Any], layers: Sequence[int], experts: Sequence[int]) -> dict[str, Any]:
        """The same config for these layers, numbered through the model, and these experts; empty means all."""

    def pruned(self, config: Mapping[str, Any], experts: int, drafter: int) -> dict[str, Any]:
        """The same config for these numbers of routed experts in each main layer and in each MTP layer (0 without any).

        Raises:
            PlanError: the config has one number for both, and these differ.
        """

    def expert_groups(self, config: Mapping[str, Any]) -> ExpertGroups:
        """The groups of experts among which its routers choose first."""

    def kept_rows(
        self, config: Mapping[str, Any], small: Mapping[str, Any], source: Param, param: Param
    ) -> Iterable[tuple[int, int]] | None:
        """The ranges of rows of a table from which the smaller table of a sliced config is cut; None if unknown.

        `source` is the table of `config`, `param` that of the config that `sliced` made of it.
        """

    def tiny(self, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        """The same config with small dimensions: `sizes` holds layers, experts, hidden, heads, vocab."""
