"""The survey of a graft: the base's pieces, and those that take their places. No torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.graft_choice import refusal
from dsctl.checkpoint.pieces import Fault, Piece, Survey
from dsctl.checkpoint.quantization import fused
from dsctl.codecs.codec import Codec
from dsctl.core.header import TensorSpec
from dsctl.core.params import Param
from dsctl.layouts.naming import DIALECTS

Pieces = Mapping[str, tuple[Piece, ...]]


def merged(survey: Survey, taken: Pieces, gone: Collection[str]) -> dict[str, tuple[Piece, ...]]:
    """The pieces of every stored parameter of the result; `gone` are the base's that it does not have."""
    kept = {name: pieces for name, pieces in survey.pieces.items() if pieces and name not in gone}
    return kept | dict(taken)


def specs_of(held: Pieces, params: Mapping[str, Param]) -> dict[str, TensorSpec]:
    """The tensors of these parameters under their published names, as their pieces' codecs store them whole."""
    known: dict[tuple[Codec, tuple[int, ...]], tuple[tuple[str, TensorSpec], ...]] = {}
    specs: dict[str, TensorSpec] = {}
    for name, pieces in held.items():
        param = params.get(name)
        if param is None:
            continue
        key = pieces[0].codec, param.shape
        if key not in known:
            known[key] = tuple(key[0].specs(param.shape).items())
        dialect = DIALECTS[key[0].dialect]
        specs |= {dialect.tensor(name, part): spec for part, spec in known[key]}
    return specs


def survey_of(base: Checkpoint, params: Mapping[str, Param], held: Pieces) -> Survey:
    """The result's pieces, missing parameters and faults; `params` are all that its architecture has."""
    before, survey = base.survey, Survey()
    survey.pieces = {name: held.get(name, ()) for name in params}
    survey.missing = [param for name, param in params.items() if not held.get(name)]
    tensors = {ref.name for name in params for piece in held.get(name, ()) for ref in piece.refs} | params.keys()
    survey.extra = [ref for ref in before.extra if ref.name not in tensors]
    old = {param.name for param in base.params}
    surplus = {ref.name for ref in survey.extra}
    survey.faults = [
        fault
        for fault in before.faults
        if (fault.where in surplus if fault.code == "extra-tensor" else not _is_cured(fault, params, held, old))
    ]
    known = {fault.where for fault in survey.faults}
    new = [Fault("missing-tensor", one.name, "missing") for one in survey.missing if one.name not in known]
    survey.faults += new
    survey.mtp = before.mtp & {*survey.faults} | {one for one in new if params[one.where].family.mtp}
    return survey


def _is_cured(fault: Fault, params: Mapping[str, Param], held: Pieces, old: Collection[str]) -> bool:
    """Whether a fault of the base concerns a parameter that has pieces now, or one that is not in the result."""
    if fault.where in params:
        return bool(held.get(fault.where))
    return fault.where in old


def check_global_scales(params: Iterable[Param], taken: Pieces, survey: Survey) -> None:
    """Refuse matrices that loaders join under one global scale, if only some of them are taken.

    Raises:
        PlanError: naming the joined modules.
    """
    issues = []
    for (module, layer, expert), members in fused(params).items():
        apart = [one for one in members if one.name in taken]
        if 0 < len(apart) < len(members) and any(
            piece.codec.surveys for one in members for piece in survey.pieces.get(one.name, ())
        ):
            left = next(one.name for one in members if one.name not in taken)
            issues.append(f"{members[0].family.named(module, layer, expert)}: {left} is not named")
    if issues:
        what = "loaders need one global scale for joined matrices, but --from names only a part of {}"
        raise refusal(what, issues, "name all matrices of a joined module")
