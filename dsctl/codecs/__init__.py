"""The table of formats, and the choice of formats by `quantization_config`. One file per kind of format beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from dsctl.codecs import dress, fp4, packed, scaled
from dsctl.codecs.codec import Codec
from dsctl.codecs.fp4 import Fp4
from dsctl.codecs.fp8_block import CT_BLOCKS, Fp8Block
from dsctl.codecs.plain import Plain
from dsctl.core.errors import FormatError
from dsctl.core.params import Published

CODECS: dict[str, Codec] = {
    "bf16": Plain("BF16"),
    "f16": Plain("F16"),
    "f32": Plain("F32"),
    "fp8-block": Fp8Block(),
    "fp8-block-e8m0": Fp8Block(scale_fmt="ue8m0", scale_dtype="F8_E8M0"),
    "fp8-block-ct": CT_BLOCKS,
    **scaled.formats(),
    **packed.formats(),
    **fp4.formats(),
}


# Dtypes by dialect, where dialects use different dtypes for the same bits: four-bit codes and E8M0; and whether scales
# follow DeepSeek's rule.
NATIVE = "v4"
SPELLINGS: dict[str, dict[str, Any]] = {NATIVE: {"codes_dtype": "I8", "scale_dtype": "F8_E8M0", "native": True}}
# Formats that occur under a dialect beside those that a release of the same kind stores.
_MET = {NATIVE: ("mxfp4", "fp8-block-e8m0")}


def in_dialect(codec: Codec, dialect: str) -> Codec:
    """The same form in a different dialect."""
    if isinstance(codec, Fp4) and not codec.surveys:
        return replace(codec, dialect=dialect, **SPELLINGS.get(dialect, {}))
    return replace(codec, dialect=dialect) if codec.quantized else codec  # type: ignore[type-var]


def by_row(codec: Codec) -> Codec:
    """The codec of the same codes with a scale for each row, where a row of blocks shares scales."""
    if codec.block[0] == 1:
        return codec
    shape = "block" if isinstance(codec, Fp8Block) else "group"
    return replace(codec, **{shape: (1, codec.form.group[1])})  # type: ignore[type-var]


def of_published(published: Published, quantization: Mapping[str, Any] | None = None) -> Codec:
    """The codec of a release's format; a `quantization_config` may declare different blocks and scales.

    Raises:
        FormatError: see `declared`.
    """
    codec = in_dialect(CODECS[published.format], published.dialect)
    if published.dtypes:
        codec = replace(codec, **dict(published.dtypes))  # type: ignore[type-var]
    if not isinstance(codec, Fp8Block):
        return codec
    said = next(iter(Fp8Block.declared(quantization or {})), None)
    if said is None or published.own_block:
        return replace(codec, block=published.block, scale_fmt=published.scale_fmt or codec.scale_fmt)
    return replace(codec, block=said.block, scale_fmt=said.scale_fmt)


def declared(quantization: Mapping[str, Any] | None, published: Iterable[Published] = ()) -> tuple[Codec, ...]:
    """The codecs that a `quantization_config` declares, in its order, in the releases' dialect.

    Raises:
        FormatError: it declares a block or group that no codec supports.
    """
    if not quantization:
        return ()
    if quantization.get("quant_method") == dress.METHOD:
        return tuple([_of_weights(weights) for weights in dress.weights(quantization)])
    blocks = Fp8Block.declared(quantization)
    known = [of_published(one, quantization) for one in published] if blocks else []
    return tuple(dict.fromkeys(known)) or blocks


def readable(quantization: Mapping[str, Any] | None, published: Iterable[Published] = ()) -> tuple[Codec, ...]:
    """The codecs to try on stored tensors: the declared ones, then all other candidates.

    The dtype of floats identifies them. The same integers can mean different things under different methods (even FP8
    codes have been stored as integers), so if the config declares a supported method, only that method is tried.

    Raises:
        FormatError: see `declared`.
    """
    method = (quantization or {}).get("quant_method")
    known = isinstance(method, str) and method in {_method(codec) for codec in CODECS.values()}
    others = [codec for codec in CODECS.values() if not known or _floats(codec) or _method(codec) == method]
    published = tuple(published)
    ours = [of_published(one, quantization if known else None) for one in published]
    met = [
        of_published(Published(name, dialect, "ue8m0", block=block), quantization if known else None)
        for dialect, block in dict.fromkeys((one.dialect, one.block) for one in published if not one.own_block)
        for name in _MET.get(dialect, ())
    ]
    # A wrongly declared block size does not hide the releases' own blocks.
    usual = [of_published(one) for one in published]
    return tuple(dict.fromkeys((*declared(quantization, published), *others, *ours, *met, *usual)))


def _method(codec: Codec) -> str | None:
    return (codec.config() or {}).get("quant_method")


def _floats(codec: Codec) -> bool:
    return codec.specs(codec.block)[codec.parts[0]].dtype[0] in "BF"


def _of_weights(weights: Mapping[str, Any]) -> Codec:
    """The codec of one config group's weights.

    Raises:
        FormatError: no codec matches.
    """
    for codec in CODECS.values():
        if dress.same(weights, codec.config()):
            return codec
    size = weights.get("group_size")
    for packed_ in packed.formats().values():
        other = replace(packed_, name=f"int{packed_.bits}-group-{size}", size=size) if dress.sensible(size) else packed_
        if dress.same(weights, other.config()):
            return other
    raise FormatError(f"config.json: weights of {dress.told(weights)} are not a supported format")
