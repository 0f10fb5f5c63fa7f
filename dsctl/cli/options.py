"""Options that several verbs share, with the same words everywhere."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dsctl.core.errors import UsageError

# The panels of `--help`; an option without one stands above them.
WHAT, WHICH, RANKS, RUNNING = "What to convert", "Which part", "Ranks", "Running"
MOST_RANKS = 4096
# Numbers of layers, experts and ranks are below this.
MOST_NUMBERS = 1 << 16
_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_size(text: str | None, option: str) -> int | None:
    """A size such as 8GB, 512MiB or 1000000, in bytes.

    Raises:
        UsageError: it is not one.
    """
    if text is None:
        return None
    digits = text.strip().rstrip("BKMGTIbkmgti ")
    unit = text.strip()[len(digits) :].strip().upper()
    if len(unit) == 1 and unit != "B":
        unit += "B"
    try:
        value = float(digits) * _UNITS[unit]
    except (ValueError, KeyError):
        raise UsageError(f"{option}: {text!r} is not a size", hint="write it as 8GB, 512MiB or 1000000") from None
    if not 0 < value < 1 << 60:
        raise UsageError(f"{option}: {text!r} is not a sensible size")
    return int(value)


def parse_numbers(text: str | None, option: str, what: str = "numbers") -> tuple[int, ...]:
    """0-3,61 as 0, 1, 2, 3, 61: in order, each once; none if there is no text.

    Raises:
        UsageError: it is not such a list.
    """
    found: set[int] = set()
    for part in text.split(",") if text is not None else ():
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else not last)) or len(part) > 16:
            raise UsageError(f"{option}: {text!r} is not a list of {what}", hint="write it as 3, 0-7 or 0-3,61")
        begin, end = int(first), int(last or first)
        if not begin <= end < MOST_NUMBERS:
            raise UsageError(f"{option}: {part.strip()!r} is not a range of {what}", hint="the smaller number is first")
        found.update(range(begin, end + 1))
    return tuple(sorted(found))


def _memory(text: str) -> int | None:
    return parse_size(text, "--max-memory")


def _shard_size(text: str) -> int | None:
    return parse_size(text, "--shard-size")


def _workers(text: str) -> int | None:
    if text == "auto":
        return None
    if not (text.isdecimal() and 1 <= int(text) <= 1024):
        raise UsageError(f"--workers: {text!r} is neither auto nor a number from 1 to 1024")
    return int(text)


def _ranks(name: str, what: str) -> Any:
    return typer.Option(f"--{name}", metavar="N", min=1, max=MOST_RANKS, help=what, rich_help_panel=RANKS)


Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC", help="A checkpoint: folder, .safetensors file, org/name, or a URL such as s3://bucket/path."
    ),
]
Target = Annotated[str, typer.Argument(metavar="DST", help="The folder to write, or a URL such as s3://bucket/path.")]
Remote = Annotated[
    bool, typer.Option("--remote", help="Read the release from the hub instead of using the built-in description.")
]
Local = Annotated[
    bool,
    typer.Option("--local", help="Accept only what is on this machine: a folder or file, never a release or URL."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Html = Annotated[
    str | None, typer.Option("--html", metavar="FILE", help="Write a self-contained HTML report to this file.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="bf16, fp8-block, int4-group, ...: dsctl formats lists them; or published: as releases store it.",
        rich_help_panel=WHAT,
    ),
]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Short for --to bf16.", rich_help_panel=WHAT)]
Fp8 = Annotated[bool, typer.Option("--fp8", help="Short for --to fp8-block.", rich_help_panel=WHAT)]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        help="Formats by role and name, from a TOML file or a ready one: dsctl formats lists them.",
        rich_help_panel=WHAT,
    ),
]
Search = Annotated[
    bool,
    typer.Option(
        "--search", help="Choose the scales of four-bit formats by least squared error: slower.", rich_help_panel=WHAT
    ),
]
ScaleFmt = Annotated[
    str,
    typer.Option(
        "--scale-fmt",
        metavar="auto|float32|ue8m0",
        help="FP8 scales: any float, or powers of two (V3.1 and later); V4: stored as float32, or as E8M0.",
        rich_help_panel=WHAT,
    ),
]
ShardSize = Annotated[
    int | None,
    typer.Option(
        "--shard-size",
        metavar="SIZE",
        parser=_shard_size,
        help="Regroup tensors into files of at most this size, such as 5GB.",
        rich_help_panel=WHAT,
    ),
]
NoKeep = Annotated[
    bool,
    typer.Option(
        "--no-keep-scales",
        help="Do not keep the original scales beside decoded weights.",
        rich_help_panel=WHAT,
    ),
]

Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="GLOB", help="Only parameters whose name matches; repeatable.", rich_help_panel=WHICH
    ),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        "--skip", metavar="GLOB", help="Leave out parameters whose name matches; repeatable.", rich_help_panel=WHICH
    ),
]
Mtp = Annotated[
    bool, typer.Option("--mtp", help="Keep the MTP layer in a layout that leaves it out.", rich_help_panel=WHICH)
]
NoMtp = Annotated[bool, typer.Option("--no-mtp", help="Drop the multi-token-prediction layer.", rich_help_panel=WHICH)]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Continue if tensors are missing.", rich_help_panel=WHICH)
]
AllowInexact = Annotated[
    bool,
    typer.Option(
        "--allow-inexact",
        help="Where four-bit experts become FP8: go on if a block does not fit exactly, and count such blocks.",
        rich_help_panel=WHAT,
    ),
]
AllowExtra = Annotated[
    bool,
    typer.Option(
        "--allow-extra", help="Carry over tensors that the architecture does not have.", rich_help_panel=WHICH
    ),
]

Tp = Annotated[int | None, _ranks("tp", "Tensor-parallel ranks: cut matrices by rows or columns.")]
Ep = Annotated[int | None, _ranks("ep", "Expert-parallel parts: assign whole experts to each.")]
Pp = Annotated[int | None, _ranks("pp", "Pipeline stages: runs of layers.")]
Layout = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="NAME",
        help="How tensors are named and kept: published (the release's own), deepseek, fused, stacked or vllm.",
        rich_help_panel=RANKS,
    ),
]
Names = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="NAME",
        help="How tensors are named: published (the release's own, the default), transformers, fused or stacked.",
        rich_help_panel=WHAT,
    ),
]
Rank = Annotated[
    str | None,
    typer.Option("--rank", metavar="N|A-B", help="Write only these ranks, such as 3 or 0-3,8.", rich_help_panel=RANKS),
]
ExpertMap = Annotated[
    str | None,
    typer.Option(
        "--expert-map",
        metavar="FILE",
        help="Which experts each part holds, as EPLB gives it in JSON.",
        rich_help_panel=RANKS,
    ),
]
Recode = Annotated[
    bool,
    typer.Option(
        "--recode",
        help="If a cut goes through blocks, decode and encode again instead of refusing.",
        rich_help_panel=RANKS,
    ),
]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.", rich_help_panel=RUNNING)]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N|auto",
        parser=_workers,
        help="Worker processes (default: auto, from cores, memory and the plan).",
        rich_help_panel=RUNNING,
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="processes|ray",
        help="Who does the work: processes here, or a Ray cluster.",
        rich_help_panel=RUNNING,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="The Ray cluster to join: auto, or HOST:PORT of its head.",
        rich_help_panel=RUNNING,
    ),
]
Device = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="Where to compute: cpu, cuda, cuda:0,1.", rich_help_panel=RUNNING),
]
MaxMemory = Annotated[
    int | None,
    typer.Option(
        "--max-memory",
        "--memory",
        metavar="SIZE",
        parser=_memory,
        help="Budget for all processes together, such as 8GB.",
        rich_help_panel=RUNNING,
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Start over in a folder that dsctl made.", rich_help_panel=RUNNING)
]
Verbose = Annotated[bool, typer.Option("--verbose", help="A line per finished file.", rich_help_panel=RUNNING)]
Consume = Annotated[
    int,
    typer.Option(
        "--consume",
        metavar="",
        count=True,
        show_default=False,
        help="Delete each source file once its converted data is on disk. Cannot be undone; pass it twice to confirm.",
        rich_help_panel=RUNNING,
    ),
]
