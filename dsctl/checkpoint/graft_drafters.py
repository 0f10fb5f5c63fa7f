"""The drafter of a graft: whether another checkpoint's takes the place of the base's; the config. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.graft_choice import refusal
from dsctl.core.config_fields import text_fields
from dsctl.core.errors import PlanError
from dsctl.core.header import TensorSpec
from dsctl.core.params import Param, Traits


class Drafter(NamedTuple):
    """The config of the result, and whether the other's whole drafter takes the place of the base's."""

    config: dict[str, Any] | None
    whole: bool = False


def drafter_params(checkpoint: Checkpoint) -> dict[str, Param]:
    """The parameters of a checkpoint's drafter or MTP layers, by name, with copies that a drafter alone leaves out."""
    families = checkpoint.families
    if checkpoint.model is not None and checkpoint.config is not None:
        families = checkpoint.model.families(checkpoint.config, checkpoint.traits)
    return {param.name: param for family in families if family.mtp for param in family.params()}


def drafter(base: Checkpoint, other: Checkpoint, named: Mapping[str, Param]) -> Drafter:
    """The config for the base with the named parameters of another checkpoint.

    Raises:
        PlanError: only a part of a drafter is named, and the base has none or one of a different kind or size; or the
            vocabularies have different sizes.
    """
    theirs = drafter_params(other)
    taken = theirs.keys() & named.keys()
    if not taken or base.model is None or base.config is None or other.config is None:
        return Drafter(base.config)
    _check_vocabulary(base, other)
    ours = drafter_params(base)
    # A twin is a copy of the main embedding or head.
    left = [name for name, one in theirs.items() if name not in taken and not one.family.twin]
    if not left:
        return Drafter(base.model.with_mtp(base.config, other.config, other.traits), whole=True)
    same = all(name in ours and ours[name].shape == theirs[name].shape for name in taken)
    if not same or base.traits.drafter != other.traits.drafter:
        kinds = f"{base.store.place} has {_kind(base)}, {other.store.place} has {_kind(other)}"
        what = f"{kinds}: --from leaves out {{}} of it"
        raise refusal(what, left, "name all parameters of the drafter: drafters of different kinds cannot be mixed")
    return Drafter(base.config)


def check_same(base: Checkpoint, other: Checkpoint, made: Mapping[str, Param]) -> None:
    """Refuse a whole drafter if the base's architecture expects a different one; `made` are the result's parameters.

    Raises:
        PlanError: listing the parameters that one of them lacks.
    """
    theirs, wanted = drafter_params(other), {name for name, param in made.items() if param.family.mtp}
    issues = [f"{name}: not in {other.store.place}" for name in made if name in wanted and name not in theirs]
    issues += [f"{name}: {base.store.place} has no place for it" for name in theirs if name not in wanted]
    if issues:
        what = f"the drafter of {other.store.place} does not fit {base.store.place}: it differs in {{}}"
        raise refusal(what, issues, "take the drafter of a checkpoint of the same architecture")


def traits_of(base: Checkpoint, found: Drafter, specs: Mapping[str, TensorSpec]) -> Traits:
    """The traits of the result, which has these tensors; without a new drafter, its drafter's are the base's."""
    if base.model is None or found.config is None:
        return base.traits
    traits = base.model.traits(found.config, specs)
    return traits if found.whole else replace(base.traits, experts=traits.experts, scales=traits.scales)


def has(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a checkpoint stores a parameter."""
    return bool(checkpoint.survey.pieces.get(name))


def _kind(checkpoint: Checkpoint) -> str:
    """A drafter in words."""
    params = drafter_params(checkpoint)
    layers = len({param.layer for param in params.values()})
    if not layers:
        return "no drafter"
    kind = "a block drafter" if checkpoint.traits.drafter == "dspark" else "an MTP drafter"
    return f"{kind} of {layers} {'layer' if layers == 1 else 'layers'} with {len(params):,} parameters"


def _check_vocabulary(base: Checkpoint, other: Checkpoint) -> None:
    ours, theirs = (text_fields(one.config or {}).get("vocab_size") for one in (base, other))
    if ours != theirs:
        what = f"the drafter of {other.store.place} is for a vocabulary of {theirs}, {base.store.place} has {ours}"
        raise PlanError(what, hint="take the drafter of a checkpoint with the same tokenizer")
