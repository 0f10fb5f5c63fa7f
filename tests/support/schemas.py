"""docs/schemas: what `--json` prints, verb by verb."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

FOLDER = Path(__file__).parents[2] / "docs" / "schemas"
# What every verb prints on stderr if it fails.
ERROR = "error"
# What the verbs that write leave in a folder, beside dsctl.json.
STATEMENT = "statement"
# Verb -> the schemas of what it prints.
VERBS = {
    "card": ("card",),
    "compare": ("compare",),
    "convert": ("convert", "convert-plan", "release-plan"),
    "delta apply": ("convert", "convert-plan", "delta-in-place-plan"),
    "delta fold": ("delta-fold",),
    "delta make": ("delta", "delta-plan"),
    "delta verify": ("delta-verify",),
    "diff": ("diff",),
    "doctor": ("doctor",),
    "download": ("download",),
    "formats": ("formats",),
    "graft": ("convert", "convert-plan"),
    "inspect": ("inspect",),
    "merge": ("convert", "convert-plan", "release-plan"),
    "models": ("models",),
    "plan": ("plan",),
    "shard": ("convert", "convert-plan", "shard-plan"),
    "slice": ("convert", "convert-plan", "release-plan"),
    "tiny": ("tiny",),
    "upload": ("upload",),
    "verify": ("verify",),
}


@cache
def validator(name: str) -> Draft202012Validator:
    """A schema by its name."""
    schema = json.loads((FOLDER / f"{name}.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def faults(name: str, value: Any) -> list[str]:
    """Where a value is not what the schema says."""
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator(name).iter_errors(value)]
