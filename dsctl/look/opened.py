"""What an opened checkpoint holds, by its headers. No weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from dsctl import releases
from dsctl.checkpoint.checkpoint import Checkpoint, open_checkpoint
from dsctl.checkpoint.pieces import Survey
from dsctl.codecs import Codec
from dsctl.codecs.plain import Plain
from dsctl.core.errors import SourceError
from dsctl.core.header import TensorRef, TensorSpec
from dsctl.core.params import OTHER, Family, Param
from dsctl.look.description import Description, Group, whole
from dsctl.look.names import folded
from dsctl.stores import store_at
from dsctl.stores.hub import is_repository
from dsctl.stores.objects import is_url

# Faults that other fields of a description tell.
_TOLD = ("missing-tensor", "extra-tensor", "missing-rank")


def of_place(place: str) -> Description:
    """What the folder, file, repository or store of this name holds.

    Raises:
        SourceError: there is none, or it is unreadable. FormatError: a file's structure is broken.
    """
    if not os.path.exists(place):
        _refuse_unknown(place)
    return of_checkpoint(open_checkpoint(store_at(place)), place)


def _refuse_unknown(source: str) -> None:
    if not is_repository(source) and not is_url(source):
        near = ", ".join(releases.nearest(source)[:4])
        hint = f"releases with a similar name: {near}; `dsctl models` lists all"
        raise SourceError(f"{source}: no such folder, and no release of that name", hint=hint)


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
