"""Print the findings of a check as text and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

from dsctl.look.proof import Proof
from dsctl.show.output import Output, count, plural, size
from dsctl.verify.against import Other
from dsctl.verify.findings import CODES, SEVERITIES, Report
from dsctl.verify.repair import Mend

SHOWN = 10
UNKNOWN = "architecture unknown: which parameters there should be was not checked"
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}


class Bar(NamedTuple):
    """What a check must pass beside errors: no warning if `strict`, a known `architecture`."""

    strict: bool = False
    architecture: bool = False


def as_json(
    report: Report,
    their: Other | None,
    proof: Proof | str | None,
    bar: Bar,
    ignored: Sequence[str],
    done: Sequence[Mend],
    mended: bool,
) -> dict[str, Any]:
    """A report as stable JSON; `proof` as in `show_report`."""
    return {
        "place": report.place,
        "against": their.origin._asdict() if their else None,
        "values": {"not_compared": proof} if isinstance(proof, str) else proof and proof.json(),
        "ok": not is_failing(report, bar),
        "checked": report.checked._asdict(),
        "ignored": list(ignored),
        "counts": {severity: report.count(severity) for severity in SEVERITIES},
        "findings": [
            f._asdict() | {"severity": f.severity, "mendable": CODES[f.code].mendable} for f in report.findings
        ],
        "mends": [{"file": one.file, "what": one.what, "done": mended} for one in done],
    }


def is_failing(report: Report, bar: Bar) -> bool:
    """Whether a check fails: on errors, and on what else a person asks for."""
    unknown = bar.architecture and report.checked.architecture is None
    return bool(report.count("error") or (bar.strict and report.count("warning")) or unknown)


def show_report(
    source: str,
    report: Report,
    their: Other | None,
    proof: Proof | str | None,
    show_all: bool,
    ignored: Sequence[str],
    output: Output,
) -> None:
    """Print what was checked, the ignored codes and the findings: ten of each code, or all of them with `show_all`.

    `proof` is the verdict on its values, or the reason why there is none.
    """
    checked = report.checked
    tensors = f"{plural(checked.files, 'file')}, {plural(checked.tensors, 'tensor')}, {size(checked.nbytes)}"
    output.text(f"{source}: {tensors}")
    for part, words in (*_scope(report, their), *_values(proof)):
        output.text(f"  {part:10}  {words}")
    if ignored:
        output.text(f"  {'ignored':10}  {', '.join(ignored)}")
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
        alone = checked.drafter is not None and checked.drafter["alone"]
        where = " in this drafter; its model is not in this folder, and was not checked" * alone
        output.text((f"no problems found{where}", "green"))


def _scope(report: Report, their: Other | None) -> list[tuple[str, str]]:
    """Parts of a checkpoint, each with how far it was checked, and with the reason if it was not."""
    checked = report.checked
    parameters = plural(checked.parameters, "parameter")
    known = f"files, index, config; names, shapes, dtypes of {parameters}"
    if checked.architecture is None:
        known = f"files, index, config; pairs, forms, dtypes of {parameters}; {UNKNOWN}"
    lines = [("structure", known if checked.parameters else "files and headers only (unknown architecture)")]
    if checked.drafter:
        lines.append(("drafter", checked.drafter["text"] + ", without its model" * checked.drafter["alone"]))
    lines.append(("library", _library(report)))
    if checked.scales or checked.scales_unread:
        left = f"; {count(checked.scales_unread)} of groups not checked: --deep reads them"
        lines.append(("scales", plural(checked.scales, "number") + left * bool(checked.scales_unread)))
    if checked.against:
        lines.append(("against", their.origin.text if their else checked.against))
    if checked.signed:
        by = ", ".join(checked.algorithms)
        compared = f" and {plural(checked.digests, 'digest')} ({by})" if checked.digests else ""
        lines.append(("dsctl.json", f"sizes{compared}"))
    if checked.statement is not None:
        lines.append(("statement", _statement(checked.statement)))
    lines.append(
        ("contents", f"{size(checked.contents)} read" if checked.contents else "not checked: --deep reads them")
    )
    return lines


def _values(proof: Proof | str | None) -> list[tuple[str, str]]:
    """The verdict on the values in one line, and what it rests on."""
    if proof is None:
        return []
    if isinstance(proof, str):
        return [("values", f"not compared: {proof}")]
    return [("values", proof.line), ("", proof.rests_on)]


def _library(report: Report) -> str:
    """The number of files that the safetensors library opened. It may include side files, which do not count as files
    of the checkpoint."""
    checked = report.checked
    if checked.library is None:
        return f"not opened with the safetensors library: {checked.library_skipped}"
    tried = checked.library_opened + checked.library_refused + checked.library_unmapped
    strays = sum(finding.code == "stray-file" for finding in report.findings)
    sides = ", side files included" if tried > checked.files + strays else ""
    unmapped = f"; the system could not map {checked.library_unmapped:,} of them" if checked.library_unmapped else ""
    return f"{checked.library} opened {checked.library_opened:,} of {plural(tried, 'file')}{sides}{unmapped}"


def _statement(compared: int) -> str:
    """How far the statement was checked."""
    if not compared:
        return "not compared with dsctl.json"
    return f"{plural(compared, 'subject')} and request compared; not signatures: `model_signing verify` checks those"
