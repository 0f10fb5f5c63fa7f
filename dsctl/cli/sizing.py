"""The options of `plan` that take a size, a number of tokens or accelerators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

import typer

from dsctl.cli import completion
from dsctl.cli.conversion_options import MOST_RANKS
from dsctl.cli.options import parse_size
from dsctl.core.choices import choose
from dsctl.core.errors import UsageError
from dsctl.look.accelerators import ACCELERATORS, GB, USUAL, Accelerator
from dsctl.look.cache_formats import CACHE_FORMATS
from dsctl.look.fitting import Must, Reserve
from dsctl.look.places import PLACES

MOST_TOKENS = 1 << 32
_THOUSANDS = {"k": 1 << 10, "m": 1 << 20}


def parse_tokens(text: str, option: str) -> int:
    """A number of tokens: 4096, 128k = 131,072 or 1m = 1,048,576.

    Raises:
        UsageError: the text is not such a number.
    """
    word = text.strip().lower()
    factor = _THOUSANDS.get(word[-1:], 1)
    digits = word[:-1] if factor > 1 else word
    number = int(digits) * factor if digits.isascii() and digits.isdecimal() and len(digits) <= 10 else 0
    if not 0 < number <= MOST_TOKENS:
        hint = "write it as 4096, 128k (131,072) or 1m (1,048,576)"
        raise UsageError(f"{option}: {text!r} is not a number of tokens", hint=hint)
    return number


def parse_reserve(text: str) -> Reserve:
    """A reserve: 8%, 4GB, 4GiB or 0.

    Raises:
        UsageError: the text is neither a percentage below 100 nor a size with its unit.
    """
    word = text.strip()
    if word == "0":
        return Reserve(0, asked=True)
    if word.isdecimal():
        # 8 bytes are nobody's reserve: 8 stands for 8% or 8GB.
        raise UsageError(f"--reserve: {text!r} has no unit", hint="write it as 8%, 4GB, 4GiB or 0")
    if not word.endswith("%"):
        return Reserve(parse_size(word, "--reserve"), asked=True)
    share = _decimal(word[:-1].strip())
    if share is None or share >= 100:
        raise UsageError(
            f"--reserve: {text!r} is not a percentage from 0% to below 100%", hint="write it as 8%, 4GB, 4GiB or 0"
        )
    return Reserve(share=share / 100, asked=True)


def parse_accelerator(text: str, option: str) -> Accelerator:
    """An accelerator: h200, or a name with its memory, such as h100=76GiB or mycard=96 (GB).

    Raises:
        UsageError: the name is unknown and without a memory, or the memory is not a size.
    """
    name, given, memory = (part.strip() for part in text.partition("="))
    key = name.lower()
    if not given:
        return ACCELERATORS[choose(key, ACCELERATORS, "accelerator", option)]
    try:
        number = _decimal(memory)
        held = int(number * GB) if number is not None else parse_size(memory, option)
    except UsageError:
        held = None
    if not name or not held or held >= 1 << 60:
        hint = "write it as mycard=96 or h100=76GiB"
        raise UsageError(f"{option}: {text!r} is not a name with its memory", hint=hint)
    known = ACCELERATORS.get(key) or Accelerator(key, name, None, 0, None, None, None, "")
    return known.holding(held, f"given as {text}")


def parse_must(text: str) -> Must:
    """A demand: h200x8, or mycard=96x8.

    Raises:
        UsageError: the text is not NAMExCOUNT with a known NAME.
    """
    name, times, count = text.strip().lower().rpartition("x")
    number = int(count) if count.isascii() and count.isdecimal() and len(count) <= 4 else 0
    if not times or not 1 <= number <= MOST_RANKS:
        raise UsageError(f"--must-fit: {text!r} is not NAMExCOUNT", hint="write it as h200x8 or mycard=96x8")
    return Must(text.strip(), parse_accelerator(text.strip()[: len(name)], "--must-fit"), number)


def _decimal(text: str) -> Fraction | None:
    """A number such as 96 or 95.5, or None."""
    whole, _, part = text.partition(".")
    digits = whole + part
    return Fraction(text) if whole and digits.isascii() and digits.isdecimal() and len(digits) <= 15 else None


def accelerators(words: Sequence[str] | None) -> list[Accelerator]:
    """The accelerators of `--gpu`, or the usual ones."""
    return [parse_accelerator(word, "--gpu") for word in words or USUAL]


def _context(text: str) -> int:
    return parse_tokens(text, "--context")


Gpu = Annotated[
    list[str] | None,
    typer.Option(
        "--gpu",
        metavar="NAME|NAME=GB",
        autocompletion=completion.accelerators,
        help="Consider this accelerator, such as h200, or mycard=96; repeatable.",
    ),
]
Reserved = Annotated[
    Reserve | None,
    typer.Option(
        "--reserve",
        metavar="SIZE|PERCENT",
        parser=parse_reserve,
        help="Keep this much of each GPU free for activations, such as 8% or 4GiB. [default: 10%]",
    ),
]
MustFit = Annotated[
    list[Must] | None,
    typer.Option(
        "--must-fit",
        metavar="NAMExCOUNT",
        parser=parse_must,
        autocompletion=completion.demands,
        help="Exit with 50 unless it fits on these accelerators, such as h200x8; repeatable.",
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="N",
        parser=_context,
        help="Set the tokens per sequence, such as 128k or 1m. [default: the published context]",
    ),
]
Batch = Annotated[
    int, typer.Option("--batch", metavar="N", min=1, max=1 << 20, help="Set the number of sequences at a time.")
]
Kv = Annotated[
    str | None,
    typer.Option(
        "--kv",
        metavar="FORMAT",
        autocompletion=completion.cache_formats,
        help="Set the KV cache format: bf16, fp8 or fp4. [default: bf16; fp8 for V4, fp4 for V4.1]",
    ),
]
Tables = Annotated[
    str | None,
    typer.Option(
        "--tables",
        metavar="PLACE",
        autocompletion=completion.places,
        help="Set the place of Engram tables: host or gpu. [default: host]",
    ),
]


@dataclass(frozen=True, slots=True)
class ServingOptions:
    """What a model serves, and where: sequences of so many tokens, the format of their cache, the place of tables."""

    context: Context = None
    batch: Batch = 1
    kv: Kv = None
    tables: Tables = None

    def check(self) -> None:
        """Refuse unknown words.

        Raises:
            UsageError: with the first of them.
        """
        if self.kv is not None:
            choose(self.kv, CACHE_FORMATS, "format", "--kv")
        if self.tables is not None:
            choose(self.tables, PLACES, "place", "--tables")
