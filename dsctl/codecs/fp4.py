"""Four-bit floats (E2M1), two in a byte: MXFP4 with power-of-two scales, NVFP4 with E4M3 scales under a global one.

compressed-tensors: mxfp4-pack-quantized stores `X.weight_packed` U8 [o, i/2] and `X.weight_scale` U8 (E8M0)
[o, i/32]; nvfp4-pack-quantized stores `X.weight_packed` U8 [o, i/2], `X.weight_scale` F8_E4M3 [o, i/16] and
`X.weight_global_scale` F32 [1], by which the product of code and scale is divided. NVIDIA's ModelOpt stores `X.weight`,
`X.weight_scale`, `X.weight_scale_2` F32 [], by which it is multiplied, and `X.input_scale` F32 [].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from dsctl.codecs import dress, native_fp4, nibbles, restoring, search
from dsctl.codecs.codec import CODES, GLOBAL_SCALE, INPUT_SCALE, KEPT, PEAK, SCALE, Codec, Form
from dsctl.codecs.grids import (
    FEW_TO_DIVIDE,
    at_once,
    chunk,
    chunks,
    divided,
    divides,
    greatest,
    grid,
    grid_box,
    multiplied,
    peak,
    refuse_bad,
)
from dsctl.codecs.scales import e4m3, exponents, powers
from dsctl.core.boxes import Box
from dsctl.core.header import TensorSpec

if TYPE_CHECKING:
    import torch

# A silent error, observed with transformers 5.24.
SILENT = (
    "transformers 5.24 loads routed experts in nvfp4 without an error, but ignores their global scale and computes "
    "wrong answers: serve them with vLLM or SGLang"
)
# The dtype of codes whose shape counts codes, not bytes: that of safetensors 0.8, torch's float4_e2m1fn_x2.
LOGICAL = "F4"
# Dtypes for two codes in a byte, and for E8M0.
_CODES, _POWERS = ("U8", "I8", LOGICAL), ("U8", "F8_E8M0")
# The largest product of an E4M3 scale and an E2M1 code.
REACH = 448.0 * 6.0


@dataclass(frozen=True, slots=True)
class Fp4:
    """E2M1 codes in groups of `size` columns; `search` finds the scale with the least error.

    `native`: scales follow DeepSeek's rule, or come from an earlier encoding if they restore the values, and zeros keep
    their signs. `multiplied`: codes are multiplied by the global scale, and an input scale, 1 unless measured, is
    stored beside it.
    """

    name: str
    size: int
    scale_dtype: str
    codes_dtype: str = "U8"
    dialect: str = "compressed-tensors-packed"
    native: bool = False
    multiplied: bool = False
    search: bool = field(default=False, compare=False)
    quantized: ClassVar[bool] = True
    plain: ClassVar[None] = None
    keeps_scales: ClassVar[bool] = True
    scale_fmt: ClassVar[None] = None

    @property
    def scales_follow(self) -> bool:
        return self.native

    @property
    def surveys(self) -> bool:
        """Whether there is a global scale: E4M3 scales need one, because they cannot hold large numbers."""
        return self.scale_dtype == "F8_E4M3"

    @property
    def parts(self) -> tuple[str, ...]:
        whole = (GLOBAL_SCALE, INPUT_SCALE) if self.multiplied else (GLOBAL_SCALE,)
        return (CODES, SCALE, *whole) if self.surveys else (CODES, SCALE)

    @property
    def form(self) -> Form:
        if self.surveys:
            product = "code * scale * global scale" if self.multiplied else "code * scale / global scale"
            return Form("e2m1", self.group, "E4M3", product)
        return Form("e2m1", self.group, "E8M0", "code * scale", True)

    @property
    def block(self) -> tuple[int, int]:
        return 1, self.size

    @property
    def group(self) -> tuple[int, int]:
        return 1, self.size

    def specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        scales = grid(shape, self.group)
        columns = shape[1] if self.codes_dtype == LOGICAL else -(-shape[1] // 2)
        codes = TensorSpec(self.codes_dtype, (shape[0], columns))
        specs = {CODES: codes, SCALE: TensorSpec(self.scale_dtype, scales)}
        return specs | dict.fromkeys(self.parts[2:], TensorSpec("F32", () if self.multiplied else (1,)))

    def reads(self, shape: tuple[int, ...], stored: Mapping[str, TensorSpec]) -> Fp4 | None:
        if set(stored) != set(self.parts) or not divides(shape, self.group):
            return None
        codes, scale = stored[CODES].dtype, stored[SCALE].dtype
        if codes not in _CODES or scale not in (_POWERS if self.scale_dtype in _POWERS else (self.scale_dtype,)):
            return None
        reader = replace(self, codes_dtype=codes, scale_dtype=scale)
        return reader if dict(stored) == reader.specs(shape) else None

    def box(self, part: str, box: Box, shape: tuple[int, ...]) -> Box:
        # Bytes of codes.
        if part in (GLOBAL_SCALE, INPUT_SCALE):
            return Box.whole(() if self.multiplied else (1,))
        scales = grid_box(box, self.group, shape)
        if part == SCALE:
            return scales
        return Box((box.start[0], box.start[1] // 2), (box.stop[0], box.stop[1] // 2))

    def room(self, shape: tuple[int, ...], width: int, encoding: bool) -> int:
        # Magnitudes, exponents, signs and codes; a search also has quotients, restored values and all scales.
        return (22 if self.search or self.native else 14) * chunk(shape, self.group)

    def stated(self, shape: tuple[int, ...]) -> dict[str, bytes]:
        return {}

    def decode(self, stored: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """code * 2^(scale - 127), or code * (scale / global scale), rounded once to `out`'s dtype.

        Raises:
            BadBlock: a scale is NaN, infinite or negative, or the global scale is zero.
        """
        import torch

        factors = self._factors(stored[SCALE], stored.get(GLOBAL_SCALE))
        refuse_bad(factors, zero=self.surveys)
        codes = stored[CODES].view(torch.uint8)
        for rows, places in chunks(out.shape[0], out.shape[1], self.group):
            band = out[rows]
            direct = band.dtype == torch.float32 or (at_once(band) and self.size >= FEW_TO_DIVIDE)
            values = band if direct else torch.empty_like(band, dtype=torch.bfloat16)
            nibbles.unpacked(codes[rows], nibbles.E2M1, values)
            multiplied(values, factors[places], self.group, band)

    def encode(self, values: torch.Tensor, stored: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Scales from the largest magnitudes; quotients rounded to the nearest code, ties to even.

        `stored` may hold `PEAK`: the largest magnitude for the global scale (default: the values' own). Kept scales are
        used for the groups that they restore exactly, if the kept global scale is large enough for the peak.

        Raises:
            BadBlock: a value is NaN or infinite, or a kept scale is impossible.
        """
        import torch

        codes = stored[CODES].view(torch.uint8)
        if self.native:
            return native_fp4.encode_all(values, codes, stored[SCALE], stored.get(KEPT + SCALE))
        kept = (not self.surveys or self._whole(values, stored)) and KEPT + SCALE in stored
        rounding = nibbles.E2m1(chunk(tuple(values.shape), self.group), values.device)

        def write(rows: slice, places: slice) -> None:
            magnitudes = rounding.magnitudes(values[rows])
            largest = greatest(magnitudes, self.group, places.start)
            stored[SCALE][places] = self._scales(magnitudes, largest, stored, values.dtype, rounding)
            factors = self._factors(stored[SCALE][places], stored.get(GLOBAL_SCALE))
            divided(magnitudes, factors, self.group, magnitudes)
            rounding.write(magnitudes, values[rows], codes[rows])

        def quantize(values: torch.Tensor, known: Mapping[str, torch.Tensor], codes: torch.Tensor) -> None:
            factors, magnitudes = self._factors(known[SCALE], known.get(GLOBAL_SCALE)), rounding.magnitudes(values)
            # A group whose scale is zero has only zeros.
            divided(magnitudes, torch.where(factors == 0, 1.0, factors), self.group, magnitudes)
            rounding.write(magnitudes, values, codes.view(torch.uint8), zeros=True)

        if kept:
            return restoring.encode(self, self.group, values, stored, quantize, write)
        for rows, places in chunks(values.shape[0], values.shape[1], self.group):
            write(rows, places)
        return {"groups_computed": stored[SCALE].numel()} if KEPT + SCALE in stored else {}

    def _whole(self, values: torch.Tensor, stored: Mapping[str, torch.Tensor]) -> bool:
        """Fill the parts that a parameter has once; return whether the global scale is the kept one."""
        widest = stored[PEAK] if PEAK in stored else peak(values)
        kept, inputs = stored.get(KEPT + GLOBAL_SCALE), stored.get(KEPT + INPUT_SCALE)
        if again := kept is not None and reaches(self, kept, widest):
            made = kept
        else:
            made = _second_scale(widest) if self.multiplied else _global_scale(widest, values.dtype)
        stored[GLOBAL_SCALE].copy_(made)
        if self.multiplied:
            stored[INPUT_SCALE].copy_(inputs) if inputs is not None else stored[INPUT_SCALE].fill_(1.0)
        return again

    def _scales(
        self,
        magnitudes: torch.Tensor,
        largest: torch.Tensor,
        stored: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
        rounding: nibbles.E2m1,
    ) -> torch.Tensor:
        """The groups' scales; `dtype` is that of the weights."""

        scales = self._made(largest, 1.0, stored, dtype)
        if not self.search:
            return scales
        tried = [self._made(largest, share, stored, dtype) for share in self._shares]

        def restore(magnitudes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
            factors = self._factors(scales, stored.get(GLOBAL_SCALE))
            divided(magnitudes, factors, self.group, out)
            multiplied(rounding.rounded(out), factors, self.group, out)

        return search.best(magnitudes, [scales, *tried], restore)

    @property
    def _shares(self) -> tuple[float, ...]:
        return search.SHARES if self.surveys else (0.5, 2.0)

    def _made(
        self, largest: torch.Tensor, share: float, stored: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> torch.Tensor:
        """Scales for groups as if their largest magnitude were this share of it."""
        largest = largest * share
        if self.surveys:
            whole = stored[GLOBAL_SCALE]
            return _local_scales(largest, 1 / whole if self.multiplied else whole, dtype)
        return exponents(largest, 2).view(stored[SCALE].dtype)

    def _factors(self, scales: torch.Tensor, whole: torch.Tensor | None) -> torch.Tensor:
        if whole is None:
            return powers(scales)
        return e4m3(scales) * whole if self.multiplied else e4m3(scales) / whole

    def config(self) -> dict[str, Any] | None:
        if self.multiplied:
            return dress.modelopt(self.size)
        if not self.dialect.startswith(dress.METHOD):
            return dress.fp8((128, 128), "ue8m0")
        return dress.config(*dress.SCHEMES[self.name])


def reaches(codec: Codec, whole: torch.Tensor, peak: torch.Tensor) -> bool:
    """Whether codes under this global scale hold values up to a peak, which may have been rounded up to BF16."""
    largest = whole * REACH if INPUT_SCALE in codec.parts else REACH / whole
    return bool((peak.view(-1) <= largest.view(-1) * (1 + 2.0**-7)).all())


def _second_scale(peak: torch.Tensor) -> torch.Tensor:
    """peak / (448 * 6), float32 []; 1 if that is zero: NVIDIA/Model-Optimizer, nvfp4_tensor.py."""
    scale = peak / REACH
    return scale.masked_fill_((scale == 0) | ~scale.isfinite(), 1.0).view(())


def _global_scale(peak: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """448 * 6 / peak; 1 where that is no number.

    Rounded as compressed-tensors' generate_gparam does: by way of the reciprocal, in the dtype of the weights.
    """
    import torch

    scale = (peak.to(dtype).clamp_min(torch.finfo(dtype).tiny).reciprocal() * REACH).float()
    return scale.masked_fill_(~scale.isfinite(), 1.0)


def _local_scales(largest: torch.Tensor, whole: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """global scale * (peak / 6, in the dtype of the weights), as E4M3; 1/8 where that is zero."""
    import torch

    scales = whole * (largest / torch.full_like(largest, 6.0)).to(dtype).float()
    codes = scales.clamp(max=448.0).to(torch.float8_e4m3fn)
    bits = codes.view(torch.uint8)
    # 0x20 is 1/8; a cast to bool is quicker than a comparison.
    bits.add_(bits.to(torch.bool).view(torch.uint8).bitwise_xor(1).mul_(0x20))
    return codes


def formats() -> dict[str, Fp4]:
    """The formats of this kind by name."""
    nvfp4 = Fp4("nvfp4", 16, "F8_E4M3")
    made = Fp4("mxfp4", 32, "U8"), nvfp4, replace(nvfp4, name="nvfp4-modelopt", dialect="modelopt", multiplied=True)
    return {codec.name: codec for codec in made}
