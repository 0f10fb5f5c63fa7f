"""Facts about each format beside its bytes: loaders, hardware, losses. Data, no torch."""

from __future__ import annotations

from typing import NamedTuple

from dsctl.codecs import CODECS
from dsctl.codecs.fp4 import SILENT

# Large enough that parts stored once per matrix (a global scale, a shape) do not count.
_SIDE = 8192


class Format(NamedTuple):
    """Loaders (as docs/loaders.md explains them), hardware (`Hopper+`: Hopper and later), lossless sources.

    `snr` is the signal-to-noise ratio in decibels of normally distributed float32 values after encoding and decoding,
    `searched` the same with `--search`; None if the format is exact or has no search. Measured by
    `python -m tests.tools.snr`. `warning` describes a silent error of a loader.
    """

    loaders: str
    hardware: str
    lossless: str
    snr: float | None
    searched: float | None = None
    warning: str | None = None


_SERVERS = "vLLM, SGLang"
_ALL = "vLLM, SGLang, transformers"
_MARLIN = "Ampere+ (Marlin)"
FORMATS: dict[str, Format] = {
    "bf16": Format(
        f"{_ALL}, DeepSeek", "any", "mxfp4, mxfp8, FP8 with ue8m0 scales; any other form with its kept scales", 55.6
    ),
    "f16": Format(_ALL, "any", "nothing", 73.7),
    "f32": Format(
        "transformers, training",
        "any",
        "bf16, f16, mxfp4, mxfp8, FP8 with ue8m0 scales; with BF16 scales fp8-block-ct, fp8-channel, int8-channel, "
        "int4-group, int4-group-32, int8-group",
        None,
    ),
    "fp8-block": Format(f"{_ALL}, TensorRT-LLM, DeepSeek", "Hopper+", "itself, fp8-block-ct, fp8-block-e8m0", 31.6),
    "fp8-block-e8m0": Format(
        "transformers; SGLang for V4", "Hopper+", "fp8-block with ue8m0 scales; mxfp4 within 2^14", 31.5
    ),
    "fp8-block-ct": Format(f"{_SERVERS}; transformers except experts", "Hopper+", "itself, fp8-block", 31.6),
    "fp8-channel": Format(_ALL, "Ada+", "itself", 31.5),
    "int8-channel": Format("vLLM; SGLang except experts", "Turing+", "itself", 41.2),
    "int8-block": Format("SGLang", "Ampere+", "itself", 40.5),
    "mxfp8": Format("vLLM; transformers except experts", "Blackwell", "itself, FP8 with ue8m0 scales", 31.5),
    "int4-group": Format(_ALL, _MARLIN, "itself", 19.1, 19.9),
    "int4-group-32": Format(_ALL, _MARLIN, "itself", 20.5, 21.3),
    "int8-group": Format(_ALL, _MARLIN, "itself", 43.7),
    "mxfp4": Format("vLLM, transformers", f"Blackwell; {_MARLIN}", "itself", 19.0, 19.1),
    "nvfp4": Format(_SERVERS, f"Blackwell; {_MARLIN}", "itself; mxfp4 within 2^17", 20.4, 21.3, SILENT),
    "nvfp4-modelopt": Format("vLLM, SGLang, TensorRT-LLM", "Blackwell", "itself; mxfp4 within 2^17", 20.4, 21.3),
}


def bits(name: str) -> float:
    """Bits per value of a large matrix, scales included."""
    specs = CODECS[name].specs((_SIDE, _SIDE))
    return sum(spec.nbytes for spec in specs.values()) * 8 / _SIDE**2
