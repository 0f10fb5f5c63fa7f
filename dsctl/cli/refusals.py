"""Errors of the parser, in the words that dsctl uses for its own. Their classes are private to Typer."""

from __future__ import annotations

from typing import Any

from dsctl.cli.commands import ENVIRONMENT
from dsctl.core.errors import UsageError

# What to write after options that had no value before.
_NEEDED = {"--mtp": "write --mtp keep, --mtp drop or --mtp only; without a value it meant keep before"}


def usage(error: Exception) -> UsageError | None:
    """Return an error of the parser as one of dsctl, or None if it is not the parser's."""
    said, context = getattr(error, "format_message", None), getattr(error, "ctx", None)
    if said is None:
        return None
    path = context.command_path if context else "dsctl"
    hint = f"`{path} --help` lists its arguments and options"
    if hasattr(error, "possibilities"):
        near = sorted(error.possibilities or ())
        suggested = f"did you mean {' or '.join(near)}? " if near else ""
        return UsageError(f"{path}: unknown option {getattr(error, 'option_name', '')!r}", hint=suggested + hint)
    param, why = getattr(error, "param", None), getattr(error, "message", "")
    if (option := getattr(error, "option_name", None)) is not None:
        hint = _NEEDED.get(option, hint)
        return UsageError(f"{option}: {why.removeprefix(f'Option {option!r} ').removesuffix('.')}", hint=hint)
    if param is not None and why:
        return UsageError(f"{_named(param, context)}: {_why(param.type, why)}", hint=hint)
    words = " ".join(said().split()).removesuffix(".")
    return UsageError(f"{path}: {words[:1].lower()}{words[1:]}", hint=hint)


def _named(param: Any, context: Any) -> str:
    """The option, or the variable that its value is from."""
    if param.param_type_name == "argument":
        return str(param.metavar)
    option = str(max(param.opts, key=len))
    source = context.get_parameter_source(param.name) if context else None
    return f"{param.envvar} ({option})" if source is not None and source.name == ENVIRONMENT else option


def _why(kind: Any, why: str) -> str:
    """Why a value is refused; a number that is too small or too large, with the numbers that are possible."""
    value = why.split(" is not ", maxsplit=1)[0]
    least, most = getattr(kind, "min", None), getattr(kind, "max", None)
    if value == why or (least is None and most is None):
        return why.removesuffix(".")
    value = value if value.startswith("'") else repr(value)
    return f"{value} is not a number " + (f"of at least {least}" if most is None else f"from {least} to {most}")
