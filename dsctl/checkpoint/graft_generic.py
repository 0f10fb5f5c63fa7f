"""Grafts onto a checkpoint whose architecture is unknown: by the names and shapes of tensors alone. No torch."""

from __future__ import annotations

from collections.abc import Mapping

from dsctl.checkpoint.checkpoint import Checkpoint, View
from dsctl.checkpoint.generic import Generic, generic
from dsctl.checkpoint.graft_choice import refusal, unfit
from dsctl.checkpoint.graft_surveys import Pieces, merged, specs_of
from dsctl.checkpoint.pieces import Piece, Survey
from dsctl.codecs.plain import Plain
from dsctl.core.errors import PlanError
from dsctl.core.header import TensorSpec
from dsctl.core.params import Param
from dsctl.layouts.layout import whole

_HINT = "the architecture is unknown, so names and shapes must agree; `dsctl diff BASE OTHER` shows what differs"


def generic_view(base: Checkpoint, other: Checkpoint, params: Mapping[str, Param], pieces: Pieces) -> View:
    """The view of a base with these parameters of another checkpoint, whose pieces are those of a joined store.

    Raises:
        PlanError: a shape differs, the other checkpoint has a layout of its own, or the base's config.json would let
            somebody read the parameters in a different form.
    """
    assert base.generic is not None
    if not other.layout.published:
        what = f"{other.store.place}: layout {other.layout.name}, and the architecture of {base.store.place} is unknown"
        raise PlanError(what, hint="`dsctl convert OTHER DST --layout published` gives the tensors their own names")
    known = {param.name: param for param in base.params}
    both = [param for name, param in params.items() if name in known]
    if issues := list(unfit(base, other, both, known)):
        raise refusal(f"{other.store.place}: {{}} cannot be grafted onto {base.store.place}", issues, _HINT)
    held = merged(base.survey, pieces, ())
    specs = _specs(base, params, held, known)
    found = generic(specs, base.quantization)
    issues = [
        f"{name}: is {one[0].codec.name} there" for name, one in pieces.items() if not _is_read(found, name, one[0])
    ]
    if issues:
        what = f"config.json of {base.store.place} does not declare how {{}} of {other.store.place} are stored"
        raise refusal(what, issues, "convert OTHER to the form of the base first")
    survey = Survey(pieces=dict(_pieces(found, held)), faults=[*base.survey.faults])
    return View(base.layout, survey, specs, generic=found)


def _specs(
    base: Checkpoint, params: Mapping[str, Param], held: Pieces, known: Mapping[str, Param]
) -> dict[str, TensorSpec]:
    """The tensors of the result: the base's, without those whose place others take, and then the others."""
    gone = {ref.name for name in params for piece in base.survey.pieces.get(name, ()) for ref in piece.refs}
    kept = {name: spec for name, spec in base.specs.items() if name not in gone}
    return kept | specs_of({name: held[name] for name in params}, {**known, **params})


def _is_read(found: Generic, name: str, piece: Piece) -> bool:
    """Whether the result's headers show a parameter in the form in which it is stored."""
    reading = found.read.get(name)
    if reading is None:
        return piece.codec.plain is not None and name not in found.unread
    return reading.codec == piece.codec


def _pieces(found: Generic, held: Pieces) -> list[tuple[str, tuple[Piece, ...]]]:
    """The pieces of every parameter, each in its own tensor."""
    named: list[tuple[str, tuple[Piece, ...]]] = []
    for family in found.families:
        param = Param(family.template, family, None, None)
        piece = held[param.name][0]
        codec = found.read[param.name].codec if param.name in found.read else Plain(piece.refs[0].spec.dtype)
        named.append((param.name, (Piece(whole(param, "", param.name), codec, piece.refs),)))
    return named
