"""A checkpoint as its files describe it: config, index and headers in, parameters and stored pieces out. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple

from dsctl.checkpoint.drafters import is_alone, without_model
from dsctl.checkpoint.generic import Generic, generic
from dsctl.checkpoint.grafts import Graft
from dsctl.checkpoint.matching import Contents, regular, survey
from dsctl.checkpoint.pieces import Fault, Survey
from dsctl.checkpoint.reading import read_header
from dsctl.codecs import readable
from dsctl.codecs.codec import Codec
from dsctl.codecs.plain import FLOATS, Plain
from dsctl.core.amounts import plural, size
from dsctl.core.config_fields import quantization_of
from dsctl.core.errors import FormatError
from dsctl.core.header import Header, TensorRef, TensorSpec
from dsctl.core.params import MTP, NO_DRAFTER, PLAIN_TRAITS, Drafter, Family, Param, Published, Traits, drafter_of
from dsctl.core.visible import shortened
from dsctl.layouts.layout import Layout
from dsctl.layouts.manifests import Manifest
from dsctl.layouts.recognition import recognise
from dsctl.layouts.transformers import first_expert
from dsctl.models.model import Model
from dsctl.stores import Store

MAX_PARAMS = 4_000_000
# The largest surplus of described parameters over stored tensors: listing each one as missing takes time.
UNHELD_PARAMS = 500_000
ORIGINAL = "original.dsctl"


class View(NamedTuple):
    """The pieces of a checkpoint that is a view of a different one: they cannot be found by the view's own names.

    A graft also has the `specs` of its tensors, the codecs that its base `had` for the parameters whose place others
    take, their `homes` (files, by parameter or by tensor; "" if unknown), and, for an unknown architecture, `generic`.
    """

    layout: Layout
    survey: Survey
    specs: Mapping[str, TensorSpec] | None = None
    had: Mapping[str, Codec] = MappingProxyType({})
    homes: Mapping[str, str] = MappingProxyType({})
    generic: Generic | None = None


@dataclass
class Checkpoint:
    """A checkpoint as its files describe it; `survey` matches it against its architecture.

    `known_traits` are set for a view of a different checkpoint, because the headers are the other one's. `asked` are
    globs of unquantized matrices that may be quantized although the architecture is unknown. `grafts` say which
    parameters are those of other checkpoints.
    """

    store: Store
    files: dict[str, int]
    config: dict[str, Any] | None
    model: Model | None
    headers: dict[str, Header]
    faults: list[Fault]
    index: dict[str, str] | None
    total_size: int | None
    manifests: dict[str, Manifest]
    view: View | None = None
    known_traits: Traits | None = None
    asked: tuple[str, ...] = ()
    grafts: tuple[Graft, ...] = ()

    def __repr__(self) -> str:
        tensors = sum(len(header.names) for header in self.headers.values())
        held = f"{plural(tensors, 'tensor')} in {plural(len(self.headers), 'file')}, {size(self.nbytes)}"
        return f"<Checkpoint {shortened(self.store.place)}: {held}>"

    @cached_property
    def layout(self) -> Layout:
        """The layout of its parameters.

        Raises:
            FormatError: the manifests of its ranks contradict each other.
        """
        if self.view is not None:
            return self.view.layout
        return recognise(self.headers, self.manifests, lambda: self.described, self.store.place)

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """Every tensor of the headers by name, whatever file it is in."""
        if self.view is not None and self.view.specs is not None:
            return dict(self.view.specs)
        specs: dict[str, TensorSpec] = {}
        for header in self.headers.values():
            specs.update(zip(header.names, header.specs, strict=True))
        return specs

    @cached_property
    def traits(self) -> Traits:
        """Facts about the architecture that names and dtypes of its tensors show, including tensors of lost files."""
        if self.known_traits is not None or self.model is None or self.config is None:
            return self.known_traits or PLAIN_TRAITS
        return self.model.traits(self.config, self._named)

    @property
    def _named(self) -> dict[str, TensorSpec]:
        """Every tensor of headers and index by name, the first of stacked experts as one of its own."""
        return dict.fromkeys(self.index or (), TensorSpec("", ())) | self.specs | first_expert(self.specs)

    @cached_property
    def generic(self) -> Generic | None:
        """The parameters that the headers show if the architecture is unknown; None if it is known, or for ranks.

        Raises:
            FormatError: a name is in two files, or the config declares an absurd block.
        """
        if self.view is not None:
            return self.view.generic
        if (self.model is not None and self.config is not None) or not self.layout.published:
            return None
        stored = self.catalogue.get("", {}).items()
        return generic({name: ref.spec for name, ref in stored}, self.quantization, self.asked)

    @property
    def families(self) -> tuple[Family, ...]:
        """The parameter families: those of the architecture, or, if it is unknown, those that the headers show.

        Raises:
            FormatError: as `generic`; or a shape field of the config is missing or absurd.
        """
        if self.generic is not None:
            return self.generic.families
        return self._drafts if self.alone else self.described

    @cached_property
    def described(self) -> tuple[Family, ...]:
        """The architecture's parameter families, in a drafter's folder those of its model, too; empty if the
        architecture is unknown."""
        return _described(self)

    @cached_property
    def alone(self) -> bool:
        """Whether it is a drafter without its model: every stored tensor is the drafter's.

        Raises:
            FormatError: a shape field of the config is missing or absurd.
        """
        if self.view is not None or self.model is None:
            return False
        return is_alone(drafter_of(self.described, self.traits.drafter or MTP), self.headers, self.index)

    @cached_property
    def _drafts(self) -> tuple[Family, ...]:
        return without_model(self.described, self.layout, {*self.specs, *(self.index or ())})

    @cached_property
    def drafter(self) -> Drafter:
        """The drafter that its tensors show, including tensors of lost files.

        Raises:
            FormatError: a shape field of the config is missing or absurd.
        """
        if self.model is None or self.config is None or self.generic is not None:
            return NO_DRAFTER
        if self.view is not None or self.layout.shares is not None or not self.layout.published:
            return self._held_drafter
        return self.model.stored_drafter(self.config, self._named)

    @property
    def _held_drafter(self) -> Drafter:
        """The drafter of its families, as far as parameters are stored."""
        held = self.survey.pieces
        found = [family for family in self.families if family.mtp and any(name in held for name in family.names())]
        return drafter_of(found, self.traits.drafter or MTP)

    @cached_property
    def params(self) -> list[Param]:
        return [param for family in self.families for param in family.params()]

    @cached_property
    def catalogue(self) -> dict[str, dict[str, TensorRef]]:
        """Every stored tensor by shard and name. If two files have the same name, the index decides."""
        catalogue: dict[str, dict[str, TensorRef]] = {}
        for file, header in self.headers.items():
            names = catalogue.setdefault(self.layout.shard_of(file), {})
            if self.index is None and names.keys().isdisjoint(header.tensors):
                names.update(header.tensors)
                continue
            for name, ref in header.tensors.items():
                if self._owns(file, name, name in names):
                    names[name] = ref
        return catalogue

    def _owns(self, file: str, name: str, taken: bool) -> bool:
        if self.index is not None and name in self.index:
            return self.index[name] == file
        if taken:
            raise FormatError(f"{self.store.place}: tensor {name} is in {file} and in another file")
        return True

    @property
    def quantization(self) -> dict[str, Any] | None:
        return quantization_of(self.config or {})

    @cached_property
    def codecs(self) -> tuple[Codec, ...]:
        """The codecs to try, those that the config declares first."""
        if self.generic is not None:
            return self.generic.codecs
        natives = dict.fromkeys(family.dtype for family in self.families if family.dtype not in FLOATS)
        return *readable(self.quantization, self.published.values()), *map(Plain, natives)

    @property
    def published(self) -> Mapping[str, Published]:
        """How releases of its architecture store quantized roles."""
        return {} if self.model is None or self.config is None else self.model.published(self.config, self.traits)

    @cached_property
    def contradictions(self) -> tuple[Fault, ...]:
        """Impossible fields of the config, and fields that the tensors contradict.

        Raises:
            FormatError: a shape field of the config is missing or absurd.
        """
        if self.model is None or self.config is None:
            return ()
        found = self.model.contradictions(self.config, self.specs, self.traits)
        return tuple(Fault(one.code, "config.json", one.what) for one in found)

    @property
    def contents(self) -> Contents:
        """The two sides to match: the stored tensors and the expected parameters."""
        return Contents(
            self.store.place, self.model is not None, self.families, self.layout, self.codecs, self.catalogue,
            self.quantization, tuple(self.manifests),
        )  # fmt: skip

    @cached_property
    def survey(self) -> Survey:
        if self.view is not None:
            return self.view.survey
        if self.generic is not None:
            return self.generic.survey(self.contents, self.config is not None)
        return survey(self.contents)

    @cached_property
    def stored_codecs(self) -> tuple[Codec, ...]:
        """The codecs of its stored parameters, each once."""
        return tuple(dict.fromkeys(piece.codec for pieces in self.survey.pieces.values() for piece in pieces))

    @property
    def values_stored(self) -> Iterator[tuple[Codec, int]]:
        """Each piece's codec, and the number of values in its first stored part."""
        return ((one.codec, one.refs[0].spec.values) for pieces in self.survey.pieces.values() for one in pieces)

    @cached_property
    def regular(self) -> dict[Family, Codec] | None:
        """How each family is stored, or None if `survey` must look at every tensor: see `matching.regular`."""
        if self.generic is not None or self.view is not None:
            return None
        clash = len(self.specs) != sum(len(header.names) for header in self.headers.values())
        return None if clash or not self.families else regular(self.contents, self.specs)

    @cached_property
    def nbytes(self) -> int:
        """The bytes of all stored tensors: the correct `total_size` of the index."""
        return sum(header.nbytes for header in self.headers.values())

    @cached_property
    def counts_values(self) -> bool:
        """Whether the index's `total_size` is twice the number of stored values, scales included.

        DeepSeek-V3's own index says 1,369,062,772,000 for 684,531,386,000 values (revision e815299b); its tensors take
        688,574,839,360 bytes. No loader needs the field.
        """
        kinds = (kind for header in self.headers.values() for kind in header.kinds.items())
        return self.total_size == 2 * sum(spec.values * count for spec, count in kinds)

    @property
    def tensors(self) -> Iterator[TensorRef]:
        for names in self.catalogue.values():
            yield from names.values()

    @cached_property
    def original(self) -> Header | None:
        """The header of the side file with the scales that a conversion replaced, or None."""
        if ORIGINAL not in self.files:
            return None
        return read_header(self.store, ORIGINAL, self.files[ORIGINAL])


def _described(checkpoint: Checkpoint) -> tuple[Family, ...]:
    """The parameter families that the config describes, unless there are absurdly many."""
    if checkpoint.model is None or checkpoint.config is None:
        return ()
    families = checkpoint.model.families(checkpoint.config, checkpoint.traits)
    described = sum(family.count for family in families)
    if described > MAX_PARAMS:
        raise FormatError(f"config.json: describes more than {MAX_PARAMS:,} parameters")
    held = sum(len(header.names) for header in checkpoint.headers.values())
    if described > UNHELD_PARAMS + 20 * held:
        raise FormatError(f"config.json: describes {described:,} parameters, but the files hold only {held:,} tensors")
    return families
