"""Findings as workflow commands of GitHub Actions, which GitHub shows as annotations of a run and of its files.

Syntax and escapes: docs.github.com, "Workflow commands for GitHub Actions", and actions/toolkit,
packages/core/src/command.ts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from dsctl.core.visible import visible
from dsctl.show.output import plural
from dsctl.verify.findings import SEVERITIES, Report

# GitHub shows this many annotations of each type per step and drops the rest.
SHOWN = 10
_COMMANDS = {"error": "error", "warning": "warning", "note": "notice"}


def workflow_commands(source: str, report: Report) -> Iterator[str]:
    """A line per finding; if a severity has more than GitHub shows, its last line says how many more there are."""
    for severity in SEVERITIES:
        found = [finding for finding in report.findings if finding.severity == severity]
        shown = found if len(found) <= SHOWN else found[: SHOWN - 1]
        for finding in shown:
            file = _file(source, finding.where)
            yield _command(severity, finding.code, str(finding), file)
        if len(found) > len(shown):
            more = plural(len(found) - len(shown), f"more {severity}")
            yield _command(severity, "not shown", f"{more}: `dsctl verify --all` lists them")


def _file(source: str, where: str) -> str | None:
    """The path of a finding's file as the command line spells the checkpoint; None if it is about something else."""
    folder = os.path.dirname(source) if os.path.isfile(source) else source
    path = os.path.join(folder, where)
    return path if not os.path.isabs(where) and os.path.lexists(path) else None


def _command(severity: str, title: str, message: str, file: str | None = None) -> str:
    properties = {"file": file, "title": title}
    said = ",".join(f"{key}={_property(value)}" for key, value in properties.items() if value is not None)
    return f"::{_COMMANDS[severity]} {said}::{_data(message)}"


def _data(text: str) -> str:
    """A message escaped; `visible` comes first, so that control characters of a name stay readable."""
    return visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
