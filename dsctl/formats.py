"""What is known of each format beside its bytes: who loads it, where it runs, what it keeps. Data, no torch."""

from __future__ import annotations

from typing import NamedTuple

from dsctl.codecs import CODECS

# Large enough that what a matrix stores once (a global scale, a shape) no longer counts.
_SIDE = 8192


class Format(NamedTuple):
    """Loaders (read in their sources, or seen to load: docs/formats.md), hardware, what comes back without loss.

    `snr` is the signal-to-noise ratio in decibels of normally distributed float32 values after encoding and decoding,
    `searched` the same with `--search`; None where nothing is lost, or there is nothing to search. Measured by
    `python -m tests.snr`.
    """

    loaders: str
    hardware: str
    lossless: str
    snr: float | None
    searched: float | None = None


_VLLM = "vLLM, SGLang"
_ALL = "vLLM, SGLang, transformers"
FORMATS: dict[str, Format] = {
    "bf16": Format(f"{_ALL}, DeepSeek", "any", "FP8 with ue8m0 scales; any FP8 blocks with their kept scales", 55.6),
    "f16": Format(_ALL, "any", "nothing", 73.7),
    "f32": Format("transformers, training", "any", "bf16, f16, FP8 with ue8m0 scales", None),
    "fp8-block": Format(
        f"{_ALL}, TensorRT-LLM, DeepSeek", "Hopper and later", "itself, fp8-block-ct, fp8-block-e8m0", 31.6
    ),
    "fp8-block-e8m0": Format("transformers; vLLM for V4", "Hopper and later", "fp8-block with ue8m0 scales", 31.5),
    "fp8-block-ct": Format(_VLLM, "Hopper and later", "itself, fp8-block", 31.6),
    "fp8-channel": Format(_ALL, "Ada, Hopper and later", "itself", 31.5),
    "int8-channel": Format(_VLLM, "Turing and later", "itself", 41.2),
    "int8-block": Format("SGLang", "Ampere and later", "itself", 40.5),
    "mxfp8": Format("vLLM", "Blackwell", "itself", 31.5),
    "int4-group": Format(_ALL, "Ampere and later (Marlin)", "itself", 19.1, 19.9),
    "int4-group-32": Format(_ALL, "Ampere and later (Marlin)", "itself", 20.5, 21.3),
    "int8-group": Format(_ALL, "Ampere and later (Marlin)", "itself", 43.7),
    "mxfp4": Format(_ALL, "Blackwell; Ampere and later (Marlin)", "itself", 19.0, 19.1),
    "nvfp4": Format("vLLM, SGLang", "Blackwell; Ampere and later (Marlin)", "itself", 20.4, 21.3),
}


def bits(name: str) -> float:
    """Bits per value, scales included, of a large matrix."""
    specs = CODECS[name].specs((_SIDE, _SIDE))
    return sum(spec.nbytes for spec in specs.values()) * 8 / _SIDE**2
