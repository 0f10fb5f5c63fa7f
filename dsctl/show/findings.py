"""How the findings of a check are told, as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from dsctl.show.output import Output, count, plural, size
from dsctl.verify.against import Other
from dsctl.verify.findings import CODES, SEVERITIES, Report
from dsctl.verify.repair import Mend

SHOWN = 10
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


def as_json(report: Report, their: Other | None, strict: bool, done: Sequence[Mend], mended: bool) -> dict[str, Any]:
    """A report as stable JSON."""
    return {
        "place": report.place,
        "against": their.origin._asdict() if their else None,
        "ok": not is_failing(report, strict),
        "checked": report.checked._asdict(),
        "counts": {severity: report.count(severity) for severity in SEVERITIES},
        "findings": [
            f._asdict() | {"severity": f.severity, "mendable": CODES[f.code].mendable} for f in report.findings
        ],
        "mends": [{"file": one.file, "what": one.what, "done": mended} for one in done],
    }


def is_failing(report: Report, strict: bool) -> bool:
    """Whether a check fails: on errors, and with `strict` on warnings."""
    return bool(report.count("error") or (strict and report.count("warning")))


def show_report(source: str, report: Report, their: Other | None, show_all: bool, output: Output) -> None:
    """Print what was looked at and what was found, some of each kind unless all is asked for."""
    checked = report.checked
    tensors = f"{plural(checked.files, 'file')}, {plural(checked.tensors, 'tensor')}, {size(checked.nbytes)}"
    output.text(f"{source}: {tensors}")
    for what, said in _said(report, their):
        output.text(f"  {what:10}  {said}")
    for code, group in groupby(report.findings, key=lambda finding: finding.code):
        found = list(group)
        for finding in found if show_all else found[:SHOWN]:
            style = _COLOURS[finding.severity]
            output.text((f"{finding.severity:7} ", style), (f"{code}  ", "bold"), str(finding))
            for detail in finding.details if show_all else ():
                output.text(f"        {detail}")
        if len(found) > SHOWN and not show_all:
            output.text(f"        ... and {len(found) - SHOWN:,} more {code} (--all lists them)")
    if not report.count("error") and not report.count("warning"):
        output.text(("nothing wrong found", "green"))


def _said(report: Report, their: Other | None) -> list[tuple[str, str]]:
    """What was looked at and what was not, in words."""
    checked = report.checked
    known = f"files, index, config; names, shapes, dtypes of {plural(checked.parameters, 'parameter')}"
    lines = [("structure", known if checked.parameters else "files and headers only, for want of an architecture")]
    if checked.scales or checked.scales_unread:
        left = f"; {count(checked.scales_unread)} of groups not checked: --deep reads them"
        lines.append(("scales", plural(checked.scales, "number") + left * bool(checked.scales_unread)))
    if checked.against:
        lines.append(("against", their.origin.text if their else checked.against))
    if checked.signed:
        lines.append(("dsctl.json", "sizes" + (f" and {plural(checked.digests, 'digest')}" if checked.digests else "")))
    lines.append(
        ("contents", f"{size(checked.contents)} read" if checked.contents else "not checked: --deep reads them")
    )
    return lines
