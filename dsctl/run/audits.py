"""The audit in `dsctl.json` of a complete target, read back and checked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dsctl.checkpoint.reading import strict_json
from dsctl.checkpoint.signed_files import entries_of
from dsctl.core.errors import FormatError, ResumeError
from dsctl.core.files import read_own
from dsctl.plan.plan import COUNTED
from dsctl.run.journal import is_count
from dsctl.stores import SIGNED

# Counts that earlier versions did not have.
_LATER = ("recast",)


def read_audit(target: Path) -> dict[str, Any]:
    """The audit of a complete folder whose files still have the recorded sizes.

    Raises:
        ResumeError: a size is different, or the audit is not valid.
    """
    try:
        audit = valid_audit(strict_json(read_own(target / SIGNED), SIGNED))
    except (OSError, TypeError, ValueError, RecursionError, FormatError) as error:
        raise ResumeError(f"{target / SIGNED}: is not valid: {error}", hint="start over with --force") from None
    for name, file in audit["files"].items():
        try:
            same = os.stat(target / name).st_size == file["size"]
        except (OSError, ValueError):
            same = False
        if not same:
            what = "was finished, but is now missing or changed"
            raise ResumeError(f"{target / name}: {what}", hint="start over with --force")
    return audit


def valid_audit(said: Any) -> dict[str, Any]:
    """The contents of `dsctl.json`, if a run can have written them.

    Raises:
        TypeError, ValueError: naming the missing or wrong field.
    """
    if not isinstance(said, dict):
        raise TypeError("it is not an object")
    counts = said.get("audit")
    entries_of(said.get("files"))
    if not isinstance(counts, dict) or not all(map(is_count, counts.values())):
        raise ValueError("audit: a count is not a number")
    if lacking := [name for name in COUNTED if name not in counts and name not in _LATER]:
        raise ValueError(f"audit: {', '.join(lacking)} is missing")
    if not isinstance(said.get("notes"), list) or not isinstance(said.get("dropped"), list):
        raise TypeError("notes or dropped is missing")
    return said
