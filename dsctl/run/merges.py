"""The adapter of a run: a check of its values before anything is written, and the report on how its changes arrive."""

from __future__ import annotations

from collections.abc import Mapping
from math import log10
from typing import Any

import numpy as np

from dsctl.checkpoint.low_rank import ADAPTER
from dsctl.core.errors import FormatError
from dsctl.plan.plan import Plan
from dsctl.plan.steps import Part, part_of
from dsctl.stores import Store
from dsctl.work.tasks import ASKED, CHANGED, ERROR, LOST, UNCHANGED, merge_counts

CHUNK_BYTES = 8 << 20
# The type of the words of a dtype, and the bits of their exponent: in NaN and infinity all of these are set.
_WORDS = {"BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00), "F32": ("<u4", 0x7F800000)}


def refuse_bad_adapter(plan: Plan, store: Store) -> None:
    """Refuse an adapter with a NaN or an infinity in a tensor that the plan merges.

    Raises:
        FormatError: naming the first such parameter. SourceError: a file cannot be read.
    """
    read: dict[Part, str] = {}
    for step in plan.steps if plan.merge else ():
        whole = (part for part in step.reads[0].parts if part.file.startswith(ADAPTER))
        for part in (*whole, *map(part_of, step.low_rank.refs if step.low_rank else ())):
            read.setdefault(Part("", part.file, part.offset, part.spec), step.name)
    for part, name in sorted(read.items(), key=lambda item: item[0].offset):
        if not _is_finite(part, store):
            hint = "the training diverged, or the file is damaged"
            raise FormatError(f"--lora: the change of {name} holds NaN or infinity", hint=hint)


def _is_finite(part: Part, store: Store) -> bool:
    word, exponent = _WORDS[part.spec.dtype]
    end = part.offset + part.spec.nbytes
    for begin in range(part.offset, end, CHUNK_BYTES):
        words = np.frombuffer(store.read(part.file, begin, min(begin + CHUNK_BYTES, end)), word)
        if ((words & exponent) == exponent).any():
            return False
    return True


def merge_report(plan: Plan, counts: Mapping[str, int]) -> dict[str, Any]:
    """The section `lora` of `dsctl.json`: the adapter, and by role how its changes arrive; nothing without an adapter.

    docs/guides/merge-lora.md defines the figures.
    """
    merge = plan.merge
    if merge is None:
        return {}
    said, found = merge._asdict(), merge_counts(counts)
    changed = said.pop("changed")
    roles = {role: {"matrices": matrices} | _figures(found.get(role, {})) for role, matrices in changed.items()}
    return {"lora": said | {"roles": roles}}


def _figures(found: Mapping[str, float]) -> dict[str, Any]:
    """The figures of one role; shares are null if nothing is asked to change, the ratio also if all of it arrives."""
    asked, lost, error = (found.get(name, 0.0) for name in (ASKED, LOST, ERROR))
    values, unchanged = (int(found.get(name, 0)) for name in (CHANGED, UNCHANGED))
    return {
        "values": values,
        "values_unchanged": unchanged,
        "unchanged_share": round(unchanged / values, 6) if values else None,
        "lost_energy_share": round(lost / asked, 6) if asked else None,
        "signal_to_noise_db": round(10 * log10(asked / error), 2) if asked and error else None,
    }
