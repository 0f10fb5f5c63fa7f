"""Options of the verbs that write a checkpoint, with the same words everywhere."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dsctl.cli import completion
from dsctl.cli.commands import RANKS, RUNNING, WHAT, WHICH
from dsctl.cli.options import parse_size
from dsctl.core.errors import UsageError
from dsctl.plan.request import DRAFTERS

MOST_RANKS = 4096


def _memory(text: str) -> int | None:
    return parse_size(text, "--max-memory")


def _staging(text: str) -> int | None:
    return parse_size(text, "--staging")


def _shard_size(text: str) -> int | None:
    return parse_size(text, "--shard-size")


def _drafter(text: str) -> str:
    if text not in DRAFTERS:
        hint = "write --mtp keep, --mtp drop or --mtp only; without a value it meant keep before"
        raise UsageError(f"--mtp: {text!r} is not keep, drop or only", hint=hint)
    return text


def _flag(*names: str, panel: str, help_: str) -> Any:
    return typer.Option(*names, help=help_, rich_help_panel=panel)


def _ranks(name: str, help_: str) -> Any:
    return typer.Option(f"--{name}", metavar="N", min=1, max=MOST_RANKS, help=help_, rich_help_panel=RANKS)


To = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="FORMAT",
        autocompletion=completion.formats,
        help="Convert to this format: see `dsctl formats`; or to published, as releases store it.",
        rich_help_panel=WHAT,
    ),
]
Bf16 = Annotated[bool, _flag("--bf16", panel=WHAT, help_="Convert to bf16 (short for --to bf16).")]
Fp8 = Annotated[bool, _flag("--fp8", panel=WHAT, help_="Convert to fp8-block (short for --to fp8-block).")]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="NAME|FILE",
        autocompletion=completion.recipes,
        help="Choose formats by role and name: a recipe of `dsctl formats`, or a TOML file.",
        rich_help_panel=WHAT,
    ),
]
Search = Annotated[
    bool, _flag("--search", panel=WHAT, help_="Search for the four-bit scales with the least squared error (slower).")
]
ScaleFmt = Annotated[
    str,
    typer.Option(
        "--scale-fmt",
        metavar="auto|float32|ue8m0",
        autocompletion=completion.scale_formats,
        help="Choose FP8 scales: any float32, or powers of two. For V4: store them as F32 or E8M0.",
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
    _flag("--no-keep-scales", panel=WHAT, help_="Do not keep the original scales beside decoded weights."),
]
AllowInexact = Annotated[
    bool,
    _flag(
        "--allow-inexact", panel=WHAT, help_="Continue if four-bit experts do not convert exactly; count such blocks."
    ),
]

Mtp = Annotated[
    str | None,
    typer.Option(
        "--mtp",
        metavar="keep|drop|only",
        parser=_drafter,
        autocompletion=completion.drafters,
        help="Keep the drafter (MTP or DSpark), drop it, or write only it: a draft model.",
        rich_help_panel=WHICH,
    ),
]
NoMtp = Annotated[bool, _flag("--no-mtp", panel=WHICH, help_="Drop the drafter (short for --mtp drop).")]
AllowMissing = Annotated[bool, _flag("--allow-missing", panel=WHICH, help_="Continue if tensors are missing.")]
AllowExtra = Annotated[
    bool, _flag("--allow-extra", panel=WHICH, help_="Copy tensors that the architecture does not have.")
]

KeptLayers = Annotated[
    str | None,
    typer.Option("--layers", metavar="NUMBERS", help="Keep only these layers, such as 0-4,mtp.", rich_help_panel=WHICH),
]

Tp = Annotated[int | None, _ranks("tp", "Split matrices by rows or columns over N tensor-parallel ranks.")]
Ep = Annotated[int | None, _ranks("ep", "Distribute whole experts over N expert-parallel parts.")]
Pp = Annotated[int | None, _ranks("pp", "Split the layers into N pipeline stages.")]
Layout = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="NAME",
        autocompletion=completion.layouts,
        help="Choose names and files: published, deepseek, fused, stacked, vllm or transformers.",
        rich_help_panel=RANKS,
    ),
]
Names = Annotated[
    str | None,
    typer.Option(
        "--layout",
        metavar="NAME",
        autocompletion=completion.whole_layouts,
        help="Choose names: published (as released, the default), transformers, fused or stacked.",
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
        help="Read which experts each part holds from this JSON file, as EPLB writes it.",
        rich_help_panel=RANKS,
    ),
]
Recode = Annotated[
    bool,
    _flag("--recode", panel=RANKS, help_="Quantize blocks again if a split goes through them, instead of refusing."),
]

Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="processes|ray",
        envvar="DSCTL_ENGINE",
        autocompletion=completion.engines,
        help="Run the work in processes of this machine, or on a Ray cluster.",
        rich_help_panel=RUNNING,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        envvar="DSCTL_ADDRESS",
        help="Join the Ray cluster at this address: auto, or HOST:PORT of its head.",
        rich_help_panel=RUNNING,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        envvar="DSCTL_DEVICE",
        autocompletion=completion.devices,
        help="Compute on cpu, cuda, some GPUs (cuda:0,1), or auto: the faster one, as measured.",
        rich_help_panel=RUNNING,
    ),
]
Digest = Annotated[
    str,
    typer.Option(
        "--digest",
        metavar="blake3|sha256",
        autocompletion=completion.digests,
        help="Compute BLAKE3 digests, or with sha256 also SHA-256, which reads each file again.",
        rich_help_panel=RUNNING,
    ),
]
MaxMemory = Annotated[
    int | None,
    typer.Option(
        "--max-memory",
        "--memory",
        metavar="SIZE",
        envvar="DSCTL_MAX_MEMORY",
        parser=_memory,
        help="Limit the memory of all processes together, such as 8GB.",
        rich_help_panel=RUNNING,
    ),
]
Staging = Annotated[
    int | None,
    typer.Option(
        "--staging",
        metavar="SIZE",
        parser=_staging,
        help="Limit the disk for files on their way to a URL, such as 30GB.",
        rich_help_panel=RUNNING,
    ),
]
Public = Annotated[
    bool, _flag("--public", panel=RUNNING, help_="Make a new repository on a hub public instead of private.")
]
Verbose = Annotated[bool, _flag("--verbose", "-v", panel=RUNNING, help_="Print a line per finished file.")]
Consume = Annotated[
    int,
    typer.Option(
        "--consume",
        metavar="",
        count=True,
        show_default=False,
        help="Delete source files as they are converted (irreversible; pass twice to confirm).",
        rich_help_panel=RUNNING,
    ),
]
KeptExperts = Annotated[
    str | None,
    typer.Option(
        "--experts",
        metavar="N|NUMBERS|FILE",
        help="Keep the first N routed experts, these: 0-3,16-19, or those of a plan, a JSON file.",
        rich_help_panel=WHICH,
    ),
]
CopyToDrafter = Annotated[
    bool,
    typer.Option(
        "--copy-to-drafter",
        help="Use a plan's lists of the last main layers for the drafter's layers too.",
        rich_help_panel=WHICH,
    ),
]
