"""What a checkpoint holds, family by family: of a release by its data, of a folder by its headers. No weights.

The common value that looking verbs work on: which parameters there are, how each is stored, and the totals.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dsctl import models, releases
from dsctl.checkpoint.origin import Origin
from dsctl.checkpoint.pieces import Survey
from dsctl.codecs import Codec, declared
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.plain import Plain
from dsctl.core.errors import FormatError, SourceError
from dsctl.core.header import TensorRef, TensorSpec
from dsctl.core.params import OTHER, Family, Param
from dsctl.releases import Release

if TYPE_CHECKING:
    from dsctl.checkpoint.checkpoint import Checkpoint

# What a folded name calls its numbers, in their order.
MARKS = ("{layer}", "{expert}")
# Faults that other fields of a description tell.
_TOLD = ("missing-tensor", "extra-tensor", "missing-rank")


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters of one family that are stored alike: how many, in which layers, as how many tensors and bytes.

    `some` names them where they are not the whole family.
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
    def values(self) -> int:
        return self.count * self.family.values

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """What one parameter is stored as, by suffix."""
        return self.codec.specs(self.family.shape)


@dataclass(frozen=True, slots=True)
class Description:
    """One checkpoint. `release` is set where it is a published one; `missing` names what the architecture has and the
    files have not, `faults` what else they get wrong; `part` says which ranks' parts are not there."""

    name: str
    place: str
    release: Release | None
    config: Mapping[str, Any]
    model: str | None
    groups: tuple[Group, ...]
    files: int | None = None
    missing: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    part: str = ""

    @property
    def kind(self) -> str:
        """release, folder (or a file in one), store or repository."""
        return self.origin.kind

    @property
    def origin(self) -> Origin:
        """Where it comes from: dsctl's own data, or the files in a place."""
        if self.release:
            return Origin.of_release(self.release)
        return Origin.of_files("headers and config.json" if self.config else "headers", self.place, self.name)

    @property
    def derived(self) -> bool:
        """Whether its config was not read, but follows from another release's."""
        return self.release is not None and self.release.config_derived

    @property
    def published_context(self) -> int | None:
        """Tokens of context that model cards publish: the release's, or that of all releases with the same shapes."""
        found = {release.context for release in ((self.release,) if self.release else identify(self.config))}
        return found.pop() if len(found) == 1 else None

    @property
    def positions(self) -> int | None:
        """Tokens that the config allows: `max_position_embeddings`, where it is a sensible number."""
        longest = self.config.get("max_position_embeddings")
        return longest if type(longest) is int and 0 < longest < 1 << 32 else None

    @property
    def known(self) -> tuple[Group, ...]:
        """The groups of its architecture's parameters, without tensors that belong to none."""
        return tuple(group for group in self.groups if group.family.role != OTHER)

    @property
    def parameters(self) -> int:
        return sum(group.count for group in self.known)

    @property
    def values(self) -> int:
        return sum(group.values for group in self.known)

    @property
    def main_values(self) -> int:
        """Values without the multi-token-prediction layers."""
        return sum(group.values for group in self.known if not group.family.mtp)

    @property
    def active_values(self) -> int:
        """Values that one token is multiplied with: the experts chosen for it, and no embedding, which is looked up.

        Counted so, releases have the active parameters that their model cards give (V3: 36.6 B, "37B").
        """
        return sum(active(group) for group in self.known)

    @property
    def quantized(self) -> int:
        """Parameters that are stored in a quantized format."""
        return sum(group.count for group in self.known if group.codec.config() is not None)

    @property
    def tensors(self) -> int:
        return sum(group.tensors for group in self.groups)

    @property
    def nbytes(self) -> int:
        return sum(group.nbytes for group in self.groups)


def active(group: Group) -> int:
    """Values of a group that one token is multiplied with."""
    family = group.family
    if family.mtp or family.role == "embedding":
        return 0
    return group.values * family.active // family.experts if family.experts else group.values


def describe(source: str) -> Description:
    """A folder or file, a release by any of its names, or a hub repository; what exists on this machine comes first.

    A release is described from its data, offline; `hf://org/name` asks the hub for it.

    Raises:
        SourceError: none of them, or unreadable. FormatError: a file's structure is broken.
    """
    release = releases.meant(source)
    if release is not None:
        return of_release(release)
    if not os.path.exists(source):
        _refuse_unknown(source)
    from dsctl.checkpoint.checkpoint import open_checkpoint
    from dsctl.stores import store_at

    return of_checkpoint(open_checkpoint(store_at(source)), source)


