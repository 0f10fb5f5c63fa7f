"""Scales as numbers: possible ones, powers of two where that is declared. Read with numpy, no torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from dsctl.checkpoint import Checkpoint
from dsctl.codecs import SCALES, Codec
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.header import TensorRef
from dsctl.scales import are_powers_of_two, bad_scale, read_scales
from dsctl.verify.findings import Finding
from dsctl.verify.structure import pieces

# A scale so many times its matrix's median, or so large at all, would make weights that no training gives.
ODD = 1 << 12
ABSURD = 2.0**11


def scale_refs(checkpoint: Checkpoint) -> dict[TensorRef, Codec]:
    """Every scale tensor of a quantized parameter and the codec that reads it."""
    return {
        ref: piece.codec
        for piece in pieces(checkpoint)
        for suffix, ref in zip(piece.codec.suffixes, piece.refs, strict=True)
        if suffix in SCALES
    }


def block_scales(checkpoint: Checkpoint) -> dict[TensorRef, Fp8Block]:
    """Those of FP8 blocks, which may be powers of two or not."""
    return {ref: codec for ref, codec in scale_refs(checkpoint).items() if isinstance(codec, Fp8Block)}


def scales(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Every scale that cannot be one, and whether `scale_fmt` tells the truth."""
    refs = scale_refs(checkpoint)
    all_powers, ue8m0 = True, (checkpoint.quantization or {}).get("scale_fmt") == "ue8m0"
    for ref, values in read_scales(checkpoint.store, refs):
        if not values.size:
            continue
        powers = not isinstance(refs[ref], Fp8Block) or _are_powers(values)
        all_powers = all_powers and powers
        bad = bad_scale(ref, values)
        if bad is not None:
            yield Finding("bad-scale", ref.name, f"scale of block [{bad.row}, {bad.column}] is {bad.value:g}")
            continue
        if ue8m0 and not powers:
            yield Finding("not-power-of-two", ref.name, _not_a_power(values))
        # A global scale, of which there is one, is divided by: there is nothing to hold it against.
        if values.size > 1 and float(values.max()) > min(ODD * float(values.min()), ABSURD):
            yield from _odd(ref, values)
    blocks = any(isinstance(codec, Fp8Block) for codec in refs.values())
    if blocks and all_powers and checkpoint.quantization and not ue8m0:
        yield Finding("scale-fmt-undeclared", "config.json", "all scales are powers of two, but scale_fmt is not ue8m0")


def _not_a_power(values: npt.NDArray[np.float32]) -> str:
    other = np.frexp(values)[0] != 0.5
    row, column = (int(n) for n in np.argwhere(other)[0])
    return f"scale of block [{row}, {column}] is {values[row, column]:g}, no power of two as ue8m0 promises"


def _are_powers(values: npt.NDArray[np.float32]) -> bool:
    """Whether no scale has a mantissa, which is quick to see; subnormal powers of two have."""
    return not int(np.bitwise_or.reduce(values.view(np.uint32), axis=None)) & 0x7FFFFF or are_powers_of_two(values)


def _odd(ref: TensorRef, values: npt.NDArray[np.float32]) -> Iterator[Finding]:
    usual = float(np.quantile(values, 0.5, method="lower"))
    place = np.unravel_index(int(np.argmax(values)), values.shape)
    if values[place] > min(ODD * usual, ABSURD):
        block = list(map(int, place))
        yield Finding("odd-scale", ref.name, f"scale of block {block} is {values[place]:g}, usual is {usual:g}")
