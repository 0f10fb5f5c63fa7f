"""What a source is and holds, in totals: by role, by dtype, by file, tensor by tensor. Headers only, no torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from dsctl import releases
from dsctl.checkpoint.faults import known_faults
from dsctl.checkpoint.groups import Group, folded
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.checkpoint.pieces import Fault
from dsctl.codecs import CODECS
from dsctl.codecs.codec import Codec
from dsctl.codecs.plain import FLOATS, Plain
from dsctl.core.header import Header, TensorSpec
from dsctl.core.params import OTHER, in_order
from dsctl.layouts.naming import tensors
from dsctl.look.description import Description, active
from dsctl.look.notebook import html, table
from dsctl.look.opened import of_checkpoint
from dsctl.look.source import describe
from dsctl.stores import store_at
from dsctl.stores.hub import is_repository
from dsctl.stores.objects import is_url


class Subtotal(NamedTuple):
    """What one role or dtype sums up to: how many parameters of a role or tensors of a dtype, their values and bytes.

    `active` is how many of a role's values one token is multiplied with: `dsctl.look.description.active` says the rule.
    `codecs` are the forms in which a role is stored.
    """

    name: str
    number: int
    values: int
    nbytes: int
    active: int = 0
    codecs: tuple[Codec, ...] = ()


class WeightFile(NamedTuple):
    """A file, how many tensors it holds and their bytes."""

    name: str
    tensors: int
    nbytes: int


class Tensor(NamedTuple):
    """A stored tensor; `file` is empty where a release is described without its files."""

    name: str
    spec: TensorSpec
    file: str


class Fold(NamedTuple):
    """Tensors that differ only in the numbers of their names: which numbers stand in each place, and how many."""

    template: str
    ranges: tuple[tuple[int, ...], ...]
    spec: TensorSpec
    number: int

    @property
    def nbytes(self) -> int:
        return self.number * self.spec.nbytes


@dataclass(frozen=True, slots=True)
class Inspection:
    """A description with the headers it was read from (none for a release), its faults, and the releases like it."""

    description: Description
    headers: Mapping[str, Header]
    faults: tuple[Fault, ...]
    alike: tuple[str, ...]
    regular: bool

    @property
    def roles(self) -> tuple[Subtotal, ...]:
        """Totals of every role there is, in the order of `in_order`; tensors of unknown purpose last."""
        found: dict[str, list[Group]] = {}
        for group in self.description.groups:
            found.setdefault(group.family.group, []).append(group)
        return tuple(_total(role, found[role]) for role in in_order(found))

    @property
    def alike_derived(self) -> tuple[str, ...]:
        """Those of `alike` whose config was not read, but derived."""
        return tuple(name for name in self.alike if releases.find(name).config_derived)

    @property
    def formats(self) -> tuple[Codec, ...]:
        """The forms in which it is stored: those of its roles, or, without a known architecture, of what goes together.

        Without one only what is named after its weight is told, most bytes first; packed weights have no such name.
        """
        if self.description.model is not None:
            return tuple(dict.fromkeys(codec for total in self.roles for codec in total.codecs))
        specs = {tensor.name: tensor.spec for tensor in self._stored()}
        found: dict[Codec, int] = {}
        scales: set[str] = set()
        for name, spec in specs.items():
            if codec := _together(name, spec, specs):
                found[codec] = found.get(codec, 0) + spec.nbytes
                scales.update(tensors(codec.dialect, name, codec.parts[1:]))
        for name, spec in specs.items():
            if spec.dtype in FLOATS and name not in scales and not _together(name, spec, specs):
                found[Plain(spec.dtype)] = found.get(Plain(spec.dtype), 0) + spec.nbytes
        return tuple(sorted(found, key=lambda codec: -found[codec]))

    @property
    def dtypes(self) -> tuple[Subtotal, ...]:
        """Totals by stored dtype, most bytes first."""
        found: dict[str, Subtotal] = {}
        for spec, number in self._kinds():
            so_far = found.get(spec.dtype, Subtotal(spec.dtype, 0, 0, 0))
            found[spec.dtype] = Subtotal(
                spec.dtype,
                so_far.number + number,
                so_far.values + number * spec.values,
                so_far.nbytes + number * spec.nbytes,
            )
        return tuple(sorted(found.values(), key=lambda total: (-total.nbytes, total.name)))

    def _kinds(self) -> Iterator[tuple[TensorSpec, int]]:
        if self.regular:
            for group in self.description.groups:
                yield from ((spec, group.count) for spec in group.specs.values())
            return
        for header in self.headers.values():
            yield from header.kinds.items()

    @property
    def files(self) -> tuple[WeightFile, ...]:
        """Every weight file, in the order of their names."""
        return tuple(
            WeightFile(file, len(header.names), header.nbytes) for file, header in sorted(self.headers.items())
        )

    def tensors(self, glob: str = "*") -> Iterator[Tensor]:
        """Every stored tensor whose name matches, file by file; of a release, family by family."""
        everything = self._stored() if self.headers else self._described()
        return (tensor for tensor in everything if glob == "*" or fnmatchcase(tensor.name, glob))

    def _stored(self) -> Iterator[Tensor]:
        for file, header in sorted(self.headers.items()):
            for name, spec in zip(header.names, header.specs, strict=True):
                yield Tensor(name, spec, file)

    def _described(self) -> Iterator[Tensor]:
        for group in self.description.groups:
            specs = group.specs
            for name in group.names:
                named = tensors(group.codec.dialect, name, specs)
                yield from (Tensor(tensor, spec, "") for tensor, spec in zip(named, specs.values(), strict=True))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        roles = [(one.name, one.number, one.values, one.active, one.nbytes) for one in self.roles]
        dtypes = [(one.name, one.number, one.values, one.nbytes) for one in self.dtypes]
        parts = (
            table("By role", ("role", "parameters", "values", "active per token", "bytes"), roles),
            table("By dtype", ("dtype", "tensors", "values", "bytes"), dtypes),
        )
        said = self.description.model or "architecture not known"
        said = "".join(f"<p>{html(text)}</p>" for text in (self.description.origin.sentence, said))
        return f"<h3>{html(self.description.name)}</h3>{said}{''.join(parts)}"


def inspect(source: str) -> Inspection:
    """A folder, a .safetensors file, a repository, or a release by any of its names; what exists here comes first.

    Raises:
        SourceError: none of them, or unreadable. FormatError: a file's own structure is broken.
    """
    here = os.path.exists(source) or is_url(source) or is_repository(source)
    if releases.meant(source) is not None or not here:
        description = describe(source)
        return Inspection(description, {}, (), _alike(description), True)
    checkpoint = open_checkpoint(store_at(source))
    description = of_checkpoint(checkpoint, source)
    regular = checkpoint.regular is not None
    return Inspection(description, checkpoint.headers, known_faults(checkpoint), _alike(description), regular)


def _together(name: str, spec: TensorSpec, specs: Mapping[str, TensorSpec]) -> Codec | None:
    """The codec that reads a tensor together with those that are named after it, if any does."""
    for codec in CODECS.values():
        named = tensors(codec.dialect, name, codec.parts)
        if len(named) < 2 or named[0] != name or any(one not in specs for one in named):
            continue
        if reader := codec.reads(spec.shape, {p: specs[one] for p, one in zip(codec.parts, named, strict=True)}):
            return reader
    return None


def _alike(description: Description) -> tuple[str, ...]:
    return tuple(release.name for release in description.alike)


def _total(name: str, groups: list[Group]) -> Subtotal:
    codecs = dict.fromkeys(group.codec for group in sorted(groups, key=lambda group: -group.nbytes))
    return Subtotal(
        name,
        sum(group.count for group in groups),
        sum(group.values for group in groups),
        sum(group.nbytes for group in groups),
        sum(active(group) for group in groups) if name != OTHER else 0,
        tuple(codecs),
    )


def fold(tensors: Iterable[Tensor]) -> list[Fold]:
    """Tensors with names alike but for their numbers, and one dtype and shape, as one entry each."""
    found: dict[tuple[str, int, TensorSpec], list[tuple[int, ...]]] = {}
    for tensor in tensors:
        template, numbers = folded(tensor.name)
        found.setdefault((template, len(numbers), tensor.spec), []).append(numbers)
    return [
        Fold(template, tuple(tuple(sorted(set(place))) for place in zip(*numbers, strict=True)), spec, len(numbers))
        for (template, _, spec), numbers in found.items()
    ]