def _refuse_unknown(source: str) -> None:
    from dsctl.stores.hub import is_repository
    from dsctl.stores.objects import is_url

    if not is_repository(source) and not is_url(source):
        near = ", ".join(releases.nearest(source)[:4])
        hint = f"releases with a similar name: {near}; `dsctl models` lists all"
        raise SourceError(f"{source}: no such folder, and no release of that name", hint=hint)


def of_release(release: Release) -> Description:
    """What a release holds, from its config and how it is known to be stored."""
    model = models.recognise(release.config)
    quantized = _quantized(release)
    groups = tuple(
        whole(family, quantized if quantized and family.quantizable else Plain(family.dtype))
        for family in model.families(release.config)
    )
    return Description(
        release.name, release.repository, release, release.config, model.name, groups, release.storage.files
    )


def whole(family: Family, codec: Codec) -> Group:
    """A family that is all stored alike."""
    specs = codec.specs(family.shape).values()
    nbytes = sum(spec.nbytes for spec in specs)
    return Group(family, codec, family.layers, family.count, family.count * len(specs), family.count * nbytes)


def _quantized(release: Release) -> Codec | None:
    found = declared(release.config.get("quantization_config"))
    if not found or not isinstance(found[0], Fp8Block):
        return next(iter(found), None)
    return replace(found[0], scale_fmt=release.storage.scale_fmt or found[0].scale_fmt)


def of_checkpoint(checkpoint: Checkpoint, name: str) -> Description:
    """What an open checkpoint holds; `name` is what a person calls it."""
    regular = checkpoint.regular
    survey = checkpoint.survey if regular is None else Survey()
    alike = [whole(family, codec) for family, codec in (regular or {}).items()]
    return Description(
        name=name,
        place=checkpoint.store.place,
        release=None,
        config=checkpoint.config or {},
        model=checkpoint.model.name if checkpoint.model else None,
        groups=tuple(alike) or (*_groups(checkpoint), *_others(survey.extra)),
        files=len(checkpoint.headers),
        part=checkpoint.layout.shares.said if checkpoint.layout.shares else "",
        missing=tuple(param.name for param in survey.missing),
        faults=tuple(str(f) for f in checkpoint.known_faults if f.code not in _TOLD),
    )


def _groups(checkpoint: Checkpoint) -> Iterator[Group]:
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
    """Tensors that belong to no parameter, those alike but for their numbers together."""
    found: dict[tuple[str, TensorSpec], list[TensorRef]] = {}
    for ref in extra:
        found.setdefault((folded(ref.name)[0], ref.spec), []).append(ref)
    for (template, spec), refs in sorted(found.items()):
        numbers = (folded(ref.name)[1] for ref in refs)
        layers = tuple(sorted({first for first, *_ in filter(None, numbers)}))
        family = Family(template, spec.shape, OTHER, dtype=spec.dtype, layers=layers)
        nbytes, names = sum(ref.nbytes for ref in refs), tuple(ref.name for ref in refs)
        yield Group(family, Plain(spec.dtype), layers, len(refs), len(refs), nbytes, names)


def folded(name: str) -> tuple[str, tuple[int, ...]]:
    """A name of unknown making for display: its numbers as marks, and the numbers."""
    parts = name.split(".")
    numbers: list[int] = []
    for place, part in enumerate(parts):
        if part.isdecimal() and part.isascii() and len(part) < 10:
            parts[place] = MARKS[min(len(numbers), 1)]
            numbers.append(int(part))
    return ".".join(parts), tuple(numbers)


def identify(config: Mapping[str, Any]) -> tuple[Release, ...]:
    """The releases whose parameters have the names and shapes of this config's, oldest first.

    Raises:
        FormatError: a field that sets a shape is missing or absurd.
    """
    try:
        model = models.recognise(config)
    except FormatError:
        return ()
    families = model.families(config)
    return tuple(
        release
        for release in releases.releases()
        if release.architecture == model.name and model.families(release.config) == families
    )
