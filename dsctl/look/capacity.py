"""What it takes to hold and serve a checkpoint: bytes per rank, cache, disk, and which cuts go through blocks. Numbers.

How ranks share a model: dsctl/layouts/ranks.py. docs/costs.md tells more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dsctl.checkpoint.groups import Group
from dsctl.checkpoint.quantization import quantization_config
from dsctl.codecs import CODECS
from dsctl.codecs.codec import Codec
from dsctl.core.errors import UsageError
from dsctl.core.params import Family, Param
from dsctl.layouts.ranks import Ranks, main_layers, stages
from dsctl.layouts.ranks import check as check_ranks
from dsctl.look.costs import BF16, Attention, Kept, attention, kept
from dsctl.look.description import Description
from dsctl.plan import recipes
from dsctl.plan.cuts import Cut, illegal
from dsctl.plan.formats import Formats, known_formats
from dsctl.plan.recipes import Recipe
from dsctl.plan.request import KEEP, RECIPE, Request

STORED = "as stored"
# Tokens of context where nothing says how many.
UNKNOWN_CONTEXT = 4096
USUAL_TP = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Cache:
    """What sequences keep: `batch` of them with `context` tokens each, entries in a format of `CACHE_FORMATS`.

    `why` says where `context` comes from: asked, published, max_position_embeddings or default.
    """

    attention: Attention | None
    context: int
    batch: int = 1
    format: str = BF16
    why: str = "asked"

    @classmethod
    def of(cls, description: Description, context: int | None, batch: int, format_: str | None) -> Cache:
        """The cache of a description, in the format usual for its attention where none is given.

        Without a context it is the published one, as far as the config allows it; if none is known, what the config
        allows; if it does not say, 4,096.
        """
        published, longest, why = description.published_context, description.positions, "asked"
        if context is None and published is not None and published <= (longest or published):
            context, why = published, "published"
        elif context is None:
            context, why = (longest, "max_position_embeddings") if longest else (UNKNOWN_CONTEXT, "default")
        found = attention(description)
        return cls(found, context, batch, format_ or (found.usual if found else BF16), why)

    def layer_bytes(self, layer: int) -> int:
        """Bytes that one sequence keeps for one main layer."""
        return self.attention.kept(layer, self.context, self.format).nbytes if self.attention else 0

    @property
    def sequence(self) -> Kept:
        """What one sequence keeps, all main layers together."""
        return kept(self.attention, self.context, self.format) if self.attention else Kept()


class Load(NamedTuple):
    """The fullest rank: bytes of weights and of caches."""

    ranks: Ranks
    weights: int
    cache: int

    @property
    def nbytes(self) -> int:
        return self.weights + self.cache


def check(description: Description, ranks: Ranks) -> None:
    """Refuse sizes that do not fit together or the model; raises as `dsctl.layouts.ranks.check`."""
    check_ranks((group.family for group in description.known), ranks, description.name)


def check_formats(names: Iterable[str]) -> None:
    """Refuse names of formats that there are not.

    Raises:
        UsageError: with the first of them.
    """
    unknown = [name for name in names if name not in CODECS]
    if unknown:
        raise UsageError(f"--to: {unknown[0]!r} is unknown", hint=f"known: {', '.join(CODECS)}")


def formats(
    description: Description, names: tuple[str, ...] = (), asked: tuple[Recipe, ...] = ()
) -> dict[str, Formats]:
    """The choice for codecs and recipes by name, and for what is stored now: those named, or the two of most releases.

    Raises:
        UsageError: a name is unknown. PlanError: a recipe does not fit the parameters, or loaders.
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
    """Refuse what a conversion would refuse."""
    recipes.check(to.rules, (param for group in description.known for param in group.params))
    quantization_config([(param, codec) for group, codec in stored(description, to) for param in group.params])


def stored(description: Description, to: Formats) -> list[tuple[Group, Codec]]:
    """Every group and how it would be stored after a conversion; groups are parted where a recipe parts them."""
    return [chosen for group in description.known for chosen in _parted(group, to)]


def _parted(group: Group, to: Formats) -> Iterator[tuple[Group, Codec]]:
    """The parts of a group for which there is one answer, and that."""
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
    """Tensor bytes on disk in a format, kept scales included."""
    tensors = sum(each for formats in roles(description, to).values() for each in formats.values())
    return tensors + kept_scales(description, to)


def roles(description: Description, to: Formats) -> dict[str, dict[str, int]]:
    """Tensor bytes by role and format, kept scales left out."""
    found: dict[str, dict[str, int]] = {}
    for group, codec in stored(description, to):
        formats = found.setdefault(group.family.group, {})
        formats[codec.name] = formats.get(codec.name, 0) + group.count * nbytes(codec, group.family.shape)
    return found


def kept_scales(description: Description, to: Formats) -> int:
    """Bytes of the original scales that a decoding from blocks keeps aside, to restore them one day.

    Of scales that follow from the values, as those of V4's experts do, the odd ones alone are kept: they do not count.
    """
    total = 0
    for group, codec in () if to.rules else stored(description, to):
        if group.codec.keeps_scales and codec.plain and not group.codec.scales_follow:
            _, *scales = group.specs.values()
            total += group.count * sum(scale.nbytes for scale in scales)
    return total


def load(description: Description, ranks: Ranks, to: Formats, cache: Cache) -> Load:
    """The fullest rank. All heads share what is cached: every tensor-parallel rank keeps the whole of it."""
    stage_of_layer = stage_of(description, ranks.pp)
    weights, caches = [0] * ranks.pp, [0] * ranks.pp
    for group, codec in stored(description, to):
        each = nbytes(codec, part(group.family, ranks)) * max(1, group.family.experts // ranks.ep)
        if not group.layers:
            weights[-1 if group.family.last else 0] += each
        for layer in group.layers:
            weights[stage_of_layer.get(layer, ranks.pp - 1)] += each
    sequences = -(-cache.batch // ranks.copies)
    for layer, stage in stage_of_layer.items():
        caches[stage] += sequences * cache.layer_bytes(layer)
    fullest = max(range(ranks.pp), key=lambda stage: weights[stage] + caches[stage])
    return Load(ranks, weights[fullest], caches[fullest])


def stage_of(description: Description, pp: int) -> dict[int, int]:
    """The stage of every main layer; MTP layers go with the last."""
    return stages(main_layers(group.family for group in description.known), pp)


def part(family: Family, ranks: Ranks) -> tuple[int, ...]:
    """The shape of what one rank holds of a parameter, the largest where it does not divide."""
    cut = ranks.cut(family)
    if family.split is None:
        return family.shape
    shape = list(family.shape)
    shape[family.split] = -(-shape[family.split] // cut)
    return tuple(shape)


def cuts(description: Description, ranks: Ranks, to: Formats) -> Iterator[Cut]:
    """The cuts that cannot be made: heads, groups or a length do not divide, or a part would begin within a block."""
    families = ((group.family, codec) for group, codec in stored(description, to))
    model = description.contents.model
    yield from illegal(families, ranks, model.units(description.config) if model else ())
