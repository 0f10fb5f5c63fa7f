"""`dsctl delta`: make, apply, check and fold deltas."""

from __future__ import annotations

from typing import Annotated

import typer

from dsctl.cli import completion
from dsctl.cli.commands import RUNNING, WHAT
from dsctl.cli.conversion_options import Public
from dsctl.cli.groups import DeliveryOptions, DeltaRunOptions, PrintOptions, verb
from dsctl.core.errors import UsageError

Old = Annotated[
    str,
    typer.Argument(
        metavar="OLD",
        autocompletion=completion.sources,
        help="The base: a folder, org/name, or a URL such as s3://bucket/path.",
    ),
]
New = Annotated[
    str,
    typer.Argument(metavar="NEW", autocompletion=completion.sources, help="The later checkpoint, named the same way."),
]
Delta = Annotated[str, typer.Argument(metavar="DELTA", help="A delta: a folder, org/name or a URL.")]
Target = Annotated[
    str, typer.Argument(metavar="DST", help="The folder to write, or a URL such as s3://bucket/path or hf://org/name.")
]
Result = Annotated[
    str | None,
    typer.Argument(metavar="[DST]", help="The folder to write, or a URL such as s3://bucket/path or hf://org/name."),
]
Chain = Annotated[
    list[str],
    typer.Argument(metavar="D1 D2 ... DST", help="The deltas in the order of the chain, then the new folder."),
]
Encoding = Annotated[
    str,
    typer.Option(
        "--encoding",
        metavar="xor|overwrite|shuffled",
        autocompletion=completion.encodings,
        help="Store the XOR, positions and new bytes, or (for dsctl alone) the XOR in byte planes.",
        rich_help_panel=WHAT,
    ),
]
Checksum = Annotated[
    str,
    typer.Option(
        "--checksum",
        metavar="adler32|xxh3-128|blake3",
        autocompletion=completion.checksums,
        help="Choose the checksum of each new tensor that other readers compare.",
        rich_help_panel=WHAT,
    ),
]
Level = Annotated[
    int | None,
    typer.Option(
        "--level",
        metavar="1-19",
        help="Use this level of zstd instead of the setting for sparse differences.",
        rich_help_panel=WHAT,
    ),
]
Version = Annotated[
    int, typer.Option("--version", metavar="N", help="Set the number of the new version.", rich_help_panel=WHAT)
]
BaseVersion = Annotated[
    int | None,
    typer.Option(
        "--base-version",
        metavar="N",
        help="Set the number of the base's version, if it is not the one before.",
        rich_help_panel=WHAT,
    ),
]
Anyway = Annotated[
    bool, typer.Option("--anyway", help="Make the delta even if it saves nothing.", rich_help_panel=RUNNING)
]
InPlace = Annotated[
    bool,
    typer.Option(
        "--in-place",
        help="Replace the files of OLD one after another; a kill leaves each of them old or new.",
        rich_help_panel=RUNNING,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="OLD", autocompletion=completion.sources, help="Check the result on this base, too."
    ),
]
All = Annotated[bool, typer.Option("--all", help="List every changed tensor.")]


def delta() -> None:
    """Make a delta of two checkpoints, apply it, check it, or fold several into one.

    A delta is a folder in the form that trainers and engines share (slime, miles, SGLang, ModelExpress): an index, and
    one zstd frame for each tensor that changed.

    Examples:

        dsctl delta make step-100 step-101 delta-101

        dsctl delta apply step-100 delta-101 made
    """


@verb
def make(
    old: Old,
    new: New,
    target: Target,
    *,
    encoding: Encoding = "xor",
    checksum: Checksum = "adler32",
    level: Level = None,
    version: Version = 1,
    base_version: BaseVersion = None,
    anyway: Anyway = False,
    every: All = False,
    run: DeltaRunOptions,
    public: Public = False,
    printing: PrintOptions,
) -> None:
    """Write what changed from one checkpoint to the next.

    Both sides may have any format and any place. Every tensor is compared as bytes; equal ones take nothing. A sample
    is looked at first: if the differences take as much as the new values alone, no delta is made. Finished files stay
    if a run is interrupted, and the same command goes on.

    Examples:

        dsctl delta make step-100 step-101 delta-101 --version 101

        dsctl delta make step-101 step-102 delta-102 --version 102 --dry-run

        dsctl delta make step-101 step-102 stored --encoding shuffled
    """
    from dsctl.cli.deltas import make_delta
    from dsctl.core.frames import SPARSE
    from dsctl.plan.delta_options import DeltaOptions

    if level is not None and level == SPARSE:
        raise UsageError("--level: 0 is not a level of zstd", hint="1 to 19")
    options = DeltaOptions(encoding, checksum, level or SPARSE, version, base_version, anyway)
    make_delta((old, new, target), options, run, public, every, printing.output())


@verb
def apply(
    old: Old,
    changes: Delta,
    target: Result = None,
    *,
    in_place: InPlace = False,
    run: DeltaRunOptions,
    delivery: DeliveryOptions,
    printing: PrintOptions,
) -> None:
    """Make the later checkpoint from its base and a delta.

    Every byte of OLD is read and compared with the delta's digests before anything is written; another base is
    refused. Deltas of other tools have no digests of the base: their checksums of the result are tried first instead.
    If a run is interrupted, the same command resumes it, also with --in-place.

    Examples:

        dsctl delta apply step-100 delta-101 made

        dsctl delta apply step-100 delta-101 --in-place --dry-run

        dsctl delta apply deepseek-ai/DeepSeek-V3.2 s3://weights/delta s3://weights/fine-tuned --dry-run
    """
    from dsctl.cli.deltas import apply_delta, apply_in_place

    if in_place == (target is not None):
        hint = "name a folder to write, or give --in-place"
        raise UsageError(
            "delta apply: DST and --in-place exclude each other" if target else "delta apply: no DST", hint=hint
        )
    if target is None:
        if delivery.staging or delivery.public:
            raise UsageError("delta apply: --staging and --public are for a DST at a URL", hint="leave them out")
        apply_in_place(old, changes, run, printing.output())
    else:
        apply_delta((old, changes, target), run, delivery, printing.output())


@verb
def verify(changes: Delta, *, base: Base = None, run: DeltaRunOptions, printing: PrintOptions) -> None:
    """Check a delta: its index, its frames and digests, and with --base also what becomes of it.

    Nothing is written. Exits with 50 if something is wrong.

    Examples:

        dsctl delta verify delta-101

        dsctl delta verify delta-101 --base step-100
    """
    from dsctl.cli.deltas import verify_delta

    verify_delta(changes, base, run, printing.output())


@verb
def fold(
    chain: Chain, *, level: Level = None, run: DeltaRunOptions, public: Public = False, printing: PrintOptions
) -> None:
    """Fold deltas that follow each other into one.

    Neither the base nor the result is needed. A tensor that changes back drops out.

    Examples:

        dsctl delta make step-101 step-102 delta-102 --version 102

        dsctl delta fold delta-101 delta-102 delta-100-to-102
    """
    from dsctl.cli.deltas import fold_deltas

    fold_deltas(chain, level, run, public, printing.output())
