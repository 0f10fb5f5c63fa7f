"""Put parameters of one checkpoint in the place of another's.

The result is a view, as a slice is: its pieces are the base's, or, for the parameters that globs name, those of the
other checkpoint, whose files have a prefix in one joined store. Planning and running need no special case. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from dsctl.checkpoint.checkpoint import Checkpoint, View
from dsctl.checkpoint.graft_choice import chosen, refusal, unfit
from dsctl.checkpoint.graft_drafters import check_same, drafter, drafter_params, has, traits_of
from dsctl.checkpoint.graft_generic import generic_view
from dsctl.checkpoint.graft_homes import homes
from dsctl.checkpoint.graft_surveys import check_global_scales, merged, specs_of, survey_of
from dsctl.checkpoint.grafts import Graft, prefixed, taken
from dsctl.checkpoint.nextn import released
from dsctl.checkpoint.opening import open_checkpoint, source_at
from dsctl.checkpoint.pieces import Piece
from dsctl.checkpoint.ranks import check_repeated
from dsctl.core.amounts import plural
from dsctl.core.config_fields import CLERICAL_FIELDS, STORAGE_FIELDS, text_fields
from dsctl.core.errors import FormatError, PlanError
from dsctl.core.params import Param, Traits
from dsctl.stores import CONFIG, INDEX
from dsctl.stores.joined import Joined

# Faults of opening that the survey of the result repeats if they concern it.
_SURVEYED = frozenset({"missing-shard", "index-wrong", "index-unknown"})
# The most config fields that a note names.
NAMED = 8
_HINT = "a graft takes parameters of the same names, shapes and roles; `dsctl diff BASE OTHER` shows what differs"
_NAMES = ("architectures", "model_type")


def grafted(base: Checkpoint, sources: Sequence[tuple[str, Sequence[str]]]) -> Checkpoint:
    """A checkpoint with parameters of others, as a view; `sources` are places, each with globs of parameters.

    If two of them name the same parameter, the later one counts.

    Raises:
        SourceError, FormatError: a place cannot be read, or contradicts itself.
        UsageError, PlanError: globs name nothing, or parameters that do not fit the base.
    """
    opened: dict[str, Checkpoint] = {}
    if not sources:
        return base
    check_repeated(base)
    result = base
    for number, (place, globs) in enumerate(sources):
        if place not in opened:
            opened[place] = _opened(place)
        result = _with(result, released(opened[place], base), tuple(globs), f"graft{number}://")
        renamed = result.grafts[-1].headers is not opened[place].headers
        result.grafts = (*result.grafts[:-1], replace(result.grafts[-1], renamed=renamed))
    for graft in result.grafts:
        if not graft.params:
            what = f"--from {graft.place} {graft.named}: a later --from takes all that it names"
            raise PlanError(what, hint="leave it out, or change the order")
    return result


def _opened(place: str) -> Checkpoint:
    """The checkpoint at a place; errors in its files name the place.

    Raises:
        SourceError, FormatError: it cannot be read, or contradicts itself.
    """
    try:
        other = open_checkpoint(source_at(place))
        check_repeated(other)
        # Sizes in its config that cannot be raise an error here.
        _ = other.params, other.survey
    except FormatError as error:
        if place in error.message:
            raise
        raise FormatError(f"{place}: {error.message}", hint=error.hint, issues=error.issues) from None
    return other


@dataclass(frozen=True)
class _Scion:
    """What is taken: parameters by name, and their pieces in the joined store. `filled` are twins that the other one
    does not store: the base's own tensors that they duplicate."""

    params: dict[str, Param]
    pieces: dict[str, tuple[Piece, ...]]
    filled: dict[str, tuple[Piece, ...]] = field(default_factory=dict)

    @property
    def all(self) -> dict[str, tuple[Piece, ...]]:
        return self.pieces | self.filled


class _Made(NamedTuple):
    """The result of one step: its view, config and traits, and notes."""

    view: View
    config: dict[str, Any] | None
    traits: Traits | None
    notes: tuple[str, ...] = ()


def _with(base: Checkpoint, other: Checkpoint, globs: tuple[str, ...], prefix: str) -> Checkpoint:
    """The base, which may have grafts already, with the parameters of one more checkpoint."""
    named = chosen(other, globs)
    params = {name: param for name, param in named.items() if has(other, name)}
    own: dict[str, tuple[Piece, ...]] = {name: other.survey.pieces[name] for name in params}
    scion = _Scion(params, {name: prefixed(pieces, prefix) for name, pieces in own.items()})
    if base.generic is not None:
        made = _Made(generic_view(base, other, scion.params, scion.pieces), base.config, None)
    else:
        scion, made = _known(base, other, named, scion)
    graft = Graft(
        place=other.store.place,
        revision=other.store.revision,
        globs=globs,
        prefix=prefix,
        params=scion.params,
        nbytes=taken(scion.pieces.values())[1],
        read=taken(scion.pieces.values())[0],
        files=other.files,
        headers=other.headers,
        config=other.config,
        spelled=other.layout.spelled,
        texts=tuple(
            file for file in (CONFIG, INDEX) if file in other.files and (file != INDEX or not _is_wrong(other))
        ),
        notes=(*made.notes, *_differing(base, other)),
    )
    gone = INDEX if _is_wrong(base) else ""
    return replace(
        base,
        store=Joined(base.store, other.store, prefix),
        files={file: size for file, size in base.files.items() if file != gone},
        config=made.config,
        faults=[fault for fault in base.faults if fault.code not in _SURVEYED],
        view=made.view._replace(homes=_homes(base, other, scion), had=_had(base, scion)),
        known_traits=made.traits,
        grafts=(*(one.without(scion.params, base.survey.pieces) for one in base.grafts), graft),
    )


