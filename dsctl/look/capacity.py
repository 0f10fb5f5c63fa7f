"""The bytes that storing and serving a checkpoint takes: disk, ranks, KV cache; and illegal cuts. Numbers only.

dsctl/layouts/ranks.py defines how ranks share a model; docs/costs.md explains the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dsctl.checkpoint.groups import Group
from dsctl.checkpoint.quantization import quantization_config
from dsctl.codecs import CODECS
from dsctl.codecs.codec import CHOSEN, Codec
from dsctl.core.choices import choose
from dsctl.core.errors import UsageError
from dsctl.core.params import Family, Param, Unit
from dsctl.layouts.ranks import Ranks, main_layers, stages
from dsctl.layouts.ranks import check as check_ranks
from dsctl.look.cache_formats import BF16, Kept
from dsctl.look.costs import Attention, attention, kept
from dsctl.look.description import Description
from dsctl.look.places import HOST
from dsctl.plan import recipes
from dsctl.plan.cuts import Cut, illegal
from dsctl.plan.formats import Formats, known_formats
from dsctl.plan.recipes import Recipe
from dsctl.plan.request import KEEP, RECIPE, Request

STORED = "as stored"
# The context in tokens if neither a release nor a config gives one.
UNKNOWN_CONTEXT = 4096
USUAL_TP = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Cache:
    """The KV cache of `batch` sequences with `context` tokens each, entries in a format of `CACHE_FORMATS`.

    `why` is the origin of `context`: asked, published, max_position_embeddings or default.
    """

    attention: Attention | None
    context: int
    batch: int = 1
    format: str = BF16
    why: str = "asked"

    @classmethod
    def of(cls, description: Description, context: int | None, batch: int, format_: str | None) -> Cache:
        """The cache of a description. Without a format, it is the usual one of the description's attention.

        Without a context, the cache takes the published context if the config allows it, then the longest context that
        the config allows, then 4,096 tokens.

        Raises:
            UsageError: engines do not store the cache of this attention in the format.
        """
        published, longest, why = description.published_context, description.positions, "asked"
        if context is None and published is not None and published <= (longest or published):
            context, why = published, "published"
        elif context is None:
            context, why = (longest, "max_position_embeddings") if longest else (UNKNOWN_CONTEXT, "default")
        found = attention(description)
        if found and format_ and format_ not in found.formats:
            what = f"{description.name}: its KV cache is not stored in {format_}"
            raise UsageError(what, hint=f"choose {' or '.join(found.formats)}")
        return cls(found, context, batch, format_ or (found.usual if found else BF16), why)

    def layer_bytes(self, layer: int) -> int:
        """Bytes of one sequence in one main layer."""
        return self.attention.kept(layer, self.context, self.format).nbytes if self.attention else 0

    @property
    def sequence(self) -> Kept:
        """Bytes of one sequence in all main layers."""
        return kept(self.attention, self.context, self.format) if self.attention else Kept()


class Stage(NamedTuple):
    """The share of one rank of a pipeline stage: main layers, bytes of weights, bytes of cache per sequence."""

    layers: int
    weights: int
    sequence: int


class Load(NamedTuple):
    """The bytes that ranks hold, stage by stage; each rank caches `sequences` sequences of the batch."""

    ranks: Ranks
    stages: tuple[Stage, ...]
    sequences: int

    @property
    def fullest(self) -> Stage:
        """The stage whose ranks hold most, weights and cache together."""
        return max(self.stages, key=lambda stage: stage.weights + self.sequences * stage.sequence)

    @property
    def weights(self) -> int:
        """Bytes of weights on the fullest rank."""
        return self.fullest.weights

    @property
    def cache(self) -> int:
        """Bytes of cache on the fullest rank."""
        return self.sequences * self.fullest.sequence

    @property
    def nbytes(self) -> int:
        return self.weights + self.cache


def check(description: Description, ranks: Ranks) -> None:
    """Refuse sizes that contradict each other or the model; raises as `dsctl.layouts.ranks.check`."""
    check_ranks((group.family for group in description.known), ranks, description.name)


def check_formats(names: Iterable[str]) -> None:
    """Refuse unknown names of formats.

    Raises:
        UsageError: with the first of them.
    """
    for name in names:
        choose(name, CODECS, "format", "--to")


def formats(
    description: Description, names: tuple[str, ...] = (), asked: tuple[Recipe, ...] = ()
) -> dict[str, Formats]:
    """The formats to consider, by name: as stored, then the codecs `names` and the recipes `asked`.

    Without either, bf16 and fp8-block follow, unless the checkpoint is stored so.

    Raises:
        UsageError: a name is unknown. PlanError: the parameters or the loaders do not support a recipe.
    """
    check_formats(names)
    stored = {group.codec for group in description.known if group.family.quantizable}
    usual = () if asked else tuple(name for name in ("bf16", "fp8-block") if {name} != {one.name for one in stored})
    known = description.contents
    found = {STORED: known_formats(known, Request(KEEP))}
    found |= {name: known_formats(known, Request(name)) for name in names or usual}
    for recipe in asked:
        rules = tuple((rule.role, rule.match, rule.format) for rule in recipe.rules)
        found[recipe.name] = known_formats(known, Request(RECIPE, rules=rules))
        _check(description, found[recipe.name])
    return found


def _check(description: Description, to: Formats) -> None:
    """Refuse a recipe that a conversion would refuse."""
    recipes.check(to.rules, (param for group in description.known for param in group.params))
    quantization_config([(param, codec) for group, codec in stored(description, to) for param in group.params])


def stored(description: Description, to: Formats) -> list[tuple[Group, Codec]]:
    """Every group with its codec after a conversion; a group that a recipe divides yields one pair per codec."""
    return [chosen for group in description.known for chosen in _parted(group, to)]


def _parted(group: Group, to: Formats) -> Iterator[tuple[Group, Codec]]:
    """The parts of a group that get the same codec, with that codec."""
    if not any(rule.match for rule in to.rules):
        yield group, to.codec(Param(group.family.template, group.family, None, None), group.codec)
        return
    found: dict[Codec, list[Param]] = {}
    for param in group.params:
        found.setdefault(to.codec(param, group.codec), []).append(param)
    yield from ((group.part(params), codec) for codec, params in found.items())


def nbytes(codec: Codec, shape: tuple[int, ...]) -> int:
    """Bytes of one parameter of this shape."""
    return sum(spec.nbytes for spec in codec.specs(shape).values())


def disk(description: Description, to: Formats) -> int:
    """Tensor bytes on disk in a format, including kept scales."""
    tensors = sum(each for formats in roles(description, to).values() for each in formats.values())
    return tensors + kept_scales(description, to)


def roles(description: Description, to: Formats) -> dict[str, dict[str, int]]:
    """Tensor bytes by role and format, without kept scales."""
    found: dict[str, dict[str, int]] = {}
    for group, codec in stored(description, to):
        formats = found.setdefault(group.family.group, {})
        formats[codec.name] = formats.get(codec.name, 0) + group.count * nbytes(codec, group.family.shape)
    return found


def kept_scales(description: Description, to: Formats) -> int:
    """Bytes of the original scales that a conversion from blocks keeps, so that the way back is exact.

    If scales follow from the values, as those of V4's experts do, only the exceptions are kept. They are not counted.
    """
    total = 0
    for group, codec in () if to.rules else stored(description, to):
        if group.codec.keeps_scales and codec.plain and not group.codec.scales_follow:
            scales = group.codec.specs(group.family.shape).items()
            total += group.count * sum(spec.nbytes for part, spec in scales if part in CHOSEN)
    return total


def table_bytes(stored: Iterable[tuple[Group, Codec]]) -> int:
    """Bytes of the tables of which a token looks up single rows."""
    return sum(group.count * nbytes(codec, group.family.shape) for group, codec in stored if group.family.table)


def load(description: Description, ranks: Ranks, to: Formats, cache: Cache, tables: str = HOST) -> Load:
    """The bytes that ranks hold in a format."""
    return load_of(stored(description, to), ranks, cache, tables)


def load_of(stored: Sequence[tuple[Group, Codec]], ranks: Ranks, cache: Cache, tables: str = HOST) -> Load:
    """The bytes that ranks hold of groups, each stored by its codec; `tables` is one of `PLACES`.

    All heads share the cached vectors, so that every tensor-parallel rank keeps the whole cache of its sequences.
    """
    stage_of_layer = stages(main_layers(group.family for group, _ in stored), ranks.pp)
    layers, weights, sequence = [0] * ranks.pp, [0] * ranks.pp, [0] * ranks.pp
    for group, codec in stored:
        if group.family.table and tables == HOST:
            continue
        each = nbytes(codec, part(group.family, ranks)) * max(1, group.family.experts // ranks.ep)
        if not group.layers:
            weights[-1 if group.family.last else 0] += each
        for layer in group.layers:
            weights[stage_of_layer.get(layer, ranks.pp - 1)] += each
    for layer, stage in stage_of_layer.items():
        layers[stage] += 1
        sequence[stage] += cache.layer_bytes(layer)
    shares = tuple(map(Stage, layers, weights, sequence))
    return Load(ranks, shares, -(-cache.batch // ranks.copies))


def stage_of(description: Description, pp: int) -> dict[int, int]:
    """The pipeline stage of every main layer; MTP layers belong to the last stage."""
    return stages(main_layers(group.family for group in description.known), pp)


def part(family: Family, ranks: Ranks) -> tuple[int, ...]:
    """The shape of one rank's part of a parameter; the largest part if the length does not divide."""
    cut = ranks.cut(family)
    if family.split is None:
        return family.shape
    shape = list(family.shape)
    shape[family.split] = -(-shape[family.split] // cut)
    return tuple(shape)


def cuts(description: Description, ranks: Ranks, to: Formats) -> Iterator[Cut]:
    """The illegal cuts: heads, groups or a length do not divide, or a part would begin within a block."""
    yield from cuts_of(description, stored(description, to), ranks)


def cuts_of(description: Description, stored: Sequence[tuple[Group, Codec]], ranks: Ranks) -> Iterator[Cut]:
    """The illegal cuts of groups, each stored by its codec."""
    yield from illegal(((group.family, codec) for group, codec in stored), ranks, units(description))


def units(description: Description) -> Sequence[Unit]:
    """The heads and groups of the architecture's attention, which a cut keeps whole."""
    model = description.contents.model
    return model.units(description.config) if model else ()
