"""A model for the recipe: an embedding, layers of two matrices and a norm, a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec

from dsctl.core.attention import Sizes
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorSpec
from dsctl.core.params import NO_DRAFTER, PLAIN_TRAITS, Drafter, Family, Published, Traits, Unit
from dsctl.models.model import Contradiction

Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]


class Dimensions(msgspec.Struct, frozen=True):
    """The fields of `config.json` that set names and shapes."""

    vocab_size: Size
    hidden_size: Size
    kv_lora_rank: Size
    num_hidden_layers: Size


class Toy:
    """Layers that go down to a latent and up again."""

    name = "toy"
    usual_sizes: Mapping[str, int] = {}

    def matches(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == self.name

    def traits(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Traits:
        return PLAIN_TRAITS

    def families(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Family, ...]:
        try:
            d = msgspec.convert(config, Dimensions)
        except msgspec.ValidationError as error:
            raise FormatError(f"config.json: {error}") from None
        layers = tuple(range(d.num_hidden_layers))
        return (
            Family("toy.words.weight", (d.vocab_size, d.hidden_size), "embedding", split=0),
            Family("toy.{layer}.down.weight", (d.kv_lora_rank, d.hidden_size), "mixer", True, 0, layers=layers),
            Family("toy.{layer}.up.weight", (d.hidden_size, d.kv_lora_rank), "mixer", True, layers=layers),
            Family("toy.{layer}.norm.weight", (d.hidden_size,), "norm", layers=layers),
            Family("toy.head.weight", (d.vocab_size, d.hidden_size), "head", split=0, last=True),
        )

    def contradictions(
        self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec], traits: Traits
    ) -> tuple[Contradiction, ...]:
        return ()

    def published(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> Mapping[str, Published]:
        return {"mixer": Published("toy", "toy")}

    def units(self, config: Mapping[str, Any]) -> tuple[Unit, ...]:
        return ()

    def attention(self, config: Mapping[str, Any]) -> Sizes | None:
        return None

    def restored(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return dict(config)

    def drafter(self, config: Mapping[str, Any]) -> Drafter:
        return NO_DRAFTER

    def stored_drafter(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Drafter:
        return NO_DRAFTER

    def without_mtp(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return dict(config)

    def sliced(self, config: Mapping[str, Any], layers: Sequence[int], experts: Sequence[int]) -> dict[str, Any]:
        return {**config, "num_hidden_layers": len(layers)}

    def tiny(self, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        fields = {"vocab_size": "vocab", "hidden_size": "hidden", "num_hidden_layers": "layers"}
        return {**config, **{field: sizes[name] for field, name in fields.items()}}
