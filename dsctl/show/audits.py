"""Print the result of a conversion: what was done, what was written, what was left out."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from dsctl.layouts.ranks import Ranks
from dsctl.show.output import Output, plural, size
from dsctl.work.tasks import INFINITE, NAN, WORST

if TYPE_CHECKING:
    from dsctl.run.carry_out import Setup

# What becomes of parameters, by the names of the audit's counts.
DONE = {
    "dequantized": "decoded from a quantized format",
    "quantized": "encoded into a quantized format",
    "requantized": "decoded and encoded again",
    "recast": "recast, exact: the same values in another form",
    "cast": "cast to another float dtype",
    "renumbered": "given the new numbers of experts",
    "moved": "moved byte for byte",
    "dropped": "left out",
}
_BLOCKS = {
    "blocks_restored": "blocks with their kept scale",
    "blocks_computed": "blocks with a new scale",
    "groups_restored": "groups of 32 with their kept scale",
    "groups_computed": "groups of 32 with a scale that follows from their values",
    "blocks_recast": "blocks recast",
    "blocks_inexact": "blocks that lost something",
    "blocks_requantized": "blocks that were no exact fit and were quantized again",
    "scales_odd": "groups of 32 whose scale is kept",
}


def show_found(setup: Setup, audit: dict[str, Any], output: Output) -> None:
    """That there was nothing to do; and that files were kept which someone may think consumed."""
    done = "there" if left_out(audit) else "complete"
    output.text(f"{setup.target} is {done} already: the same request made it before")
    if setup.spared:
        output.note("--consume deleted nothing: it deletes what a run converts, and this one found nothing to do")


def warn_of_values(audit: dict[str, Any], output: Output) -> None:
    """Tell of decoded values that are not finite."""
    for name, what in ((NAN, "not a number"), (INFINITE, "infinite")):
        if number := audit["audit"].get(name):
            there = "is" if number == 1 else "are"
            output.warn(f"{plural(number, 'decoded value')} {there} {what}: `dsctl verify --deep` names them")


def show_audit(audit: dict[str, Any], target: str, output: Output) -> None:
    """Print the audit that `dsctl.json` keeps."""
    counts = audit["audit"]
    said = [f"{counts[name]:,} {name}" for name in DONE if counts.get(name)]
    blocks = [f"{counts[name]:,} {words}" for name, words in _BLOCKS.items() if counts.get(name)]
    values = f"{counts['parameters']:,} parameters, {counts['values']:,} values"
    output.text(("audit", "bold"), f": {values}: {', '.join(said)}; {counts['unexplained']} unexplained")
    if blocks:
        output.text(f"scales: {', '.join(blocks)}")
    if WORST in counts:
        error = f"{counts[WORST]:,} millionths of the largest value of its part"
        output.text(f"recoded because of a cut: the value furthest from what it was is off by {error}")
    for note in audit["notes"]:
        output.text(f"note: {note}")
    total = sum(file["size"] for file in audit["files"].values())
    left = left_out(audit)
    how = ("in part", "yellow") if left else ("complete", "green")
    files = f"{plural(len(audit['files']), 'file')}, {size(total)} in {target} (digests in dsctl.json)"
    output.text(how, f": {files}" + (f"; left out: {left}" if left else ""))


def _exact(name: str, counts: dict[str, int]) -> str:
    """That what was recast is exact, where every block was."""
    return " (exact)" if name == "recast" and not {"blocks_inexact", "blocks_requantized"} & counts.keys() else ""


def left_out(audit: dict[str, Any]) -> str:
    """What a result does not hold of its source: parameters by why, and ranks; empty where it holds all of it."""
    why = Counter(why for _, why in audit["dropped"])
    left = [f"{plural(number, 'parameter')} ({what})" for what, number in why.items()]
    request = audit["request"]
    world = Ranks(request["tp"], request["ep"], request["pp"]).world
    if request["ranks"] and len(request["ranks"]) < world:
        left.append(f"{world - len(request['ranks']):,} of {world:,} ranks")
    return ", ".join(left)
