"""What only the tensors of a V3 model show: a stored rotary buffer, and the dtype of the router biases. Pure.

Kimi K2 stores `rotary_emb.inv_freq` in every layer, in different sizes and dtypes. moonshotai/Moonlight-16B-A3B, whose
config.json is that of a V3 model, stores it too, and its router biases in BF16.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from dsctl.core.header import TensorSpec
from dsctl.core.params import PLAIN_TRAITS, Family, Traits

ROTARY = "model.layers.{layer}.self_attn.rotary_emb.inv_freq"
BIAS = "model.layers.{layer}.mlp.gate.e_score_correction_bias"
_FLOATS = ("BF16", "F16", "F32")
# Dtypes of router biases that are not V3's.
_NARROW = ("BF16", "F16")
# More layers and values than any model has: a config or header beyond them is not believed.
_MOST = 4096


def told(config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Traits:
    """The traits that tensors, by name, show; those of the first layer that has them."""
    layers = config.get("num_hidden_layers")
    if type(layers) is not int or not 0 < layers <= _MOST:
        return PLAIN_TRAITS
    rotary = _first(ROTARY, layers, stored)
    if rotary is not None and (rotary.dtype not in _FLOATS or len(rotary.shape) != 1 or rotary.values > _MOST):
        rotary = None
    if rotary is None:
        return PLAIN_TRAITS
    # Narrow biases beside a buffer are Moonlight's own. Without a buffer, they were float32 and lost precision.
    bias = _first(BIAS, layers, stored)
    return Traits(rotary=rotary, bias=bias.dtype if bias is not None and bias.dtype in _NARROW else "")


def _first(template: str, layers: int, stored: Mapping[str, TensorSpec]) -> TensorSpec | None:
    """The spec of the first of these tensors whose header is known."""
    found = (stored.get(template.format(layer=layer)) for layer in range(layers))
    return next((spec for spec in found if spec is not None and spec.dtype), None)


def as_stored(families: Iterable[Family], layers: int, traits: Traits) -> tuple[Family, ...]:
    """The families of a model with so many main layers, with the stored buffer and the stored dtype of biases."""
    known = [replace(one, dtype=traits.bias) if traits.bias and one.template == BIAS else one for one in families]
    if traits.rotary is None:
        return tuple(known)
    dtype, shape = traits.rotary
    return (*known, Family(ROTARY, shape, "attention", dtype=dtype, layers=tuple(range(layers)), derived=True))
