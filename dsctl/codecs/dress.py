"""The `quantization_config` of each format: compressed-tensors', written and read, and DeepSeek's. No torch.

Fields and values: vllm-project/compressed-tensors, quantization/quant_scheme.py (presets), quantization/quant_args.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from dsctl.core.errors import FormatError

METHOD = "compressed-tensors"
# The field by which loaders recognize routed experts stored by ModelOpt.
MOE_ALGORITHM = "moe_quant_algo"
Arguments = dict[str, Any]


def arguments(kind: str, bits: int, strategy: str, **more: Any) -> Arguments:
    """The quantization of weights or activations, which is symmetric in every format here."""
    plain: Arguments = {
        "actorder": None, "block_structure": None, "dynamic": False, "group_size": None, "num_bits": bits,
        "observer": "memoryless_minmax", "observer_kwargs": {}, "scale_dtype": None, "strategy": strategy,
        "symmetric": True, "type": kind, "zp_dtype": None,
    }  # fmt: skip
    return plain | more


def grouped(kind: str, bits: int, size: int, **more: Any) -> Arguments:
    """Weights in groups of `size` columns."""
    return arguments(kind, bits, "group", group_size=size, **more)


def dynamic(kind: str, bits: int, strategy: str, **more: Any) -> Arguments:
    """Activations, quantized dynamically."""
    return arguments(kind, bits, strategy, dynamic=True, observer=None, **more)


_E8M0 = {"scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
_E4M3 = {"scale_dtype": "torch.float8_e4m3fn", "zp_dtype": "torch.float8_e4m3fn"}
# By codec: the format, the quantization of weights, the quantization of activations.
SCHEMES: dict[str, tuple[str, Arguments, Arguments | None]] = {
    "fp8-block-ct": (
        "float-quantized",
        arguments("float", 8, "block", block_structure=[128, 128]),
        dynamic("float", 8, "group", group_size=128),
    ),
    "fp8-channel": ("float-quantized", arguments("float", 8, "channel"), dynamic("float", 8, "token")),
    "int8-channel": ("int-quantized", arguments("int", 8, "channel"), dynamic("int", 8, "token")),
    "mxfp8": (
        "mxfp8-quantized",
        grouped("float", 8, 32, **_E8M0),
        dynamic("float", 8, "group", group_size=32, **_E8M0),
    ),
    "mxfp4": ("mxfp4-pack-quantized", grouped("float", 4, 32, **_E8M0), None),
    "nvfp4": ("nvfp4-pack-quantized", arguments("float", 4, "tensor_group", group_size=16, **_E4M3), None),
}


def fp8(block: tuple[int, int], scale_fmt: str | None) -> dict[str, Any]:
    """DeepSeek's own `quantization_config` for FP8 by blocks; it also covers four-bit experts."""
    said: dict[str, Any] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": list(block),
    }
    return said | ({"scale_fmt": "ue8m0"} if scale_fmt == "ue8m0" else {})


def modelopt(size: int) -> dict[str, Any]:
    """ModelOpt's additions to DeepSeek's config if only routed experts are NVFP4, as vLLM and SGLang expect them.

    vllm-project/vllm, models/deepseek_v4/quant_config.py; sgl-project/sglang pull request 25820.
    """
    return fp8((128, 128), "ue8m0") | {
        "quant_algo": "MIXED_PRECISION",
        MOE_ALGORITHM: "NVFP4",
        "group_size": size,
        "kv_cache_quant_algo": None,
    }


def config(format_: str, weights: Arguments, activations: Arguments | None) -> dict[str, Any]:
    """A `quantization_config` for a checkpoint whose linear modules all have one format."""
    return {
        "config_groups": {"group_0": group(format_, weights, activations, ["Linear"])},
        "format": format_,
        "global_compression_ratio": None,
        "ignore": [],
        "kv_cache_scheme": None,
        "quant_method": METHOD,
        "quantization_status": "compressed",
    }


def group(format_: str, weights: Arguments, activations: Arguments | None, targets: list[str]) -> dict[str, Any]:
    """One config group: modules and their format."""
    return {
        "format": format_,
        "input_activations": activations,
        "output_activations": None,
        "targets": targets,
        "weights": weights,
    }


_TELLING = ("num_bits", "type", "strategy", "group_size", "block_structure", "symmetric")


def weights(quantization: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The weights entry of each config group.

    Raises:
        FormatError: there is no group, or a group has no weights entry.
    """
    groups = quantization.get("config_groups")
    found = list(groups.values()) if isinstance(groups, dict) else []
    said = [one.get("weights") if isinstance(one, dict) else None for one in found]
    if not said or not all(isinstance(one, dict) for one in said):
        raise FormatError("config.json: quantization_config has no config_groups with weights")
    return [one for one in said if isinstance(one, dict)]


def same(said: Mapping[str, Any], config: Mapping[str, Any] | None) -> bool:
    """Whether a config group's weights match those of a codec's own config."""
    if config is None or config.get("quant_method") != METHOD or said.get("actorder"):
        return False
    ours = config["config_groups"]["group_0"]["weights"]
    return [said.get(key) for key in _TELLING] == [ours[key] for key in _TELLING]


def sensible(size: object) -> TypeGuard[int]:
    """Whether this is a valid number of columns of a group."""
    return type(size) is int and 0 < size <= 1 << 16 and size % 8 == 0


def told(said: Mapping[str, Any]) -> str:
    """Weights in words: `4 bits, type int, strategy group, group_size 7`."""
    return ", ".join(f"{key} {said.get(key)!r}" for key in _TELLING if said.get(key) is not None) or "no kind"
