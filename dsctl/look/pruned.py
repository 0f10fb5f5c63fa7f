"""The description of a checkpoint with some of its experts, as `dsctl slice` would make it."""

from __future__ import annotations

import os
from dataclasses import replace

from dsctl.codecs.renumbered import Renumbered
from dsctl.core.config_fields import text_fields
from dsctl.look.description import Description
from dsctl.plan.parts import Part
from dsctl.plan.request import KEEP, Request


def without_experts(whole: Description, part: Part) -> tuple[Description, tuple[str, ...]]:
    """The description of a part, and notes on what a plan does; `files` are not known.

    Raises:
        PlanError, FormatError, UsageError: as `Part.cut`.
    """
    small, request = part.described(whole.contents, Request(KEEP))
    groups = tuple(
        replace(group, codec=group.codec.written) if isinstance(group.codec, Renumbered) else group
        for group in small.groups
    )
    kept = f"the experts of {os.path.basename(part.plan.place)}" if part.plan else f"{len(part.experts)} experts"
    name, config = f"{whole.name} with {kept}", text_fields(small.config)
    return replace(whole, name=name, config=config, groups=groups, files=None, traits=small.traits), request.notes
