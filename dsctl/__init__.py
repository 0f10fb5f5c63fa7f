"""Conversion, quantization and inspection of the weights of the DeepSeek family."""

from dsctl.api import Conversion, Source, open  # noqa: A004  what it is called everywhere
from dsctl.core.errors import DsctlError
from dsctl.version import __version__

__all__ = ["Conversion", "DsctlError", "Source", "__version__", "open"]
