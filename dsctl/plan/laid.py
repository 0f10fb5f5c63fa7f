"""The codec that a layout uses for a chosen format, and the codec of the whole that its parts come from. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from dsctl.codecs import in_dialect
from dsctl.codecs.codec import SCALE, Codec
from dsctl.codecs.fp4 import Fp4
from dsctl.codecs.plain import Plain
from dsctl.core.header import TensorRef
from dsctl.core.params import Family, Param
from dsctl.layouts.layout import Layout
from dsctl.layouts.naming import DIALECTS


def laid(layout: Layout, family: Family, codec: Codec, before: Mapping[str, str]) -> Codec:
    """The codec with which a layout stores a family, given the chosen one.

    `before` is the source layout's spelling of codes; a target layout without a spelling of its own does not adopt it.
    """
    dtype = layout.decoded(family)
    if dtype and codec.quantized:
        return Plain(dtype)
    if not isinstance(codec, Fp4) or codec.surveys:
        return codec
    spelled = layout.spelled.get(codec.form.codes)
    if spelled:
        return _spelled(codec, spelled)
    taken = codec.codes_dtype == before.get(codec.form.codes)
    return in_dialect(codec, codec.dialect) if taken else codec


@cache
def _spelled(codec: Fp4, dtype: str) -> Fp4:
    return replace(codec, codes_dtype=dtype)


def undone(param: Param, codec: Codec, scales: Mapping[str, TensorRef], encoded: Codec | None) -> Codec:
    """The codec with which the whole stored a parameter that a layout decoded: `encoded` if its scales are kept."""
    if encoded is None or codec.quantized:
        return codec
    kept = scales.get(DIALECTS[encoded.dialect].tensor(param.name, SCALE))
    fits = kept is not None and kept.spec == encoded.specs(param.shape)[SCALE]
    return encoded if fits else codec
