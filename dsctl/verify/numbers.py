"""Scales as numbers: impossible ones, ones that are not the declared powers of two, outliers. numpy, no torch.

A scale follows from the largest magnitude of its block, so scales compare as these magnitudes do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median

import numpy as np
import numpy.typing as npt

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.scales import (
    NUMBERS,
    are_bytes,
    are_powers_of_two,
    bad_band,
    bad_scale,
    bytes_told,
    read_scales,
    split_large,
)
from dsctl.codecs.codec import SCALE, SCALES, Codec
from dsctl.core.header import TensorRef
from dsctl.releases import releases
from dsctl.verify.findings import Finding
from dsctl.verify.structure import params, pieces, placed, quantized_codecs

# A scale this many times its matrix's median, or above this number, gives weights that no training gives.
ODD = 1 << 8
ABSURD = 2.0**11
# A scale this many times smaller, or below this number, makes a block zero. A block of zeros has one for a reason.
FAINT = 1 << 24
NOTHING = 2.0**-40
# A matrix's largest scale is this many times that of most of its template, or that of most is this many times its own.
FAR, NEAR_NOTHING = 1 << 8, 1 << 12
# The least number of matrices that show the usual scale.
ENOUGH = 4


def scale_refs(checkpoint: Checkpoint) -> dict[TensorRef, Codec]:
    """Every scale tensor of a quantized parameter, with the codec that reads it."""
    return {
        ref: piece.codec
        for piece in pieces(checkpoint)
        for part, ref in zip(piece.codec.parts, piece.refs, strict=True)
        if part in SCALES
    }


def block_scales(checkpoint: Checkpoint) -> dict[TensorRef, Codec]:
    """The scale tensors of FP8 blocks, which may be powers of two or not; those of tables are exponents in any case."""
    known = quantized_codecs(checkpoint)
    return {ref: codec for ref, codec in scale_refs(checkpoint).items() if codec.scale_fmt and codec in known}


def scales(checkpoint: Checkpoint, refs: Mapping[TensorRef, Codec]) -> Iterator[Finding]:
    """Findings about impossible and unusual ones among these scales, and about a wrong `scale_fmt`."""
    largest: dict[TensorRef, float] = {}
    unrounded: dict[TensorRef, Finding] = {}
    all_powers, ue8m0 = True, (checkpoint.quantization or {}).get("scale_fmt") == "ue8m0"
    small, large = split_large(refs)
    for ref in large:
        if bad := bad_band(checkpoint.store, ref):
            yield from placed(checkpoint, ref, [Finding("bad-scale", ref.name, bad.told)])
    for ref, values in read_scales(checkpoint.store, small):
        if not values.size:
            continue
        powers = not refs[ref].scale_fmt or _are_powers(values)
        all_powers = all_powers and powers
        if are_bytes(ref, values):
            yield from placed(checkpoint, ref, [_bytes(ref, values)])
            continue
        bad = bad_scale(ref, values)
        if bad is not None:
            yield from placed(checkpoint, ref, [Finding("bad-scale", ref.name, bad.told)])
            continue
        if ue8m0 and not powers:
            unrounded[ref] = Finding("not-power-of-two", ref.name, _not_a_power(values))
        # Weights are divided by a global scale, and the scales below it are shares of it: nothing to compare them with.
        if ref.spec.dtype == "F8_E4M3" or refs[ref].surveys:
            continue
        largest[ref], least = float(values.max()), float(values.min())
        if largest[ref] > min(ODD * least, ABSURD) or least < NOTHING:
            yield from _odd(ref, values)
    yield from _unrounded(checkpoint, unrounded)
    yield from _far(checkpoint, largest)
    yield from _unread_bytes(checkpoint)
    # Only DeepSeek's models declare powers of two.
    if checkpoint.generic or any(fault.code == "scale-fmt-missing" for fault in checkpoint.contradictions):
        return
    blocks = any(codec.scale_fmt for codec in quantized_codecs(checkpoint))
    if blocks and all_powers and checkpoint.quantization and not ue8m0:
        yield Finding("scale-fmt-undeclared", "config.json", "all scales are powers of two, but scale_fmt is not ue8m0")


def _bytes(ref: TensorRef, values: npt.NDArray[np.float32]) -> Finding:
    return Finding("scale-bytes", ref.name, bytes_told(ref, values))


def _unread_bytes(checkpoint: Checkpoint) -> Iterator[Finding]:
    """The same for scales in a dtype that no format has."""
    wrong = {fault.where for fault in checkpoint.survey.faults if fault.code == "wrong-scale-dtype"}
    contents = checkpoint.contents
    names = {contents.stored(weight, codec, SCALE) for weight in wrong for codec in contents.codecs}
    refs = [ref for ref in checkpoint.tensors if ref.name in names and ref.spec.dtype in NUMBERS] if wrong else []
    for ref, values in read_scales(checkpoint.store, refs):
        if are_bytes(ref, values):
            yield from placed(checkpoint, ref, [_bytes(ref, values)])


def _unrounded(checkpoint: Checkpoint, found: Mapping[TensorRef, Finding]) -> Iterator[Finding]:
    """Scales that are not powers of two: a single note for a template if all of its scales are so, as in a release."""
    model = checkpoint.model.name if checkpoint.model else ""
    alike = [release for release in releases() if release.architecture == model]
    apart = {template: release.name for release in alike for template in release.storage.scales_apart}
    held: dict[str, list[TensorRef]] = {}
    for param, piece in params(checkpoint) if found and apart else ():
        if param.template in apart and piece.codec.scale_fmt:
            held.setdefault(param.template, []).append(piece.refs[-1])
    usual = {template: refs for template, refs in held.items() if found.keys() >= set(refs)}
    for template in usual:
        what = f"no scale is a power of two, although scale_fmt declares it; {apart[template]} is the same"
        yield Finding("scales-apart", template, what)
    known = {ref for refs in usual.values() for ref in refs}
    yield from (finding for ref, finding in found.items() if ref not in known)


def _not_a_power(values: npt.NDArray[np.float32]) -> str:
    other = np.frexp(values)[0] != 0.5
    row, column = (int(n) for n in np.argwhere(other)[0])
    return f"scale of block [{row}, {column}] is {values[row, column]:g}, but ue8m0 declares powers of two"


def _are_powers(values: npt.NDArray[np.float32]) -> bool:
    """Whether no scale has mantissa bits, which is quick to check; subnormal powers of two have some."""
    return not int(np.bitwise_or.reduce(values.view(np.uint32), axis=None)) & 0x7FFFFF or are_powers_of_two(values)


def _odd(ref: TensorRef, values: npt.NDArray[np.float32]) -> Iterator[Finding]:
    usual = float(np.quantile(values, 0.5, method="lower"))
    for odd in {int(np.argmax(values)), int(np.argmin(values))}:
        place = np.unravel_index(odd, values.shape)
        value = float(values[place])
        if value > min(ODD * usual, ABSURD) or value < max(usual / FAINT, NOTHING):
            block = list(map(int, place))
            yield Finding("odd-scale", ref.name, f"scale of block {block} is {value:g}, but the median is {usual:g}")


def _far(checkpoint: Checkpoint, largest: Mapping[TensorRef, float]) -> Iterator[Finding]:
    """Matrices whose largest scale is far from that of most matrices of their template."""
    owners = {ref: param.template for param, piece in params(checkpoint) for ref in piece.refs if ref in largest}
    templates: dict[str, list[TensorRef]] = {}
    for ref, template in owners.items():
        templates.setdefault(template, []).append(ref)
    for refs in templates.values():
        usual = median(largest[ref] for ref in refs)
        for ref in refs if len(refs) >= ENOUGH else ():
            if not usual / NEAR_NOTHING <= largest[ref] <= usual * FAR:
                what = f"its largest scale is {largest[ref]:g}, but {usual:g} in most such matrices"
                yield Finding("odd-scale", ref.name, what)
