"""`dsctl compare`: compare the values of two checkpoints."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, Annotated

import typer

from dsctl.cli.groups import PrintOptions, verb
from dsctl.cli.options import Html, Only, Skip
from dsctl.core.errors import UsageError, VerifyFailed
from dsctl.show.bars import reading
from dsctl.show.drawing import ready, save
from dsctl.show.output import plural

if TYPE_CHECKING:
    from dsctl.look.comparison import Comparison

Ours = Annotated[str, typer.Argument(metavar="A", help="The reference: a checkpoint folder or a .safetensors file.")]
Theirs = Annotated[str, typer.Argument(metavar="B", help="The checkpoint to compare with it.")]
Worst = Annotated[
    int, typer.Option("--worst", metavar="N", min=0, help="List the N parameters with the largest differences.")
]
FailUnder = Annotated[
    float | None,
    typer.Option("--fail-under", metavar="DB", help="Exit with 50 if a parameter is missing or its SNR is below this."),
]


@verb
def compare(
    ours: Ours,
    theirs: Theirs,
    *,
    only: Only = None,
    skip: Skip = None,
    worst: Worst = 10,
    fail_under: FailUnder = None,
    html: Html = None,
    printing: PrintOptions,
) -> None:
    """Compare the values of two checkpoints, in any formats.

    Per parameter and per role: signal-to-noise ratio, cosine, largest absolute and relative error, share of identical
    values. Parameters are matched by name; quantized ones are decoded as a conversion decodes them.

    Examples:

        dsctl compare DeepSeek-V3.2 DeepSeek-V3.2-bf16

        dsctl compare DeepSeek-V3.2-bf16 requantized --fail-under 25 --only '*.experts.*'

        dsctl compare DeepSeek-V3.2-bf16 requantized --html errors.html
    """
    if fail_under is not None and not isfinite(fail_under):
        raise UsageError(f"--fail-under: {fail_under} is not a number of decibels", hint="--fail-under 25, for example")
    if html is not None:
        ready(html, (ours, theirs))
    from dsctl.checkpoint.opening import weights_at
    from dsctl.look.compare import compare as compared
    from dsctl.look.compare import pair
    from dsctl.show.comparison import as_json, show_comparison

    output = printing.output()
    pairing = pair(weights_at(ours), weights_at(theirs), tuple(only or ()), tuple(skip or ()))
    with reading(output, pairing.nbytes, "comparing") as advance:
        found = compared(pairing, advance)
    output.data(as_json(found))
    if not output.json:
        show_comparison(found, (ours, theirs), worst, output)
    if html is not None:
        from dsctl.show.pages.comparison import comparison

        save(comparison(found, (ours, theirs), worst), html)
    if fail_under is not None:
        _fail(found, fail_under)


def _fail(found: Comparison, limit: float) -> None:
    below = [one for one in found.compared if one.below(limit)]
    issues = [f"{one.name}: SNR {'none' if one.sums.snr is None else f'{one.sums.snr:.2f} dB'}" for one in below]
    issues += [f"{name}: on one side only" for name in (*found.only_ours, *found.only_theirs)]
    issues += [f"{one.name}: shapes differ" for one in found.reshaped]
    issues += [f"{name}: no numbers to compare" for name in found.not_numbers]
    if issues:
        what = f"{plural(len(issues), 'parameter')} under {limit:g} dB or not comparable"
        raise VerifyFailed(what, issues=issues, hint="--skip leaves out parameters that are expected to differ")
