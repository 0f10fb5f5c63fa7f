"""`dsctl verify`: what is wrong with a checkpoint, and mend what is metadata only."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsctl.cli.options import Debug, DryRun, Json, Local, Quiet, Remote, Source, located
from dsctl.core.errors import DsctlError, UsageError, VerifyFailed
from dsctl.show.output import Output, plural, size

if TYPE_CHECKING:
    from dsctl.stores import Store
    from dsctl.verify.against import Other
    from dsctl.verify.findings import Report
    from dsctl.verify.repair import Mend

SHOWN = 10
_COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}

Against = Annotated[
    str | None,
    typer.Option("--against", metavar="RELEASE|SRC", help="Also hold it against a release, or another folder."),
]
Deep = Annotated[bool, typer.Option("--deep", help="Read every byte: values, duplicates, digests.")]
Fix = Annotated[bool, typer.Option("--fix", help="Mend metadata: index, headers, quantization_config, side files.")]
Strict = Annotated[bool, typer.Option("--strict", help="Fail on warnings too.")]
Ignore = Annotated[
    list[str] | None, typer.Option("--ignore", metavar="CODE", help="Do not look for this kind; repeatable.")
]
All = Annotated[bool, typer.Option("--all", help="List every finding and what follows from it, not ten of each kind.")]


def verify(
    source: Source,
    against: Against = None,
    deep: Deep = False,
    fix: Fix = False,
    dry_run: DryRun = False,
    strict: Strict = False,
    ignore: Ignore = None,
    show_all: All = False,
    remote: Remote = False,
    local: Local = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Check a checkpoint against its config, its index and its architecture.

    Headers and block scales are read, weights only with --deep. Exit code 50 where something is wrong. --fix mends
    metadata and never changes a weight.

    Examples:

        dsctl verify ./DeepSeek-V3.2

        dsctl verify ./DeepSeek-V3.2 --deep --json

        dsctl verify ./DeepSeek-V3.2 --fix --dry-run
    """
    from dsctl.checkpoint.opening import weights_at
    from dsctl.verify.against import other

    _refuse(ignore or [], dry_run and not fix)
    output = Output(json, quiet)
    store = weights_at(located(source, remote, local))
    their = other(located(against, remote, local)) if against else None
    done: list[Mend] = []
    with _alone(store) if fix and not dry_run else nullcontext():
        report = _check(store, their, deep, ignore or [], output)
        if fix:
            report, done = _fix(store, their, deep, ignore or [], dry_run, report, output)
    output.data(describe(report, their, strict, done, mended=fix and not dry_run))
    _show(source, report, their, show_all, output)
    if _failing(report, strict):
        _fail(source, report, store, not fix and _can_mend(store, report, their))


def _refuse(ignore: list[str], lone_dry_run: bool) -> None:
    from dsctl.verify.findings import CODES

    unknown = [code for code in ignore if code not in CODES]
    if unknown:
        raise UsageError(f"--ignore: no finding is called {unknown[0]!r}", hint=f"known: {', '.join(CODES)}")
    if lone_dry_run:
        raise UsageError("--dry-run goes with --fix: a check alone changes nothing")


def _alone(store: Store) -> AbstractContextManager[None]:
    """What is found must still be so when it is mended, and no other run may write the same siblings."""
    from dsctl.core.files import alone_in
    from dsctl.stores.local import LocalFolder

    return alone_in(Path(store.root)) if isinstance(store, LocalFolder) else nullcontext()


def _check(store: Store, their: Other | None, deep: bool, ignore: list[str], output: Output) -> Report:
    from dataclasses import replace

    from dsctl.show.progress import reading
    from dsctl.verify import deep_bytes, verify

    if not deep:
        report = verify(store, their)
    else:
        with reading(output, deep_bytes(store), "reading") as advance:
            report = verify(store, their, True, advance)
    return replace(report, findings=tuple(f for f in report.findings if f.code not in ignore))


def _fix(
    store: Store, their: Other | None, deep: bool, ignore: list[str], dry_run: bool, report: Report, output: Output
) -> tuple[Report, list[Mend]]:
    """Show what would be mended, and mend it. One mend can bring out another, as a killed one does: thrice at most."""
    from dsctl.stores.local import LocalFolder
    from dsctl.verify import repair

    done: list[Mend] = []
    for _ in range(1 if dry_run else 3):
        planned = repair.mends(store, report, their)
        for one in planned:
            output.note(f"{'would mend' if dry_run else 'mending'} {one.file}: {one.what}")
        done += planned
        if dry_run or not planned:
            break
        assert isinstance(store, LocalFolder)
        repair.mend(store, planned)
        report = _check(store, their, deep, ignore, output)
    if dry_run:
        output.note("dry run: nothing was written")
    elif not done:
        output.note("nothing to mend")
    return report, done


def describe(report: Report, their: Other | None, strict: bool, done: list[Mend], mended: bool) -> dict[str, Any]:
    """A report as stable JSON."""
    from dsctl.verify.findings import CODES, SEVERITIES

    return {
        "place": report.place,
        "against": their.origin._asdict() if their else None,
        "ok": not _failing(report, strict),
        "checked": report.checked._asdict(),
        "counts": {severity: report.count(severity) for severity in SEVERITIES},
        "findings": [
            f._asdict() | {"severity": f.severity, "mendable": CODES[f.code].mendable} for f in report.findings
        ],
        "mends": [{"file": one.file, "what": one.what, "done": mended} for one in done],
    }


def _failing(report: Report, strict: bool) -> bool:
    return bool(report.count("error") or (strict and report.count("warning")))


def _show(source: str, report: Report, their: Other | None, show_all: bool, output: Output) -> None:
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
    if checked.scales:
        lines.append(("scales", plural(checked.scales, "number")))
    if checked.against:
        lines.append(("against", their.origin.text if their else checked.against))
    if checked.signed:
        lines.append(("dsctl.json", "sizes" + (f" and {plural(checked.digests, 'digest')}" if checked.digests else "")))
    lines.append(
        ("contents", f"{size(checked.contents)} read" if checked.contents else "not checked: --deep reads them")
    )
    return lines


def _can_mend(store: Store, report: Report, their: Other | None) -> bool:
    """Whether --fix would do anything here."""
    from dsctl.verify import repair
    from dsctl.verify.findings import CODES

    if not any(CODES[finding.code].mendable for finding in report.findings):
        return False
    try:
        return bool(repair.mends(store, report, their))
    except DsctlError:
        return False


def _fail(source: str, report: Report, store: Store, mendable: bool) -> None:
    from dsctl.checkpoint.causes import remedy

    counts = [plural(report.count(kind), kind) for kind in ("error", "warning") if report.count(kind)]
    mending = "--fix mends the metadata, --fix --dry-run shows what it would do" if mendable else None
    raise VerifyFailed(f"{source}: {' and '.join(counts)}", hint=remedy(store, report.findings) or mending)


def add_to(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(verify)
