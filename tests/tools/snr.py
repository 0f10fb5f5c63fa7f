"""What each format loses on Gaussian values: `python -m tests.tools.snr` prints what `dsctl formats` should say."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import torch

from dsctl.codecs import CODECS
from dsctl.codecs.codec import Codec
from dsctl.codecs.facts import FORMATS
from tests.contracts.test_codecs import DTYPES

SHAPE = 384, 4096


def snr(codec: Codec) -> float | None:
    """Decibels of signal over error of float32 values of normal distribution, encoded and decoded; None if equal."""
    values = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * 0.02
    specs = codec.specs(SHAPE)
    stored = {suffix: torch.empty(spec.shape, dtype=DTYPES[spec.dtype]) for suffix, spec in specs.items()}
    for suffix, data in codec.stated(SHAPE).items():
        stored[suffix].copy_(torch.frombuffer(bytearray(data), dtype=stored[suffix].dtype).view(stored[suffix].shape))
    codec.encode(values, stored)
    back = torch.empty_like(values)
    codec.decode(stored, back)
    error = (values.double() - back.double()).square().sum().item()
    return 10 * math.log10(values.double().square().sum().item() / error) if error else None


def searched(codec: Codec) -> Codec | None:
    """The same with `--search`, where that means anything."""
    asked: Any = codec
    return replace(asked, search=True) if hasattr(codec, "search") else None


def main() -> None:
    """Print the table."""
    for name, codec in CODECS.items():
        better = searched(codec)
        told = FORMATS[name]
        sys.stdout.write(f"{name:16}{snr(codec)} {better and snr(better)}, told {told.snr} {told.searched}\n")


if __name__ == "__main__":
    main()
