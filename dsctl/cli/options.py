"""Options that several verbs share, and the values that they parse."""

from __future__ import annotations

from typing import Annotated

import typer

from dsctl.cli import completion
from dsctl.cli.commands import GENERAL, RUNNING, WHICH
from dsctl.core.errors import UsageError

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
    """Parse a size such as 8GB, 512MiB or 1000000 into bytes.

    Raises:
        UsageError: the text is not a size.
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
        raise UsageError(f"{option}: {text!r} is not a possible size", hint="write it as 8GB, 512MiB or 1000000")
    return int(value)


def parse_numbers(text: str | None, option: str, what: str = "numbers") -> tuple[int, ...]:
    """Parse 0-3,61 into 0, 1, 2, 3, 61: sorted, without duplicates; empty if there is no text.

    Raises:
        UsageError: the text is not such a list.
    """
    found: set[int] = set()
    for part in text.split(",") if text is not None else ():
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else not last)) or len(part) > 16:
            raise UsageError(f"{option}: {text!r} is not a list of {what}", hint="write it as 3, 0-7 or 0-3,61")
        begin, end = int(first), int(last or first)
        if not begin <= end < MOST_NUMBERS:
            raise UsageError(
                f"{option}: {part.strip()!r} is not a range of {what}", hint="write the smaller number first"
            )
        found.update(range(begin, end + 1))
    return tuple(sorted(found))


def _workers(text: str) -> int | None:
    if text == "auto":
        return None
    if not (text.isdecimal() and 1 <= int(text) <= 1024):
        raise UsageError(f"--workers: {text!r} is not auto or a number from 1 to 1024", hint="write auto, or 4")
    return int(text)


Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        autocompletion=completion.sources,
        help="A checkpoint: folder, .safetensors file, org/name, or a URL such as s3://bucket/path.",
    ),
]
Target = Annotated[
    str, typer.Argument(metavar="DST", help="The folder to write, hf://org/name, or a URL such as s3://bucket/path.")
]
Remote = Annotated[
    bool, typer.Option("--remote", help="Read the release from the Hub instead of using the built-in description.")
]
Local = Annotated[
    bool,
    typer.Option(
        "--local",
        help="Accept only a folder or file on this machine, never a release or URL.",
        rich_help_panel=GENERAL,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json", help="Print the result as JSON on stdout, an error as JSON on stderr.", rich_help_panel=GENERAL
    ),
]
Html = Annotated[
    str | None, typer.Option("--html", metavar="FILE", help="Write a self-contained HTML report to this file.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=GENERAL)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=GENERAL)]

Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only", metavar="GLOB", help="Include only parameters whose name matches; repeatable.", rich_help_panel=WHICH
    ),
]
Skip = Annotated[
    list[str] | None,
    typer.Option(
        "--skip", metavar="GLOB", help="Leave out parameters whose name matches; repeatable.", rich_help_panel=WHICH
    ),
]

DryRun = Annotated[
    bool, typer.Option("--dry-run", "-n", help="Print the plan and write nothing.", rich_help_panel=RUNNING)
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N|auto",
        envvar="DSCTL_WORKERS",
        parser=_workers,
        help="Start this many worker processes; auto looks at cores, memory and the plan.",
        rich_help_panel=RUNNING,
    ),
]
ByteThreads = Annotated[
    int | None,
    typer.Option(
        "--workers",
        metavar="N|auto",
        envvar="DSCTL_WORKERS",
        parser=_workers,
        help="Use this many threads; auto takes one per core.",
        rich_help_panel=RUNNING,
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Start over in a folder that dsctl made, or in any repository.", rich_help_panel=RUNNING
    ),
]
