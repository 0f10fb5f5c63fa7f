"""The description of an opened checkpoint, from its headers. No weights."""

from __future__ import annotations

import os

from dsctl import releases
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.faults import known_faults
from dsctl.checkpoint.groups import groups_of
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.checkpoint.pieces import Survey
from dsctl.core.config_fields import TEXT, text_fields
from dsctl.core.errors import SourceError
from dsctl.look.description import Description
from dsctl.stores import store_at
from dsctl.stores.hub import is_repository
from dsctl.stores.objects import is_url

# Faults that other fields of a description already contain.
_TOLD = ("missing-tensor", "extra-tensor", "missing-rank", "unknown-architecture")


def of_place(place: str) -> Description:
    """The description of the folder, file, repository or store of this name.

    Raises:
        SourceError: it does not exist, or is unreadable. FormatError: a file's structure is broken.
    """
    if not os.path.exists(place):
        _refuse_unknown(place)
    return of_checkpoint(open_checkpoint(store_at(place)), place)


def _refuse_unknown(source: str) -> None:
    if not is_repository(source) and not is_url(source):
        near = releases.nearest(source)[:4]
        hint = (f"did you mean {' or '.join(near)}? " if near else "") + "`dsctl models` lists all releases"
        raise SourceError(f"{source}: no such folder, and no release of that name", hint=hint)


def of_checkpoint(checkpoint: Checkpoint, name: str) -> Description:
    """The description of an open checkpoint; `name` is its printed name."""
    survey = checkpoint.survey if checkpoint.regular is None else Survey()
    return Description(
        name=name,
        place=checkpoint.store.place,
        release=None,
        config=text_fields(checkpoint.config or {}),
        model=checkpoint.model.name if checkpoint.model else None,
        groups=groups_of(checkpoint),
        files=len(checkpoint.headers),
        part=checkpoint.layout.shares.said if checkpoint.layout.shares else "",
        missing=tuple(param.name for param in survey.missing),
        traits=checkpoint.traits,
        nested=TEXT in (checkpoint.config or {}),
        faults=tuple(str(f) for f in known_faults(checkpoint) if f.code not in _TOLD),
    )
