"""Print the result of a conversion: what was done, what was written, what was left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dsctl.plan.notes import PARTIAL, WARNING, labelled
from dsctl.run.result import left_out
from dsctl.show.merges import show_merge
from dsctl.show.output import Output, plural, size, span
from dsctl.work.tasks import AS_RELEASED, COMPUTE, DIGEST, INFINITE, NAN, READ, UNLIKE_RELEASED, WORST, WRITE

if TYPE_CHECKING:
    from dsctl.run.carry_out import Setup
    from dsctl.run.pace import Pace

# What happens to parameters, by the names of the audit's counts.
DONE = {
    "dequantized": "decoded from a quantized format",
    "quantized": "encoded into a quantized format",
    "requantized": "decoded and encoded again",
    "recast": "recast, exact: the same values in another form",
    "cast": "cast to a different float dtype",
    "merged": "changed by the adapter",
    "replaced": "replaced by a tensor of the adapter",
    "patched": "changed by the delta",
    "renumbered": "copied with renumbered experts",
    "moved": "copied unchanged",
    "dropped": "left out",
}
_WORKING = {READ: "reading", COMPUTE: "computing", DIGEST: "digesting", WRITE: "writing"}
_BLOCKS = {
    "blocks_restored": "blocks with their kept scale",
    "blocks_computed": "blocks with a new scale",
    "groups_restored": "groups with their kept scale",
    "groups_computed": "groups whose scale follows from their values",
    "groups_without_scale": "groups of zeros whose scale is 0, so that their codes are not known",
    "blocks_recast": "blocks recast",
    "blocks_inexact": "blocks that lost precision",
    "blocks_requantized": "blocks without an exact fit, quantized again",
    "scales_odd": "groups of 32 whose scale is kept",
}


def printed(audit: dict[str, Any], pace: Pace | None) -> dict[str, Any]:
    """The audit as `--json` prints it: with the time of this run, without the digests of single tensors, which can take
    megabytes."""
    files = {name: {key: file[key] for key in file if key != "tensors"} for name, file in audit["files"].items()}
    return audit | {"files": files, "run": pace.json() if pace else None}


def show_found(setup: Setup, audit: dict[str, Any], output: Output) -> None:
    """Say that there was nothing to do, and that --consume deleted nothing."""
    done = "written in part" if left_out(audit) else "complete"
    output.text(f"{setup.target} is already {done}: an earlier run of the same request made it")
    if setup.spared:
        output.note("--consume deleted nothing, because this run had nothing to convert")


def warn(notes: Iterable[str], output: Output) -> None:
    """Print the warnings among the notes of a plan, on stderr."""
    for note in notes:
        if note.startswith(WARNING):
            output.warn(note.removeprefix(WARNING))


def show_notes(notes: Iterable[str], output: Output) -> None:
    """Print the notes of a plan or an audit that have no label; `warn` and `show_partial` print the others."""
    for note in notes:
        if labelled(note) != note:
            output.text(labelled(note))


def show_partial(notes: Iterable[str], output: Output) -> None:
    """Say, at the end, that loaders cannot open the result."""
    for note in notes:
        if note.startswith(PARTIAL):
            output.text((PARTIAL.rstrip(), "yellow"), f" {note.removeprefix(PARTIAL)}")


def warn_of_values(audit: dict[str, Any], output: Output) -> None:
    """Warn of decoded values that are not finite, and of restored files that are not the release's."""
    if number := audit["audit"].get(UNLIKE_RELEASED):
        have = "has a" if number == 1 else "have a"
        output.warn(f"{plural(number, 'restored file')} {have} different SHA-256 than in the release")
    for name, what in ((NAN, "not a number"), (INFINITE, "infinite")):
        if number := audit["audit"].get(name):
            there = "is" if number == 1 else "are"
            output.warn(f"{plural(number, 'decoded value')} {there} {what}: `dsctl verify --deep` names them")


def show_audit(audit: dict[str, Any], target: str, output: Output, pace: Pace | None = None) -> None:
    """Print the audit that `dsctl.json` keeps, and the pace of a run of some size."""
    counts = audit["audit"]
    said = [f"{counts[name]:,} {name}" for name in DONE if counts.get(name)]
    blocks = [f"{counts[name]:,} {words}" for name, words in _BLOCKS.items() if counts.get(name)]
    kept = counts["parameters"] - counts.get("dropped", 0)
    of = f"{kept:,} of {counts['parameters']:,}" if counts.get("dropped") else f"{kept:,}"
    values = f"{of} parameters, {counts['values']:,} values"
    output.text(("audit", "bold"), f": {values}: {', '.join(said)}; {counts['unexplained']} unexplained")
    if blocks:
        output.text(f"scales: {', '.join(blocks)}")
    if WORST in counts:
        output.text(f"largest error after re-quantizing: {counts[WORST]:,} ppm of the part's maximum")
    if AS_RELEASED in counts:
        of = counts[AS_RELEASED] + counts[UNLIKE_RELEASED]
        output.text(f"release: {counts[AS_RELEASED]:,} of {plural(of, 'file')} have the SHA-256 that the hub stated")
    show_merge(audit, output)
    show_notes(audit["notes"], output)
    total = sum(file["size"] for file in audit["files"].values())
    left = left_out(audit)
    how = ("in part", "yellow") if left else ("complete", "green")
    files = f"{plural(len(audit['files']), 'file')}, {size(total)} in {target}"
    shown = pace if pace and pace.limit else None
    took = f" in {span(shown.seconds)}, {size(shown.rate)}/s, limited by the {shown.limit}" if shown else ""
    output.text(how, f": {files}{took} (digests in dsctl.json)" + (f"; left out: {left}" if left else ""))
    if shown:
        shares = ", ".join(f"{share:.0%} {_WORKING[name]}" for name, share in shown.shares.items())
        output.text(f"time of the workers: {shares}")
    show_partial(audit["notes"], output)


def _exact(name: str, counts: dict[str, int]) -> str:
    """The remark that recast parameters are exact, if every block was."""
    return " (exact)" if name == "recast" and not {"blocks_inexact", "blocks_requantized"} & counts.keys() else ""
