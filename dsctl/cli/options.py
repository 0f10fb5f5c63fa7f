"""Options that several verbs share, with the same words everywhere."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from dsctl.core.errors import SourceError, UsageError

Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC", help="A checkpoint: folder, .safetensors file, org/name, or a URL such as s3://bucket/path."
    ),
]
Target = Annotated[str, typer.Argument(metavar="DST", help="The folder to write, or a URL such as s3://bucket/path.")]
Remote = Annotated[
    bool, typer.Option("--remote", help="Read the repository of a release on the hub, not what dsctl knows of it.")
]
Local = Annotated[
    bool,
    typer.Option("--local", help="Accept only what is on this machine: a folder or file, never a release or URL."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Html = Annotated[
    str | None, typer.Option("--html", metavar="FILE", help="Write a page to look at: one file, nothing to fetch.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="GLOB", help="Only parameters whose name matches; repeatable.")
]
Skip = Annotated[
    list[str] | None,
    typer.Option("--skip", metavar="GLOB", help="Leave out parameters whose name matches; repeatable."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")]


def _workers(text: str) -> int | None:
    if text == "auto":
        return None
    if not (text.isdecimal() and 1 <= int(text) <= 1024):
        raise UsageError(f"--workers: {text!r} is neither auto nor a number from 1 to 1024")
    return int(text)


Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N|auto",
        parser=_workers,
        help="Worker processes (default: auto, from cores, memory and the plan).",
    ),
]
Engine = Annotated[
    str,
    typer.Option("--engine", metavar="processes|ray", help="Who does the work: processes here, or a Ray cluster."),
]
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="ADDRESS", help="The Ray cluster to join: auto, or HOST:PORT of its head."),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="Where to compute: cpu, cuda, cuda:0,1.")]
MaxMemory = Annotated[
    str | None,
    typer.Option("--max-memory", "--memory", metavar="SIZE", help="Budget for all processes together, such as 8GB."),
]
Force = Annotated[bool, typer.Option("--force", help="Start over in a folder that dsctl made.")]


def repository_of(text: str) -> str:
    """The repository of a release by any of its names; what has the form of a repository is one itself.

    Raises:
        UsageError: it is neither.
    """
    from dsctl import releases
    from dsctl.stores.hub import SCHEME, is_repository

    if "/" not in text:
        name, mark, revision = text.partition("@")
        return releases.find(name).repository + mark + revision
    if not is_repository(text.removeprefix(SCHEME)):
        raise UsageError(f"{text}: is not the name of a repository", hint="write it as org/name or org/name@revision")
    return text


def located(source: str, remote: bool = False, local: bool = False) -> str:
    """What to open: with --remote the hub's repository, where there is nothing of that name on this machine.

    Raises:
        UsageError: it is no release and no repository; --remote and --local are both given.
        SourceError: with --local, nothing of that name is on this machine.
    """
    from dsctl import releases
    from dsctl.stores.hub import SCHEME

    if remote and local:
        raise UsageError("--remote and --local are both given", hint="choose one")
    if local and not os.path.exists(source):
        named = releases.known(source)
        hint = f"it is also a name of {named.name}: without --local that release is meant" if named else None
        raise SourceError(f"{source}: no such folder or file on this machine, and --local is given", hint=hint)
    if not remote or os.path.exists(source) or source.startswith(SCHEME):
        return source
    return SCHEME + repository_of(source)


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
