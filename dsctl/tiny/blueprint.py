"""A small checkpoint without its values: sizes, config, and the file of every tensor. Pure, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from dsctl import models, releases
from dsctl.checkpoint.checkpoint import MAX_PARAMS
from dsctl.checkpoint.released import quantized_roles, stored_codec
from dsctl.codecs.codec import Codec
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.core.config_fields import QUANTIZATION, edited, text_fields
from dsctl.core.errors import UsageError
from dsctl.core.header import TensorSpec
from dsctl.core.params import Family, Param, Traits
from dsctl.layouts.naming import DIALECTS
from dsctl.releases import Release

# A size: its default, and the field of config.json with the real one.
SIZES = {
    "layers": (3, "num_hidden_layers"),
    "experts": (8, "n_routed_experts"),
    "hidden": (512, "hidden_size"),
    "heads": (4, "num_attention_heads"),
    "vocab": (2048, "vocab_size"),
    "intermediate": (1024, "intermediate_size"),
    "moe_intermediate": (256, "moe_intermediate_size"),
}
DEFAULTS = {name: default for name, (default, _) in SIZES.items()}
# The sizes that grow together, by these factors, to reach a requested checkpoint size.
WIDTHS = ("hidden", "heads", "vocab", "intermediate", "moe_intermediate")
FACTORS = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
RANKS = (
    "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "index_head_dim",
)  # fmt: skip
BLOCK = 128
# Roles whose parameters have files of their own after all others.
ENGRAM = ("engram tables", "engram")
# The least number of files, and a file size in bytes, near that of the V3 release.
SHARDS, SHARD_BYTES = 4, 4_300_000_000


@dataclass(frozen=True, slots=True)
class TinyRecipe:
    """The sizes of a small checkpoint. A size of None takes a small default, or brings the total near `size` bytes.

    `aligned` makes every matrix of whole 128x128 blocks, which some loaders need; `bf16` stores all weights in BF16.
    """

    layers: int | None = None
    experts: int | None = None
    hidden: int | None = None
    heads: int | None = None
    vocab: int | None = None
    intermediate: int | None = None
    moe_intermediate: int | None = None
    size: int | None = None
    shards: int | None = None
    seed: int = 0
    mtp: bool = True
    bf16: bool = False
    aligned: bool = False


class TensorPlace(NamedTuple):
    """The place of a stored tensor: its file's number, its name, and its dtype and shape."""

    file: int
    tensor: str
    spec: TensorSpec


class StoredParam(NamedTuple):
    """A parameter, the codec that stores it, and the place of each stored part."""

    param: Param
    codec: Codec
    places: dict[str, TensorPlace]


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A checkpoint without its values. `counts_values`: the index counts as its release's does, see `index`. `bare`:
    the headers have no metadata."""

    release: str
    config: dict[str, Any]
    sizes: dict[str, int]
    stored: tuple[StoredParam, ...]
    files: tuple[str, ...]
    counts_values: bool = False
    other_files: tuple[str, ...] = ()
    bare: bool = False

    @property
    def places(self) -> Iterator[TensorPlace]:
        return (place for item in self.stored for place in item.places.values())

    @property
    def nbytes(self) -> int:
        return sum(place.spec.nbytes for place in self.places)

    def index(self) -> dict[str, Any]:
        """The index of the files. Its `total_size` counts values at two bytes each if its release's does."""
        weights = {place.tensor: self.files[place.file] for place in self.places}
        total = 2 * sum(place.spec.values for place in self.places) if self.counts_values else self.nbytes
        return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weights.items()))}


