"""The fields in which two config.json differ. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

ABSENT = object()


class FieldChange(NamedTuple):
    """A field of config.json, by its path if it is nested; `ABSENT` on the side that does not have it."""

    field: str
    before: Any
    after: Any

    @property
    def kind(self) -> str:
        if self.before is ABSENT:
            return "added"
        return "removed" if self.after is ABSENT else "changed"

    @property
    def top(self) -> str:
        """The field of the outermost object that contains it."""
        return self.field.partition(".")[0]


def config_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[FieldChange]:
    """Every field that differs or that only one side has, in the order of the first side, then of the second."""
    ours, theirs = flattened(before), flattened(after)
    return [
        FieldChange(name, ours.get(name, ABSENT), theirs.get(name, ABSENT))
        for name in (ours | theirs)
        if not same(ours.get(name, ABSENT), theirs.get(name, ABSENT))
    ]


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config with the fields of nested objects by their path: `rope_scaling.factor`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def same(before: Any, after: Any) -> bool:
    """Equality as JSON defines it: 1 and 1.0 are the same number, but true is not a number."""
    return isinstance(before, bool) == isinstance(after, bool) and bool(before == after)
