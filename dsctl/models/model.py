"""What exists: a model yields its parameters from `config.json`. Names are generated here and never parsed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from dsctl.core.attention import Sizes
from dsctl.core.header import TensorSpec
from dsctl.core.params import PLAIN_TRAITS, Family, Published, Traits, Unit


class Contradiction(NamedTuple):
    """Something that a `config.json` says and that cannot be, or that tensors contradict: a stable code, and what."""

    code: str
    what: str


class Model(Protocol):
    """One architecture."""

    name: str
    # What a small checkpoint of it has, where that is not the usual.
    usual_sizes: Mapping[str, int]

    def matches(self, config: Mapping[str, Any]) -> bool:
        """Whether this `config.json` is of this architecture."""

    def traits(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Traits:
        """What a checkpoint's tensors, by name, tell of it beside its config."""

    def families(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Family, ...]:
        """Every parameter of the model, MTP layers included.

        Raises:
            FormatError: a field that sets a shape is missing or absurd.
        """

    def contradictions(
        self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec], traits: Traits
    ) -> Iterable[Contradiction]:
        """What is wrong with a config of which `families` can be told; `stored` are the checkpoint's tensors by name.

        Raises:
            FormatError: a field that sets a shape is missing or absurd.
        """

    def published(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> Mapping[str, Published]:
        """How its releases store what they quantize, by role; a role that is not there is quantized in none of them."""

    def units(self, config: Mapping[str, Any]) -> tuple[Unit, ...]:
        """What no tensor-parallel cut of attention may split, such as heads; none where the config does not say."""

    def attention(self, config: Mapping[str, Any]) -> Sizes | None:
        """The sizes that set what attention costs, or None where the config does not give them."""

    def restored(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The same config in the fields of the releases, where a program that saved it says it in others."""

    def without_mtp(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The same config for a checkpoint that has no multi-token-prediction layers."""

    def sliced(self, config: Mapping[str, Any], layers: Sequence[int], experts: Sequence[int]) -> dict[str, Any]:
        """The same config for some layers, by their numbers through the model, and some experts; none means all."""

    def tiny(self, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        """The same config with small dimensions: `sizes` holds layers, experts, hidden, heads, vocab."""