def blueprint(name: str, recipe: TinyRecipe) -> Blueprint:
    """The small checkpoint of a release.

    Raises:
        UsageError: no such release, or sizes that are impossible for it.
    """
    release = releases.find(name)
    quantized = {} if recipe.bf16 else quantized_roles(release)
    sizes = _sizes(release, recipe, quantized)
    config = _config(release.config, sizes, recipe)
    families = models.recognise(config).families(config, _traits(release, recipe))
    _refuse(families, recipe)
    params = sorted((param for family in families for param in family.params()), key=_order)
    pairs = [(param, _as_released(stored_codec(param.family, quantized), param.family, release)) for param in params]
    shards = recipe.shards or max(
        SHARDS, -(-sum(_family_bytes(family, quantized) for family in families) // SHARD_BYTES)
    )
    stored = tuple(_stored(pairs, shards))
    count = 1 + max(place.file for item in stored for place in item.places.values())
    files = tuple(f"model-{number:05d}-of-{count:06d}.safetensors" for number in range(1, count + 1))
    counts_values = release.storage.counts_values and not recipe.bf16
    storage = release.storage
    return Blueprint(release.name, config, sizes, stored, files, counts_values, storage.other_files, storage.bare)


def _as_released(codec: Codec, family: Family, release: Release) -> Codec:
    """The codec, without rounded scales if the release's are not rounded despite its `scale_fmt`."""
    if isinstance(codec, Fp8Block) and family.template in release.storage.scales_apart:
        return replace(codec, scale_fmt="float32")
    return codec


def _nbytes(shape: tuple[int, ...], codec: Codec) -> int:
    return sum(spec.nbytes for spec in codec.specs(shape).values())


def _family_bytes(family: Family, quantized: Mapping[str, Codec]) -> int:
    return family.count * _nbytes(family.shape, stored_codec(family, quantized))


def _config(real: Mapping[str, Any], sizes: Mapping[str, int], recipe: TinyRecipe) -> dict[str, Any]:
    """The release's config with small dimensions; every key that is still true is kept."""
    small = models.recognise(real).tiny(real, sizes)
    if recipe.aligned:
        said = text_fields(small)
        sizes = {field: -(-said[field] // BLOCK) * BLOCK for field in RANKS if said.get(field)}
        if "qk_head_dim" in said:
            sizes["qk_head_dim"] = sizes["qk_nope_head_dim"] + sizes["qk_rope_head_dim"]
        small = edited(small, sizes)
    if recipe.bf16:
        small = edited(small, {}, [QUANTIZATION])
    if not recipe.mtp:
        small = models.recognise(real).without_mtp(small)
    return small


def _refuse(families: tuple[Family, ...], recipe: TinyRecipe) -> None:
    if sum(family.count for family in families) > MAX_PARAMS:
        raise UsageError(f"more than {MAX_PARAMS:,} parameters", hint="fewer --layers or --experts")
    for family in families if recipe.aligned else ():
        if family.quantizable and any(size % BLOCK for size in family.shape):
            shape = " x ".join(map(str, family.shape))
            raise UsageError(f"--aligned: {family.template} would be {shape}", hint=f"choose multiples of {BLOCK}")


def _traits(release: Release, recipe: TinyRecipe) -> Traits:
    return release.storage.traits if recipe.mtp else replace(release.storage.traits, drafter="", stages=0)


def _sizes(release: Release, recipe: TinyRecipe, quantized: Mapping[str, Codec]) -> dict[str, int]:
    asked, real, traits = asdict(recipe), release.config, _traits(release, recipe)
    usual = {**DEFAULTS, **models.recognise(real).usual_sizes}
    given = {name: asked[name] for name in SIZES if asked[name] is not None}
    if recipe.size is None:
        return usual | given

    def total(sizes: Mapping[str, int]) -> int:
        families = models.recognise(real).families(_config(real, sizes, recipe), traits)
        return sum(_family_bytes(family, quantized) for family in families)

    largest = {name: int(text_fields(real).get(field) or 1) for name, (_, field) in SIZES.items()}
    # Not every architecture calls the field of experts the same.
    largest["experts"] = max(1, *(family.experts for family in models.recognise(real).families(real, traits)))
    return _grown(recipe.size, usual, largest, given, total)


def _grown(
    size: int,
    usual: Mapping[str, int],
    largest: Mapping[str, int],
    given: Mapping[str, int],
    total: Callable[[Mapping[str, int]], int],
) -> dict[str, int]:
    """The widest layers that fit in `size` bytes, then as many experts and layers as still fit; none above the real."""
    wider = [{name: min(int(usual[name] * factor), largest[name]) for name in WIDTHS} for factor in FACTORS]
    fitting = [sizes for widths in wider if total(sizes := {**usual, **widths, **given}) <= size]
    if not fitting:
        smallest = total({**usual, **wider[0], **given})
        raise UsageError(f"--size: {size:,} bytes is too small", hint=f"the smallest takes {smallest:,} bytes")
    sizes = fitting[-1]
    for name, step in (("experts", 2), ("layers", 1)):
        if name not in given:
            now = total(sizes)
            each = max(total(sizes | {name: sizes[name] + step}) - now, 1)
            sizes[name] = max(sizes[name], min(sizes[name] + (size - now) // each * step, largest[name]))
    return sizes


def _order(param: Param) -> tuple[bool, float]:
    """The order of releases: embedding, layers, last norm and head, then the MTP layer, and n-gram tables last."""
    if param.role in ENGRAM:
        return True, float("inf")
    if param.layer is not None:
        return param.family.mtp, param.layer
    return False, -1 if param.role == "embedding" else float("inf")


def _stored(pairs: list[tuple[Param, Codec]], shards: int) -> Iterator[StoredParam]:
    """Choose files. A scale is stored with the next quantized matrix: some scales are in a later file than their
    weights, as in the V3 release."""
    files = split([_nbytes(param.shape, codec) for param, codec in pairs], shards)
    ahead = iter([file for (_, codec), file in zip(pairs, files, strict=True) if len(codec.parts) > 1][1:])
    for (param, codec), file in zip(pairs, files, strict=True):
        following = next(ahead, file) if len(codec.parts) > 1 else file
        numbers = (file, *(following for _ in codec.parts[1:]))
        specs = codec.specs(param.shape)
        places = {
            part: TensorPlace(number, DIALECTS[codec.dialect].tensor(param.name, part), specs[part])
            for part, number in zip(codec.parts, numbers, strict=True)
        }
        yield StoredParam(param, codec, places)


def split(sizes: list[int], shards: int) -> list[int]:
    """A file number for each size, in order, so that the files are about equal and none is empty."""
    numbers: list[int] = []
    left, filled, number = sum(sizes), 0, 0
    for place, size in enumerate(sizes, 1):
        numbers.append(number)
        filled += size
        if number < shards - 1 and (filled * (shards - number) >= left or len(sizes) - place < shards - number):
            left, filled, number = left - filled, 0, number + 1
    return numbers
