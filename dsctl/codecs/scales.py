"""Rules for a group's scale from its largest magnitude. Pure; peaks are float32 of any shape.

compressed-tensors (vllm-project/compressed-tensors, quantization/utils/helpers.py, calculate_qparams) divides in the
dtype of the weights, which for bfloat16 is float32 arithmetic rounded once; zero scales become the dtype's epsilon.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# sgl-project/sglang, layers/quantization/int8_kernel.py: the smallest magnitude for which a scale is made.
INT8_PEAK = 1e-10


def fraction(peaks: torch.Tensor, of: float, dtype: torch.dtype) -> torch.Tensor:
    """peak / `of`, rounded to `dtype`; the dtype's epsilon in place of zero."""
    import torch

    # Divide by a tensor: torch on CUDA replaces division by a number with a product by its reciprocal.
    scales = (peaks / torch.full_like(peaks, of)).to(dtype)
    return scales.masked_fill_(scales == 0, torch.finfo(dtype).eps)


def exponents(peaks: torch.Tensor, largest: int) -> torch.Tensor:
    """E8M0 codes (uint8) for elements whose largest power of two is 2^`largest`.

    The exponent of the peak, plus one if its mantissa is 1.75 or above, as in compressed-tensors
    (quantization/utils/mxfp_utils.py). OCP MX v1.0, section 6.3, uses the exponent alone, which saturates more often.
    """
    import torch

    bits = (peaks.view(torch.int32) + (1 << 21)) >> 23
    return (bits - largest).clamp_(0, 254).to(torch.uint8)


def powers(codes: torch.Tensor) -> torch.Tensor:
    """2^(code - 127) in float32; the code 255 is NaN (OCP MX v1.0, section 5.4.1)."""
    import torch

    return _looked_up(codes, torch.float8_e8m0fnu)


def e4m3(codes: torch.Tensor) -> torch.Tensor:
    """The float32 values of E4M3 codes (float8_e4m3fn)."""
    import torch

    return _looked_up(codes, torch.float8_e4m3fn)


def _looked_up(codes: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Look eight-bit codes up in a table: torch's own casts of them are several times slower."""
    import torch

    places = codes.view(torch.uint8).reshape(-1).to(torch.int32)
    return torch.index_select(_table(dtype, codes.device), 0, places).view(codes.shape)


@lru_cache
def _table(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    import torch

    return torch.arange(256, dtype=torch.uint8).view(dtype).float().to(device)
