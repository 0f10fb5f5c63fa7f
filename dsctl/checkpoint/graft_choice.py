"""The parameters that globs choose for a graft, and whether they fit the checkpoint that takes them. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import prod

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.pieces import Piece, cover
from dsctl.codecs.plain import FLOATS
from dsctl.core.amounts import plural
from dsctl.core.errors import PlanError, UsageError
from dsctl.core.params import OTHER, Param

# The word that names a drafter, whatever the number of its layer, without its copies of embedding and head: engines use
# the main model's, so the copies follow those.
DRAFTER = "mtp"
# A refusal lists at most this many parameters.
LISTED = 100


def chosen(other: Checkpoint, globs: Sequence[str]) -> dict[str, Param]:
    """The parameters of a checkpoint that globs name, by name; twins that it does not store are among them.

    `DRAFTER` names those of its drafter, except twins.

    Raises:
        UsageError: there is no glob. PlanError: a glob names nothing, or a parameter that is not stored completely.
    """
    if not globs or not all(globs):
        raise UsageError("--from: no glob", hint="--from OTHER 'model.layers.61.*' names parameters of OTHER")
    found = {param.name: param for param in other.params if any(_is_named(param, glob) for glob in globs)}
    if empty := [glob for glob in globs if not any(_is_named(param, glob) for param in found.values())]:
        raise _nothing(other, empty)
    wrong = {fault.where: fault.what for fault in other.survey.faults}
    issues = []
    for name, param in found.items():
        pieces = other.survey.pieces.get(name) or ()
        if is_whole(pieces, param) or (not pieces and param.family.twin and name not in other.specs):
            continue
        why = "only a part of it is there" if pieces else wrong.get(name, "missing")
        issues.append(f"{name}: {why}")
    if issues:
        hint = "`dsctl inspect OTHER --tensors GLOB` lists the tensors that it has"
        raise refusal(f"--from: {{}} of {other.store.place} cannot be read", issues, hint)
    return found


def _is_named(param: Param, glob: str) -> bool:
    if glob == DRAFTER:
        return param.family.mtp and not param.family.twin
    return fnmatchcase(param.name, glob)


def is_whole(pieces: tuple[Piece, ...], param: Param) -> bool:
    """Whether pieces hold every value of a parameter."""
    return bool(pieces) and sum(piece.slot.region.size for piece in cover(pieces)) == prod(param.shape)


def _nothing(other: Checkpoint, globs: Sequence[str]) -> PlanError:
    """The error for globs without a parameter."""
    if any(fnmatchcase(name, glob) for glob in globs for name in other.specs):
        hint = "a weight goes with its scales: name the weight, as in `dsctl inspect OTHER --tensors GLOB`"
    elif DRAFTER in globs and other.model is None:
        hint = "the architecture of OTHER is unknown: name the tensors of its drafter by globs"
    else:
        hint = "`dsctl inspect OTHER --tensors GLOB` lists names; quote globs, so that the shell does not expand them"
    issues = [f"{glob}: matches no parameter" for glob in globs]
    what = f"--from: no parameter of {other.store.place} matches {globs[0]}" + f" ({plural(len(globs), 'glob')})" * (
        len(globs) > 1
    )
    return PlanError(what, hint=hint, issues=issues if len(issues) > 1 else ())


def unfit(base: Checkpoint, other: Checkpoint, params: Iterable[Param], places: Mapping[str, Param]) -> Iterator[str]:
    """Why parameters of a checkpoint do not fit the places of the same names in the base."""
    for param in params:
        place = places.get(param.name)
        if place is None:
            yield f"{param.name}: {base.store.place} has no such parameter"
        elif place.shape != param.shape:
            yield f"{param.name}: is {list(param.shape)}, {base.store.place} has {list(place.shape)}"
        elif OTHER not in (place.role, param.role) and place.role != param.role:
            yield f"{param.name}: is of role {param.role}, in {base.store.place} of role {place.role}"
        elif place.family.below != param.family.below and param.family.below:
            yield f"{param.name}: numbers {param.family.below} experts, {base.store.place} has {place.family.below}"
        else:
            yield from _other_class(base, other, param, place)


def _other_class(base: Checkpoint, other: Checkpoint, param: Param, place: Param) -> Iterator[str]:
    """Why the stored values of a parameter are of a different kind than those of its place."""
    theirs, ours = (one.survey.pieces.get(param.name) or () for one in (other, base))
    stored = theirs[0].codec.plain if theirs else place.family.dtype
    wanted = ours[0].codec.plain if ours else place.family.dtype
    if stored is None or wanted is None:
        # Codes stand for floats.
        stored, wanted = stored or FLOATS[0], wanted or FLOATS[0]
    if (stored in FLOATS) != (wanted in FLOATS):
        yield f"{param.name}: is {stored}, {base.store.place} has {wanted}"


def refusal(what: str, issues: Sequence[str], hint: str) -> PlanError:
    """The error for parameters, in one line; `what` has a place for their number."""
    if len(issues) == 1:
        return PlanError(f"{what.format('1 parameter')}: {issues[0]}", hint=hint)
    line = f"{what.format(f'{len(issues):,} parameters')}, such as {issues[0]}"
    return PlanError(line, hint=hint, issues=issues[:LISTED])
