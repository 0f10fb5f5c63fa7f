"""The contents of a checkpoint by family: groups of parameters with the same storage. No weights, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dsctl import models
from dsctl.checkpoint.released import quantized_roles, stored_codec
from dsctl.codecs.codec import Codec
from dsctl.codecs.plain import Plain
from dsctl.core.config_fields import quantization_of
from dsctl.core.header import TensorRef, TensorSpec
from dsctl.core.params import OTHER, PLAIN_TRAITS, Family, Param, Traits
from dsctl.models.model import Model
from dsctl.releases import Release

if TYPE_CHECKING:
    from dsctl.checkpoint.checkpoint import Checkpoint
    from dsctl.checkpoint.pieces import Piece

# The number placeholders of a folded name, in order.
NUMBERS = ("{layer}", "{expert}")


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters of one family with the same storage: their count, layers, tensors and bytes.

    `some` lists them if they are not the whole family.
    """

    family: Family
    codec: Codec
    layers: tuple[int, ...]
    count: int
    tensors: int
    nbytes: int
    some: tuple[str, ...] = ()

    @property
    def names(self) -> Iterator[str]:
        """The name of every parameter."""
        return iter(self.some) if self.some else (param.name for param in self.family.params())

    @property
    def numbers(self) -> tuple[int, ...]:
        """Its layers, by their numbers in names."""
        return tuple(layer - self.family.first_layer for layer in self.layers)

    @property
    def params(self) -> list[Param]:
        """Every parameter."""
        some = set(self.some)
        return [param for param in self.family.params() if not some or param.name in some]

    def part(self, params: Sequence[Param]) -> Group:
        """The group restricted to these parameters."""
        layers = tuple(dict.fromkeys(param.layer for param in params if param.layer is not None))
        some = () if len(params) == self.family.count else tuple(param.name for param in params)
        tensors, nbytes = (len(params) * number // self.count for number in (self.tensors, self.nbytes))
        return Group(self.family, self.codec, layers, len(params), tensors, nbytes, some)

    @property
    def values(self) -> int:
        return self.count * self.family.values

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """The stored specs of one parameter, by the codec's parts."""
        return self.codec.specs(self.family.shape)


@dataclass(frozen=True)
class Known:
    """A description of a checkpoint without its files: its printed name, config, model and groups, and facts that the
    tensors show about the architecture."""

    place: str
    config: Mapping[str, Any]
    model: Model | None
    groups: tuple[Group, ...]
    traits: Traits = PLAIN_TRAITS

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        return quantization_of(self.config)

    @property
    def families(self) -> tuple[Family, ...]:
        """The families of its architecture's parameters, each once."""
        return tuple(dict.fromkeys(group.family for group in self.groups if group.family.role != OTHER))


def whole(family: Family, codec: Codec) -> Group:
    """A family with the same storage for all of its parameters."""
    specs = codec.specs(family.shape).values()
    nbytes = sum(spec.nbytes for spec in specs)
    return Group(family, codec, family.layers, family.count, family.count * len(specs), family.count * nbytes)


def _found(checkpoint: Checkpoint) -> Iterator[Group]:
    held = checkpoint.survey.pieces
    for family in checkpoint.families:
        found: dict[Codec, list[Param]] = {}
        for param in family.params():
            if stored := held.get(param.name):
                found.setdefault(stored[0].codec, []).append(param)
        for codec, params in found.items():
            pieces = [piece for param in params for piece in held[param.name]]
            layers = tuple(dict.fromkeys(param.layer for param in params if param.layer is not None))
            tensors, nbytes = sum(len(piece.refs) for piece in pieces), sum(piece.nbytes for piece in pieces)
            some = () if len(params) == family.count else tuple(param.name for param in params)
            yield Group(family, codec, layers, len(params), tensors, nbytes, some)


def _others(extra: Iterable[TensorRef]) -> Iterator[Group]:
    """Tensors that do not belong to a parameter, grouped if they differ only in numbers."""
    found: dict[tuple[str, TensorSpec], list[TensorRef]] = {}
    for ref in extra:
        found.setdefault((folded(ref.name)[0], ref.spec), []).append(ref)
    for (template, spec), refs in sorted(found.items()):
        numbers = (folded(ref.name)[1] for ref in refs)
        layers = tuple(sorted({first for first, *_ in filter(None, numbers)}))
        family = Family(template, spec.shape, OTHER, dtype=spec.dtype, layers=layers)
        nbytes, names = sum(ref.nbytes for ref in refs), tuple(ref.name for ref in refs)
        yield Group(family, Plain(spec.dtype), layers, len(refs), len(refs), nbytes, names)


def _of_generic(checkpoint: Checkpoint) -> Iterator[Group]:
    """The parameters of an unknown architecture, grouped if they differ only in numbers."""
    found: dict[tuple[str, Codec, tuple[int, ...]], list[tuple[str, Piece]]] = {}
    for name, (piece,) in checkpoint.survey.pieces.items():
        found.setdefault((folded(name)[0], piece.codec, piece.slot.container), []).append((name, piece))
    for (template, codec, shape), held in found.items():
        layers = tuple(sorted({numbers[0] for name, _ in held if (numbers := folded(name)[1])}))
        family = Family(template, shape, OTHER, codec.quantized, dtype=codec.plain or "BF16", layers=layers)
        tensors, nbytes = len(held) * len(codec.parts), sum(piece.nbytes for _, piece in held)
        yield Group(family, codec, layers, len(held), tensors, nbytes, tuple(name for name, _ in held))


def folded(name: str) -> tuple[str, tuple[int, ...]]:
    """An unknown name for display: numbers replaced by placeholders, and the numbers."""
    parts = name.split(".")
    numbers: list[int] = []
    for place, part in enumerate(parts):
        if part.isdecimal() and part.isascii() and len(part) < 10:
            parts[place] = NUMBERS[min(len(numbers), 1)]
            numbers.append(int(part))
    return ".".join(parts), tuple(numbers)


def groups_of(checkpoint: Checkpoint) -> tuple[Group, ...]:
    """The contents of an open checkpoint."""
    if checkpoint.regular is not None:
        return tuple(whole(family, codec) for family, codec in checkpoint.regular.items())
    if checkpoint.generic is not None:
        return tuple(_of_generic(checkpoint))
    return (*_found(checkpoint), *_others(checkpoint.survey.extra))


def groups_of_release(release: Release) -> tuple[Group, ...]:
    """The contents of a release, from its config and its known storage."""
    quantized = quantized_roles(release)
    families = models.recognise(release.config).families(release.config, release.storage.traits)
    return tuple(whole(family, stored_codec(family, quantized)) for family in families)
