"""The parameters of one side by template, and the aspects in which a template differs between two sides. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dsctl.checkpoint.groups import Group
from dsctl.core.header import TensorSpec
from dsctl.layouts.naming import tensors
from dsctl.look.wording import form

# The aspects in which a template can differ, in the order of the report. The first four are architecture.
ASPECTS = ("shape", "layers", "experts", "split", "stored", "count")
STRUCTURE = frozenset({"shape", "layers", "experts", "split"})


@dataclass(frozen=True, slots=True)
class Template:
    """All parameters of one side with the same template: those of an MTP layer together with the main model's.

    Families of a template that differ in more than their layers, such as compressors of 4 and of 128 tokens, are
    separate.
    """

    name: str
    groups: tuple[Group, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.groups[0].family.shape

    @property
    def role(self) -> str:
        return self.groups[0].family.role

    @property
    def split(self) -> int | None:
        return self.groups[0].family.split

    @property
    def layers(self) -> tuple[int, ...]:
        """The numbers of its layers, as names have them."""
        return tuple(sorted({number for group in self.groups for number in group.numbers}))

    @property
    def experts(self) -> int:
        return self.groups[0].family.experts

    @property
    def stored(self) -> str:
        return " or ".join(dict.fromkeys(form(group.codec) for group in self.groups))

    @property
    def count(self) -> int:
        return sum(group.count for group in self.groups)

    @property
    def values(self) -> int:
        return sum(group.values for group in self.groups)

    @property
    def tensors(self) -> int:
        return sum(group.tensors for group in self.groups)

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self.groups)


class TemplateChange(NamedTuple):
    """A template on both sides, and those of `ASPECTS` in which it differs."""

    before: Template
    after: Template
    aspects: tuple[str, ...]

    @property
    def structural(self) -> bool:
        return not STRUCTURE.isdisjoint(self.aspects)


def templates(groups: Iterable[Group]) -> dict[tuple[str, str], Template]:
    """Groups by their template and variant, in the model's order."""
    found: dict[tuple[str, str], list[Group]] = {}
    for group in groups:
        found.setdefault((group.family.template, group.family.variant), []).append(group)
    return {key: Template(key[0], tuple(held)) for key, held in found.items()}


def prefixes(before: Iterable[Template], after: Iterable[Template]) -> tuple[str, str]:
    """What one side's names have before the other's, as those of a language model have inside a model that reads
    images; found by the embedding. Both are empty if there is no such prefix."""
    ours, theirs = (next((one.name for one in side if one.role == "embedding"), "") for side in (before, after))
    if ours and theirs.endswith(f".{ours}"):
        return "", theirs.removesuffix(ours)
    return (ours.removesuffix(theirs), "") if theirs and ours.endswith(f".{theirs}") else ("", "")


def without(prefix: str, found: Mapping[tuple[str, str], Template]) -> dict[tuple[str, str], Template]:
    """Templates under the names that they have without a prefix; those that lack it keep theirs."""
    return {(name.removeprefix(prefix), variant): one for (name, variant), one in found.items()}


def aspects(before: Template, after: Template) -> Iterator[str]:
    """The members of `ASPECTS` in which a template differs between two sides."""
    for aspect in ASPECTS[:-1]:
        if getattr(before, aspect) != getattr(after, aspect):
            yield aspect
    if before.layers == after.layers and before.experts == after.experts and before.count != after.count:
        yield "count"


def stored_tensors(groups: Iterable[Group]) -> Iterator[tuple[str, TensorSpec]]:
    """Every tensor that the groups' parameters are stored as, by name."""
    for group in groups:
        specs = group.specs
        for name in group.names:
            yield from zip(tensors(group.codec.dialect, name, specs), specs.values(), strict=True)
