"""Why a parameter's tensor matches no known format: its dtype, shape or scales. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dsctl.checkpoint.pieces import Fault
from dsctl.codecs.codec import CODES, SCALE, Codec
from dsctl.core.header import TensorSpec

# Names of float codes.
_FLOATS = {"e4m3": "FP8", "e2m1": "FP4"}
# Dtypes for two four-bit codes in a byte.
_PAIRS = ("I8", "U8")


class Stored(NamedTuple):
    """The stored tensors of a parameter of this shape: the weight, and by name the weight and its possible parts."""

    shape: tuple[int, ...]
    weight: TensorSpec
    there: Mapping[str, TensorSpec]


def mismatch(name: str, held: Stored, codecs: Sequence[tuple[Codec, str]], role: str) -> Fault:
    """The single fault that explains the mismatch best.

    `codecs` are those that would store codes under this name, each with its name of the scales.
    """
    weight = held.weight
    floats = [one for one in codecs if one[0].form.codes in _FLOATS and len(held.shape) == 2]
    mine = [one for one in floats if _are_codes(weight, one[0], held.shape)]
    if mine and len(held.there) == 1:
        codec, scale = mine[0]
        return Fault("missing-scale", name, f"{_FLOATS[codec.form.codes]} without a scale: {scale} is missing")
    found = _plain(name, held, floats) or _scales(name, held, mine, floats)
    if found is not None:
        return found
    wanted = next((spec for codec, _ in floats if _is_of(weight, spec := codec.specs(held.shape)[CODES])), None)
    shape = wanted.shape if wanted and weight.shape != held.shape else held.shape
    if weight.shape != shape:
        return Fault("wrong-shape", name, f"is {list(weight.shape)}, but {list(shape)} in the architecture")
    others = ", ".join(f"{one} {t.dtype} {list(t.shape)}" for one, t in held.there.items() if t is not weight)
    if others:
        return Fault("wrong-scale", name, f"{weight.dtype} {list(weight.shape)} does not match {others}")
    return Fault("wrong-dtype", name, f"dtype {weight.dtype} is not a format of its role, {role}")


def _is_of(weight: TensorSpec, codes: TensorSpec) -> bool:
    """Whether a tensor has the dtype of some codes, or a dtype of the same meaning."""
    return weight.dtype == codes.dtype or (weight.dtype in _PAIRS and codes.dtype in _PAIRS)


def _are_codes(weight: TensorSpec, codec: Codec, shape: tuple[int, ...]) -> bool:
    codes = codec.specs(shape)[CODES]
    return _is_of(weight, codes) and weight.shape == codes.shape


def _plain(name: str, held: Stored, codecs: Sequence[tuple[Codec, str]]) -> Fault | None:
    """The fault of four-bit codes that are stored in a byte each instead of two in a byte."""
    for codec, scale in codecs:
        codes = codec.specs(held.shape)[CODES]
        if scale in held.there and codes.shape != held.shape == held.weight.shape and _is_of(held.weight, codes):
            what = f"is {held.weight.dtype} {list(held.shape)}, one code per byte: packed two per byte it would be "
            return Fault("not-packed", name, f"{what}{list(codes.shape)}")
    return None


def _scales(
    name: str, held: Stored, mine: Sequence[tuple[Codec, str]], codecs: Sequence[tuple[Codec, str]]
) -> Fault | None:
    """The fault of scales whose dtype or grid does not match the codes; the first of `mine` is a release's codec."""
    for codec, scale in mine:
        found, wanted = held.there.get(scale), codec.specs(held.shape)[SCALE]
        if found is None:
            continue
        codes = _FLOATS[codec.form.codes]
        if found.shape == wanted.shape:
            if codec.form.scale != "E8M0":
                return None
            if found.dtype != wanted.dtype:
                what = f"is {codes}, but its scales {scale} are {found.dtype}; releases have {wanted.dtype}"
                return Fault("wrong-scale-dtype", name, what)
        other = next(
            (one for one, at in codecs if at == scale and one.specs(held.shape)[SCALE].shape == found.shape), None
        )
        if other is not None and other.form.codes != codec.form.codes:
            what = f"is {codes}, but its scales {scale} {list(found.shape)} are those of {_FLOATS[other.form.codes]}"
            return Fault("other-grid", name, f"{what}: {list(wanted.shape)} would match")
        if found.shape != wanted.shape:
            turned = "; the grid of scales is transposed" if found.shape == wanted.shape[::-1] else ""
            what = f"does not match {scale} {found.dtype} {list(found.shape)}: {list(wanted.shape)} would{turned}"
            return Fault("wrong-scale", name, f"{held.weight.dtype} {list(held.weight.shape)} {what}")
    return None
