"""`dsctl verify`: check a checkpoint, and fix its metadata."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from dsctl.cli import completion
from dsctl.cli.groups import PrintOptions, verb
from dsctl.cli.options import DryRun, Local, Remote, Source
from dsctl.cli.sources import located
from dsctl.core.choices import choose
from dsctl.core.errors import UsageError, VerifyFailed
from dsctl.show.bars import reading
from dsctl.show.output import Output, plural

if TYPE_CHECKING:
    from dsctl.stores import Store
    from dsctl.verify.against import Other
    from dsctl.verify.findings import Report
    from dsctl.verify.repair import Mend

Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="RELEASE|SRC",
        autocompletion=completion.sources,
        help="Compare with a release's description, or with the values of the checkpoint it comes from.",
    ),
]
SampleShare = Annotated[
    str | None,
    typer.Option(
        "--sample", metavar="SHARE", help="Compare values in only this share of rows, such as 1%; for remote sources."
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", metavar="N", min=0, help="Choose the same rows as an earlier sample.")
]
Deep = Annotated[bool, typer.Option("--deep", help="Read every byte: values, duplicates, digests.")]
Fix = Annotated[bool, typer.Option("--fix", help="Fix metadata: index, headers, quantization_config, side files.")]
Strict = Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.")]
Required = Annotated[
    bool, typer.Option("--require-architecture", help="Fail if the architecture is unknown, too (for CI).")
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore",
        metavar="CODE",
        autocompletion=completion.findings,
        help="Ignore findings with this code; repeatable, or several with commas.",
    ),
]
All = Annotated[
    bool, typer.Option("--all", help="List every finding and its consequences, instead of ten of each code.")
]
Annotate = Annotated[bool, typer.Option("--annotate", help="Print findings as annotations for GitHub Actions, too.")]


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """The share of values to compare with a source, and the choice of rows."""

    sample: SampleShare = None
    seed: Seed = None


@verb
def verify(
    source: Source,
    *,
    against: Against = None,
    values: SampleOptions,
    deep: Deep = False,
    fix: Fix = False,
    dry_run: DryRun = False,
    strict: Strict = False,
    require_architecture: Required = False,
    ignore: Ignore = None,
    show_all: All = False,
    annotate: Annotate = False,
    remote: Remote = False,
    local: Local = False,
    printing: PrintOptions,
) -> None:
    """Check a checkpoint against its config, its index and its architecture.

    Reads headers and scales, and opens every file with the safetensors library. Reads weights, and group scales of
    more than 1 GiB, only with --deep. Exits with 50 if it finds an error. --fix never changes a weight.

    --against SRC compares every value with those of SRC, in any form and layout: it counts the parameters with the
    same bytes, with the same values, and with values as their form rounds them, and names all others.

    If the architecture is unknown, takes the parameters from the headers and checks files, forms, scales and contents.

    Examples:

        dsctl verify ./DeepSeek-V3.2

        dsctl verify ./DeepSeek-V3.2 --deep --json

        dsctl verify ./DeepSeek-V3.2-bf16 --against ./DeepSeek-V3.2

        dsctl verify ./DeepSeek-V3.2-bf16 --against ./DeepSeek-V3.2 --sample 1%

        dsctl verify ./DeepSeek-V3.2 --fix --dry-run

        dsctl verify ./DeepSeek-V3.2 --strict --annotate
    """
    from dsctl.checkpoint.opening import weights_at
    from dsctl.cli.proving import proof_of, sampled, source_of
    from dsctl.look.proving import findings
    from dsctl.run.mend import can_mend, mend_all, undisturbed
    from dsctl.show.annotations import workflow_commands
    from dsctl.show.findings import Bar, as_json, is_failing, show_report
    from dsctl.verify.against import other
    from dsctl.verify.findings import ordered
    from dsctl.verify.repair import mends

    if annotate and printing.json:
        raise UsageError("--json and --annotate cannot be combined", hint="choose one: both print to stdout")
    chosen, ignored = sampled(values.sample, values.seed, against), _codes(ignore)
    if dry_run and not fix:
        raise UsageError("--dry-run needs --fix: without it, verify changes nothing")
    output, mending, bar = printing.output(), fix and not dry_run, Bar(strict, require_architecture)
    store = weights_at(located(source, remote, local))
    their = other(located(against, remote, local)) if against else None
    base = source_of(against, remote, local, chosen) if against else None

    def check() -> Report:
        return _checked(store, their, deep, ignored, output)

    done: list[Mend] = []
    with undisturbed(store) if mending else nullcontext():
        report = check()
        if mending:
            report, done = mend_all(
                store, report, their, check, lambda one: output.note(f"fixing {one.file}: {one.what}")
            )
        elif fix:
            done = mends(store, report, their)
    proof = base if base is None or isinstance(base, str) else proof_of(store, base, against or "", chosen, output)
    if proof is not None and not isinstance(proof, str):
        more = [one for one in findings(proof) if one.code not in ignored]
        report = replace(report, findings=ordered([*report.findings, *more]))
    if fix:
        _tell(done, dry_run, output)
    output.data(as_json(report, their, proof, bar, ignored, done, mended=mending))
    show_report(source, report, their, proof, show_all, ignored, output)
    for line in workflow_commands(source, report) if annotate else ():
        output.raw(f"{line}\n")
    if is_failing(report, bar):
        _fail(source, report, store, not fix and can_mend(store, report, their), require_architecture)


def _codes(ignore: list[str] | None) -> list[str]:
    """The codes of --ignore, each once.

    Raises:
        UsageError: no finding has such a code.
    """
    from dsctl.verify.findings import CODES

    words = dict.fromkeys(word.strip() for text in ignore or () for word in text.split(","))
    return [choose(word, CODES, "finding code", "--ignore") for word in words]


def _checked(store: Store, their: Other | None, deep: bool, ignore: Collection[str], output: Output) -> Report:
    from dsctl.verify import deep_bytes
    from dsctl.verify import verify as verified

    if not deep:
        report = verified(store, their)
    else:
        with reading(output, deep_bytes(store), "reading") as advance:
            report = verified(store, their, True, advance)
    return replace(report, findings=tuple(f for f in report.findings if f.code not in ignore))


def _tell(done: list[Mend], dry_run: bool, output: Output) -> None:
    """Print what --fix would do, or that there was nothing to do."""
    for one in done if dry_run else ():
        output.note(f"would fix {one.file}: {one.what}")
    if dry_run:
        output.note("dry run: nothing was written")
    elif not done:
        output.note("nothing to fix")


def _fail(source: str, report: Report, store: Store, mendable: bool, required: bool) -> None:
    from dsctl.checkpoint.causes import remedy

    counts = [plural(report.count(kind), kind) for kind in ("error", "warning") if report.count(kind)]
    if required and report.checked.architecture is None:
        counts.append("an unknown architecture")
    fixing = "--fix corrects the metadata; --fix --dry-run only lists the changes" if mendable else None
    raise VerifyFailed(f"{source}: {' and '.join(counts)}", hint=remedy(store, report.findings) or fixing)
