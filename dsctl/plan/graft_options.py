"""The options of a graft, and the request that they make. Pure, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from dsctl.core.choices import choose
from dsctl.core.errors import UsageError
from dsctl.plan.request import KEEP, Request

# Grafted parameters keep their own form, or get that of the base.
OWN, BASE = "own", "base"
FORMS = (OWN, BASE)

# Places, each with the globs of the parameters to take from it.
Sources = Sequence[tuple[str, tuple[str, ...]]]


class GraftOptions(TypedDict, total=False):
    """Faults of the result that are allowed: missing tensors, and tensors that the architecture does not have."""

    allow_missing: bool
    allow_extra: bool


def graft_request(
    sources: Sources, forms: str = OWN, allow_missing: bool = False, allow_extra: bool = False
) -> Request:
    """The request for a graft from these sources.

    Raises:
        UsageError: there is no source, a source has no glob, or the forms are not one of `FORMS`.
    """
    if not sources:
        raise UsageError("no source of parameters", hint="--from OTHER GLOBS names a checkpoint and its parameters")
    choose(forms, FORMS, "form", "--as")
    for place, globs in sources:
        if not place.strip() or not globs or not all(globs):
            what = "no glob" if place.strip() else "no checkpoint"
            raise UsageError(f"--from: {what}", hint="--from OTHER 'model.layers.61.*' names parameters of OTHER")
    return Request(
        KEEP,
        graft=tuple(globs for _, globs in sources),
        as_base=forms == BASE,
        allow_missing=allow_missing,
        allow_extra=allow_extra,
    )


def split(text: str) -> tuple[str, ...]:
    """The globs of one argument, separated by commas; a comma within brackets belongs to its glob."""
    found, depth = [""], 0
    for letter in text:
        depth = 1 if letter == "[" else 0 if letter == "]" else depth
        if letter == "," and not depth:
            found.append("")
        else:
            found[-1] += letter
    return tuple(glob.strip() for glob in found)
