"""Conversion, quantization and inspection of the weights of the DeepSeek family."""

from __future__ import annotations

import typing

from dsctl.core.errors import DsctlError
from dsctl.version import __version__

if typing.TYPE_CHECKING:
    from dsctl.api import Conversion, Result, Source, open  # noqa: A004  the usual name

__all__ = ["Conversion", "DsctlError", "Result", "Source", "__version__", "open"]


def __getattr__(name: str) -> typing.Any:
    """A name of the Python interface, which is imported on first use: the command line does not need it."""
    if name not in __all__:
        raise AttributeError(f"module 'dsctl' has no attribute {name!r}")
    from dsctl import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
