"""Four-bit floats (E2M1), two in a byte: MXFP4 with power-of-two scales, NVFP4 with E4M3 scales under a global one.

compressed-tensors: mxfp4-pack-quantized stores `X.weight_packed` U8 [o, i/2] and `X.weight_scale` U8 (E8M0)
[o, i/32]; nvfp4-pack-quantized stores `X.weight_packed` U8 [o, i/2], `X.weight_scale` F8_E4M3 [o, i/16] and
`X.weight_global_scale` F32 [1], by which the product of code and scale is divided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dsctl.codecs import PEAK
from dsctl.codecs.grids import chunk, chunks, divided, divides, greatest, grid, grid_box, multiplied, peak, refuse_bad
from dsctl.core.boxes import Box
from dsctl.core.header import TensorSpec

if TYPE_CHECKING:
    import torch

PACKED, SCALE, GLOBAL = "_packed", "_scale", "_global_scale"
# What a loader gets wrong without a word: tried with transformers 5.24.
SILENT = (
    "transformers 5.24 loads routed experts in nvfp4 without a word, leaves out their global scale and computes wrong "
    "answers: serve them with vLLM or SGLang"
)
# The largest product of an E4M3 scale and an E2M1 code.
REACH = 448.0 * 6.0


@dataclass(frozen=True, slots=True)
class Fp4:
    """E2M1 codes in groups of `size` columns; `search` looks for the scale of least error."""

    name: str
    size: int
    scale_dtype: str
    suffixes: tuple[str, ...]
    search: bool = field(default=False, compare=False)

    @property
    def surveys(self) -> bool:
        return GLOBAL in self.suffixes

    @property
    def block(self) -> tuple[int, int]:
        return 1, self.size

    @property
    def group(self) -> tuple[int, int]:
        return 1, self.size

    def specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        scales = grid(shape, self.group)
        specs = {PACKED: TensorSpec("U8", (shape[0], -(-shape[1] // 2))), SCALE: TensorSpec(self.scale_dtype, scales)}
        return specs | ({GLOBAL: TensorSpec("F32", (1,))} if GLOBAL in self.suffixes else {})

    def reads(self, shape: tuple[int, ...], stored: Mapping[str, TensorSpec]) -> Fp4 | None:
        return self if divides(shape, self.group) and dict(stored) == self.specs(shape) else None

    def moves_to(self, target: object) -> bool:
        return self == target

    def box(self, suffix: str, box: Box, shape: tuple[int, ...]) -> Box:
        if suffix == GLOBAL:
            return Box.whole((1,))
        scales = grid_box(box, self.group, shape)
        if suffix == SCALE:
            return scales
        return Box((box.start[0], box.start[1] // 2), (box.stop[0], box.stop[1] // 2))

    def room(self, shape: tuple[int, ...], width: int, encoding: bool) -> int:
        # Magnitudes, exponents, signs and codes; a search has quotients, what they restore and all scales too.
        return (22 if self.search else 14) * chunk(shape, self.group)

    def stated(self, shape: tuple[int, ...]) -> dict[str, bytes]:
        return {}

    def decode(self, stored: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """code * 2^(scale - 127), or code * (scale / global scale), rounded once to `out`'s dtype.

        Raises:
            BadBlock: a scale is NaN, infinite or negative, or the global scale zero too.
        """
        import torch

        from dsctl.codecs import nibbles

        factors = self._factors(stored[SCALE], stored.get(GLOBAL))
        refuse_bad(factors, zero=GLOBAL in self.suffixes)
        for rows, places in chunks(out.shape[0], out.shape[1], self.group):
            values = nibbles.unpacked(stored[PACKED][rows], nibbles.E2M1, torch.bfloat16)
            multiplied(values, factors[places], self.group, out[rows])

    def encode(self, values: torch.Tensor, stored: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Scales from the largest magnitudes; quotients rounded to the nearest code, ties to even.

        `stored` may hold `PEAK`: the largest magnitude that the global scale is made for (default: the values').

        Raises:
            BadBlock: a value is NaN or infinite.
        """
        from dsctl.codecs import nibbles

        if self.surveys:
            widest = stored[PEAK] if PEAK in stored else peak(values)
            stored[GLOBAL].copy_(_global_scale(widest, values.dtype))
        for rows, places in chunks(values.shape[0], values.shape[1], self.group):
            magnitudes = values[rows].abs().float()
            largest = greatest(magnitudes, self.group, places.start)
            stored[SCALE][places] = self._scales(magnitudes, largest, stored, values.dtype)
            factors = self._factors(stored[SCALE][places], stored.get(GLOBAL))
            divided(magnitudes, factors, self.group, magnitudes)
            signs = nibbles.signs(values[rows], magnitudes)
            nibbles.pack(nibbles.e2m1(magnitudes).bitwise_or_(signs), stored[PACKED][rows])
        return {}

    def _scales(
        self, magnitudes: torch.Tensor, largest: torch.Tensor, stored: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> torch.Tensor:
        """The groups' scales; `dtype` is that of the weights."""
        import torch

        from dsctl.codecs import nibbles, search

        scales = self._made(largest, 1.0, stored, dtype)
        if not self.search:
            return scales
        tried = [self._made(largest, share, stored, dtype) for share in self._shares]

        def restored(magnitudes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
            factors = self._factors(scales, stored.get(GLOBAL))
            quotients = torch.empty_like(magnitudes)
            divided(magnitudes, factors, self.group, quotients)
            return self._restored(nibbles.e2m1(quotients), factors)

        return search.best(magnitudes, [scales, *tried], restored)

    @property
    def _shares(self) -> tuple[float, ...]:
        from dsctl.codecs import search

        return search.SHARES if GLOBAL in self.suffixes else (0.5, 2.0)

    def _made(
        self, largest: torch.Tensor, share: float, stored: Mapping[str, torch.Tensor], dtype: torch.dtype
    ) -> torch.Tensor:
        """Scales for groups whose largest magnitude is this share of what it is."""
        from dsctl.codecs.scales import exponents

        largest = largest * share
        return _local_scales(largest, stored[GLOBAL], dtype) if GLOBAL in self.suffixes else exponents(largest, 2)

    def _restored(self, codes: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        import torch

        from dsctl.codecs import nibbles

        table = torch.tensor(nibbles.E2M1, device=codes.device)
        out = torch.index_select(table, 0, codes.view(-1).to(torch.int32)).view(codes.shape)
        multiplied(out, factors, self.group, out)
        return out

    def _factors(self, scales: torch.Tensor, whole: torch.Tensor | None) -> torch.Tensor:
        from dsctl.codecs.scales import e4m3, powers

        return powers(scales) if whole is None else e4m3(scales) / whole

    def config(self) -> dict[str, Any] | None:
        from dsctl.codecs import dress

        return dress.config(*dress.SCHEMES[self.name])


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
    made = Fp4("mxfp4", 32, "U8", (PACKED, SCALE)), Fp4("nvfp4", 16, "F8_E4M3", (PACKED, SCALE, GLOBAL))
    return {codec.name: codec for codec in made}
