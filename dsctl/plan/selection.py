"""The parameters of a target, and the reasons for leaving others out. Pure, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from math import prod

from dsctl import models
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.pieces import Piece, cover
from dsctl.codecs.codec import Codec
from dsctl.codecs.plain import Plain
from dsctl.core.errors import PlanError
from dsctl.core.header import TensorRef
from dsctl.core.params import OTHER, Drafter, Family, Param
from dsctl.layouts.layout import Layout
from dsctl.plan.blocks import covers, torn
from dsctl.plan.notes import COPY, MODEL
from dsctl.plan.plan import ELSEWHERE, MISSING, NOWHERE, Dropped, Want
from dsctl.plan.request import DROPPED, ONLY, Request
from dsctl.plan.spread import check_cuts, check_names
from dsctl.plan.target import Target


def wanted(target: Target) -> tuple[list[Want], list[Dropped], list[str]]:
    """The parameters that the target holds, those that it leaves out, and notes.

    Raises:
        PlanError: no parameter is left, a parameter is incomplete, or the ranks cannot share the rest.
    """
    kept, dropped = _asked_for(target)
    if target.request.mtp == ONLY:
        require_drafter(target.checkpoint.store.place, target.checkpoint.families, target.checkpoint.generic is None)
    codecs = list(_codecs(target, kept))
    stored = [(param.family, codec) for (param, _), codec in zip(kept, codecs, strict=True) if codec]
    sizes = check_cuts(target.subject, target.request, target.layout, stored)
    notes = check_names(target.layout, stored)
    notes += [f"tensor-parallel sizes that cut no block: {', '.join(map(str, sizes))}"] if sizes else []
    wants, incomplete = [], []
    for (param, pieces), codec in zip(kept, codecs, strict=True):
        slots = target.layout.slots(param)
        if not slots:
            dropped.append(Dropped(param.name, _why_nowhere(param, target.layout), prod(param.shape)))
            continue
        chosen = cover(pieces)
        if codec is None or not covers(chosen, param.shape, slots):
            incomplete.append(param.name)
            continue
        wants.append(Want(param, chosen, codec, pieces, slots))
    if incomplete:
        raise torn(target.checkpoint, incomplete)
    if not wants:
        raise nothing_left(target.request)
    return wants, dropped, notes


def _codecs(target: Target, kept: Sequence[tuple[Param, tuple[Piece, ...]]]) -> Iterator[Codec | None]:
    """The codec of each parameter; None if the source has no piece of it."""
    known: dict[tuple[int, int], Codec] = {}
    for param, pieces in kept:
        if not pieces:
            yield None
        elif target.chosen_by_name:
            yield target.codec(param, pieces[0].codec)
        else:
            key = id(param.family), id(pieces[0].codec)
            codec = known.get(key)
            if codec is None:
                codec = known[key] = target.codec(param, pieces[0].codec)
            yield codec


def require_drafter(place: str, families: Iterable[Family], known: bool) -> None:
    """Refuse to write the drafter alone if a model has none; `known`: its architecture is known.

    Raises:
        PlanError: there is no drafter.
    """
    if any(family.mtp for family in families):
        return
    if not known:
        what = f"{place}: --mtp only: which tensors are the drafter's is not known without a config of a known "
        raise PlanError(f"{what}architecture", hint="--only GLOB keeps tensors by name")
    hint = "take it from the release, or from a checkpoint that kept it: `dsctl verify` shows which drafter one has"
    raise PlanError(f"{place}: there is no drafter for --mtp only: config.json declares none", hint=hint)


def nothing_left(request: Request) -> PlanError:
    """The error for a request that leaves no parameter."""
    if request.mtp == ONLY and not (request.only or request.skip):
        hint = "fetch the files that hold it: `dsctl verify` names them"
        return PlanError("there is no drafter for --mtp only: no tensor of it is stored", hint=hint)
    asked = [f"--mtp {DROPPED}"] * (request.mtp == DROPPED)
    asked += [f"--{name}" for name in ("only", "skip", "layers", "experts") if getattr(request, name)]
    return PlanError("no parameter is left", hint=f"check {' and '.join(asked)}" if asked else None)


def _asked_for(target: Target) -> tuple[list[tuple[Param, tuple[Piece, ...]]], list[Dropped]]:
    """The requested parameters with their pieces in the source, and the parameters that the request leaves out."""
    checkpoint, request = target.checkpoint, target.request
    _refuse_unknown(checkpoint, request)
    survey, shares = checkpoint.survey, checkpoint.layout.shares
    elsewhere = shares is not None and len(shares.present) < shares.ranks.world and not request.allow_missing
    kept, dropped = [], []
    for param in (*checkpoint.params, *(_unknown(ref, checkpoint.drafter) for ref in survey.extra)):
        pieces = survey.pieces.get(param.name) or _extra_piece(checkpoint, param)
        why = why_dropped(param, bool(pieces) or elsewhere, request)
        if why:
            dropped.append(Dropped(param.name, why, prod(param.shape)))
        else:
            kept.append((param, pieces))
    return kept, dropped


def _refuse_unknown(checkpoint: Checkpoint, request: Request) -> None:
    """Refuse numbers of layers and experts that the checkpoint does not have.

    Raises:
        PlanError: naming the first of them.
    """
    for what, asked, there in (
        ("layer", request.layers, {param.layer for param in checkpoint.params} if request.layers else set()),
        ("expert", request.experts, {param.expert for param in checkpoint.params} if request.experts else set()),
    ):
        unknown = sorted(set(asked) - there)
        known = there - {None}
        if unknown and not known:
            place = checkpoint.store.place
            why = f"{what}s are not known without a config of a known architecture"
            raise PlanError(f"{place}: {why}", hint=f"--only and --skip name tensors; {models.known()}")
        if unknown:
            raise PlanError(f"no {what} {unknown[0]}: there are {len(known)}, numbered from 0")


def _unknown(ref: TensorRef, drafter: Drafter) -> Param:
    """A tensor without a parameter; that of a drafter that the config does not declare is the drafter's."""
    family = Family(ref.name, ref.spec.shape, OTHER, dtype=ref.spec.dtype, mtp=drafter.has(ref.name))
    return Param(ref.name, family, None, None)


def _extra_piece(checkpoint: Checkpoint, param: Param) -> tuple[Piece, ...]:
    if param.role != OTHER:
        return ()
    slot = checkpoint.layout.slots(param)[0]
    return (Piece(slot, Plain(param.family.dtype), (checkpoint.catalogue[slot.shard][param.name],)),)


def why_dropped(param: Param, there: bool, request: Request) -> str | None:
    """The reason why a request leaves a parameter out, or None if it does not; `there`: the source has it."""
    if request.mtp == DROPPED and param.family.mtp:
        return "MTP layer"
    if request.mtp == ONLY and not param.family.mtp:
        return MODEL
    if not there:
        return MISSING
    if request.only and not any(fnmatchcase(param.name, glob) for glob in request.only):
        return "not in --only"
    if any(fnmatchcase(param.name, glob) for glob in request.skip):
        return COPY if request.mtp == ONLY and param.family.twin else "in --skip"
    if request.layers and param.layer not in request.layers:
        return "not in --layers"
    if request.experts and param.expert is not None and param.expert not in request.experts:
        return "not in --experts"
    return None


def _why_nowhere(param: Param, layout: Layout) -> str:
    """The reason why a layout has no slot for a parameter."""
    held = layout.shares is not None and any(True for _ in layout.shares.boxes(param))
    return NOWHERE + layout.name if held else ELSEWHERE
