"""The contents of a source: totals by role, dtype and file, and every tensor. Headers only, no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import translate
from typing import NamedTuple

from dsctl import releases
from dsctl.checkpoint.faults import known_faults
from dsctl.checkpoint.groups import Group, folded
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.checkpoint.pieces import Fault
from dsctl.codecs.codec import Codec
from dsctl.codecs.plain import FLOATS
from dsctl.core.header import Header, TensorSpec
from dsctl.core.params import OTHER, in_order
from dsctl.core.tables import html, table, text_table
from dsctl.core.visible import shortened, visible
from dsctl.layouts.naming import DIALECTS
from dsctl.look.description import Description, active
from dsctl.look.opened import of_checkpoint
from dsctl.look.source import describe
from dsctl.stores import store_at
from dsctl.stores.hub import is_repository
from dsctl.stores.objects import is_url


class Subtotal(NamedTuple):
    """The totals of one role or dtype: the number of parameters or tensors, their values and bytes.

    `active` is the number of a role's values that one token is multiplied with, see `dsctl.look.description.active`.
    `codecs` are the formats of a role.
    """

    name: str
    number: int
    values: int
    nbytes: int
    active: int = 0
    codecs: tuple[Codec, ...] = ()


class WeightFile(NamedTuple):
    """A file, the number of its tensors, and their bytes."""

    name: str
    tensors: int
    nbytes: int


class Tensor(NamedTuple):
    """A stored tensor; `file` is empty if a release is described without its files."""

    name: str
    spec: TensorSpec
    file: str


class Fold(NamedTuple):
    """Tensors that differ only in the numbers in their names: the numbers at each place, and the number of tensors."""

    template: str
    ranges: tuple[tuple[int, ...], ...]
    spec: TensorSpec
    number: int

    @property
    def nbytes(self) -> int:
        return self.number * self.spec.nbytes


@dataclass(frozen=True, slots=True)
class Inspection:
    """A description, its headers (none for a release), its faults, and the releases with the same architecture."""

    description: Description
    headers: Mapping[str, Header]
    faults: tuple[Fault, ...]
    alike: tuple[str, ...]
    regular: bool

    def __repr__(self) -> str:
        return f"<Inspection {shortened(self.description.name)}: {self.description.summary}>"

    def __str__(self) -> str:
        """Return the tables as text, which `print` shows."""
        lines = [visible(self.description.name), *map(visible, self._said)]
        for title, columns, rows in self._tables:
            lines += ["", *text_table(title, columns, rows)]
        return "\n".join(lines)

    @property
    def roles(self) -> tuple[Subtotal, ...]:
        """Totals of every role, in the order of `in_order`; tensors of unknown purpose last."""
        found: dict[str, list[Group]] = {}
        for group in self.description.groups:
            found.setdefault(group.family.group, []).append(group)
        return tuple(_total(role, found[role]) for role in in_order(found))

    @property
    def alike_derived(self) -> tuple[str, ...]:
        """The members of `alike` whose config was derived from another release, not read."""
        return tuple(name for name in self.alike if releases.find(name).config_derived)

    @property
    def formats(self) -> tuple[Codec, ...]:
        """Its formats: those of its roles, or, for an unknown architecture, those of numbers, most bytes first."""
        if self.description.model is not None:
            return tuple(dict.fromkeys(codec for total in self.roles for codec in total.codecs))
        found: dict[Codec, int] = {}
        for group in self.description.groups:
            if group.codec.quantized or group.codec.plain in FLOATS:
                found[group.codec] = found.get(group.codec, 0) + group.nbytes
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
        """Every weight file, sorted by name."""
        return tuple(
            WeightFile(file, len(header.names), header.nbytes) for file, header in sorted(self.headers.items())
        )

    def tensors(self, glob: str = "*") -> Iterator[Tensor]:
        """Every stored tensor whose name matches, file by file; for a release, family by family."""
        found = self._stored() if self.headers else self._described()
        if glob != "*":
            # A release has up to hundreds of thousands of tensors, so the pattern is prepared once.
            matches = re.compile(translate(glob)).match
            found = (tensor for tensor in found if matches(tensor[0]))
        return map(Tensor._make, found)

    def _stored(self) -> Iterator[tuple[str, TensorSpec, str]]:
        for file, header in sorted(self.headers.items()):
            for name, spec in zip(header.names, header.specs, strict=True):
                yield name, spec, file

    def _described(self) -> Iterator[tuple[str, TensorSpec, str]]:
        for group in self.description.groups:
            dialect = DIALECTS[group.codec.dialect]
            parts = [(*dialect.ending(part), spec) for part, spec in group.specs.items()]
            for name in group.names:
                for off, on, spec in parts:
                    yield name.removesuffix(off) + on, spec, ""

    def _repr_html_(self) -> str:
        """Return the tables as HTML for a notebook."""
        said = "".join(f"<p>{html(text)}</p>" for text in self._said)
        tables = "".join(table(title, columns, rows) for title, columns, rows in self._tables)
        return f"<h3>{html(self.description.name)}</h3>{said}{tables}"

    @property
    def _said(self) -> tuple[str, str]:
        return self.description.origin.sentence, self.description.model or "unknown architecture"

    @property
    def _tables(self) -> Iterator[tuple[str, tuple[str, ...], list[tuple[object, ...]]]]:
        """The title, columns and rows of each printed table."""
        roles = [(one.name, one.number, one.values, one.active, one.nbytes) for one in self.roles]
        yield "By role", ("role", "parameters", "values", "active per token", "bytes"), [*roles]
        dtypes = [(one.name, one.number, one.values, one.nbytes) for one in self.dtypes]
        yield "By dtype", ("dtype", "tensors", "values", "bytes"), [*dtypes]


def inspect(source: str) -> Inspection:
    """Inspect a folder, a .safetensors file, a repository, or a release by any of its names; an existing path is first.

    Raises:
        SourceError: it is not one of these, or unreadable. FormatError: a file's own structure is broken.
    """
    here = os.path.exists(source) or is_url(source) or is_repository(source)
    if releases.meant(source) is not None or not here:
        description = describe(source)
        return Inspection(description, {}, (), _alike(description), True)
    checkpoint = open_checkpoint(store_at(source))
    description = of_checkpoint(checkpoint, source)
    regular = checkpoint.regular is not None
    return Inspection(description, checkpoint.headers, known_faults(checkpoint), _alike(description), regular)


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
    """One entry for all tensors with the same dtype and shape whose names differ only in numbers."""
    found: dict[tuple[str, int, TensorSpec], list[tuple[int, ...]]] = {}
    for tensor in tensors:
        template, numbers = folded(tensor.name)
        found.setdefault((template, len(numbers), tensor.spec), []).append(numbers)
    return [
        Fold(template, tuple(tuple(sorted(set(place))) for place in zip(*numbers, strict=True)), spec, len(numbers))
        for (template, _, spec), numbers in found.items()
    ]