def _known(base: Checkpoint, other: Checkpoint, named: Mapping[str, Param], scion: _Scion) -> tuple[_Scion, _Made]:
    """The same for a base of a known architecture; what is taken may be completed with twins.

    Raises:
        PlanError: parameters do not fit it.
    """
    found, ours, theirs = drafter(base, other, named), drafter_params(base), drafter_params(other)
    notes, gone = [], set[str]()
    if found.whole:
        filled = dict(_twins(base, theirs, scion))
        scion = replace(scion, filled=filled)
        gone = ours.keys() - theirs.keys()
        if filled:
            first = next(iter(filled))
            what = f"{plural(len(filled), 'parameter')} of the drafter, such as {first}"
            notes.append(f"{what}: copied from {theirs[first].family.twin}, as in releases")
        if gone:
            notes.append(f"{plural(len(gone), 'parameter')} of the base's own drafter have no place in the new one")
    elif absent := [f"{name}: missing" for name in named if name not in scion.params]:
        raise refusal(
            f"--from: {{}} of {other.store.place} cannot be read",
            absent,
            "`dsctl inspect OTHER --tensors GLOB` lists the tensors that it has",
        )
    known = {param.name: param for param in base.params} | theirs | scion.params
    held = merged(base.survey, scion.all, gone)
    traits = traits_of(base, found, specs_of(held, known))
    made = _params(base, found.config, traits)
    if found.whole:
        check_same(base, other, made)
    issues = list(unfit(base, other, scion.params.values(), made))
    if issues:
        raise refusal(f"{other.store.place}: {{}} cannot be grafted onto {base.store.place}", issues, _HINT)
    copies = [name for name, one in made.items() if one.family.twin in scion.params and name not in scion.all]
    if stale := [name for name in copies if has(base, name)]:
        what = f"{plural(len(stale), 'parameter')} that releases store as a copy, such as {stale[0]}"
        notes.append(f"{what}: BASE's own copy stays, unless --from names it too")
    view = View(base.layout, survey_of(base, made, held), specs_of(held, made))
    check_global_scales(made.values(), scion.pieces, view.survey)
    return scion, _Made(view, found.config, traits, tuple(notes))


def _params(base: Checkpoint, config: Mapping[str, Any] | None, traits: Traits) -> dict[str, Param]:
    """Every parameter that the architecture has with this config, by name."""
    if base.model is None or config is None:
        return {}
    return {param.name: param for family in base.model.families(config, traits) for param in family.params()}


def _twins(base: Checkpoint, theirs: Mapping[str, Param], scion: _Scion) -> Iterator[tuple[str, tuple[Piece, ...]]]:
    """The tensors that twins of the drafter duplicate, if no glob names the twins and the base does not store them."""
    for name, param in theirs.items():
        twin = param.family.twin
        if twin is None or name in scion.params:
            continue
        if twin in scion.pieces:
            yield name, scion.pieces[twin]
        elif not has(base, name) and has(base, twin):
            yield name, base.survey.pieces[twin]


def _homes(base: Checkpoint, other: Checkpoint, scion: _Scion) -> dict[str, str]:
    """The files of everything that is taken; twins go where the other one has them."""
    held = {name: other.survey.pieces[name] for name in scion.all if has(other, name)}
    return homes(base, other, held, {name: one for name, one in scion.filled.items() if name not in held})


def _had(base: Checkpoint, scion: _Scion) -> Mapping[str, Any]:
    """The codecs that the base itself has for parameters whose place others take."""
    earlier = base.view.had if base.view is not None else {}
    grafts = {name for graft in base.grafts for name in graft.params}
    own = {name: base.survey.pieces[name][0].codec for name in scion.params if name not in grafts and has(base, name)}
    return {**earlier, **own}


def _is_wrong(checkpoint: Checkpoint) -> bool:
    """Whether an index is not that of its files."""
    return any(fault.code in _SURVEYED for fault in checkpoint.faults)


def _differing(base: Checkpoint, other: Checkpoint) -> Iterator[str]:
    """The note on config fields that determine the computation and are different in the other config."""
    if base.config is None or other.config is None or (base.model is None) != (other.model is None):
        return
    ours, theirs = (_computing(one) for one in (base, other))
    names = [name for name in dict.fromkeys((*ours, *theirs)) if ours.get(name) != theirs.get(name)]
    if names:
        told = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
        yield f"config.json of {other.store.place} differs in {told}: the result has the base's"


def _computing(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields that determine how main layers compute."""
    config = checkpoint.config or {}
    bare = config if checkpoint.model is None else checkpoint.model.without_mtp(config)
    unused = STORAGE_FIELDS | CLERICAL_FIELDS | {*_NAMES, "expert_dtype", "num_nextn_predict_layers"}
    return {name: value for name, value in text_fields(bare).items() if name not in unused}
