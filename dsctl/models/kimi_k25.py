"""Kimi K2.5, K2.6 and K2.7-Code: Kimi K2 without its rotary buffer, under a prefix, with a vision tower and projector.

moonshotai/Kimi-K2.5: config.json, README.md and the published tensor listings of the three releases, which have the
same names, shapes and dtypes. The language model's fields, `quantization_config` among them, are in `text_config`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import msgspec

from dsctl.core.attention import Sizes
from dsctl.core.config_fields import resized, text_fields
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorSpec
from dsctl.core.params import PLAIN_TRAITS, Family, Published, Traits, Unit
from dsctl.models.deepseek_v3 import Count, DeepseekV3, Size, shrunk
from dsctl.models.deepseek_v3_config import sliced, with_mtp, without_mtp

PREFIX = "language_model."
_TOWER, _PROJECTOR = "vision_tower.", "mm_projector."
_COLOURS = 3
_PLACEHOLDER = "media_placeholder_token_id"


class Vision(msgspec.Struct, frozen=True):
    """The fields of `vision_config` that set shapes."""

    vt_hidden_size: Size
    vt_intermediate_size: Size
    vt_num_hidden_layers: Count
    text_hidden_size: Size
    patch_size: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 14
    init_pos_emb_height: Size = 64
    init_pos_emb_width: Size = 64
    merge_kernel_size: tuple[Size, Size] = (2, 2)

    @property
    def joined(self) -> int:
        """The width of neighbouring patches that the projector joins."""
        rows, columns = self.merge_kernel_size
        return rows * columns * self.vt_hidden_size


def vision(config: Mapping[str, Any]) -> Vision | None:
    """The sizes of the parts that read images, or None if the config has none.

    Raises:
        FormatError: a field is missing, of the wrong type or absurd.
    """
    said = config.get("vision_config")
    if said is None:
        return None
    try:
        return msgspec.convert(said, Vision)
    except msgspec.ValidationError as error:
        raise FormatError(f"config.json: vision_config: {error}") from None


def prefixed(families: Iterable[Family]) -> tuple[Family, ...]:
    """The families of a language model under the names that they have inside the whole model."""
    return tuple(
        replace(
            one,
            template=PREFIX + one.template,
            twin=None if one.twin is None else PREFIX + one.twin,
            fused=one.fused and PREFIX + one.fused,
        )
        for one in families
    )


def plain(name: str, *shape: int) -> Family:
    """A parameter of the parts that read images: every rank has all of it, and releases do not quantize it."""
    return Family(name, shape, "vision")


def affine(name: str, *shape: int) -> Iterator[Family]:
    """A weight with a bias for each of its rows."""
    yield plain(f"{name}.weight", *shape)
    yield plain(f"{name}.bias", shape[0])


def image_table(v: Vision) -> Iterator[Family]:
    """The matrix over square patches, and the table of their positions."""
    size = v.vt_hidden_size
    yield plain(f"{_TOWER}patch_embed.proj.weight", size, _COLOURS, v.patch_size, v.patch_size)
    yield plain(f"{_TOWER}patch_embed.pos_emb.weight", v.init_pos_emb_height, v.init_pos_emb_width, size)


def tower(v: Vision) -> Iterator[Family]:
    """Layers over patches."""
    size, inner = v.vt_hidden_size, v.vt_intermediate_size
    yield from image_table(v)
    yield plain(f"{_TOWER}patch_embed.proj.bias", size)
    for number in range(v.vt_num_hidden_layers):
        block = f"{_TOWER}encoder.blocks.{number}."
        for norm in ("norm0", "norm1"):
            yield from affine(f"{block}{norm}", size)
        yield from affine(f"{block}wqkv", 3 * size, size)
        yield from affine(f"{block}wo", size, size)
        yield from affine(f"{block}mlp.fc0", inner, size)
        yield from affine(f"{block}mlp.fc1", size, inner)
    yield from affine(f"{_TOWER}encoder.final_layernorm", size)


def projector(v: Vision) -> Iterator[Family]:
    """Two matrices from joined neighbouring patches to the language model's width."""
    yield from affine(f"{_PROJECTOR}pre_norm", v.vt_hidden_size)
    yield from affine(f"{_PROJECTOR}proj.0", v.joined, v.joined)
    yield from affine(f"{_PROJECTOR}proj.2", v.text_hidden_size, v.joined)


def shrunk_vision(config: Mapping[str, Any], hidden: int, most: Mapping[str, int]) -> dict[str, Any]:
    """The `vision_config` field with small sizes, for a language model of width `hidden`; empty without one."""
    said = config.get("vision_config")
    if not isinstance(said, dict):
        return {}
    small = {field: min(said[field], limit) for field, limit in most.items() if field in said}
    return {"vision_config": said | small | {"text_hidden_size": hidden}}


def shrunk_placeholder(said: Mapping[str, Any], vocabulary: int) -> dict[str, int]:
    """The number of the token that stands for images, within a vocabulary; empty if the config has none."""
    number = said.get(_PLACEHOLDER)
    return {_PLACEHOLDER: min(number, vocabulary - 1)} if type(number) is int else {}


class KimiK25(DeepseekV3):
    """Kimi K2.5, K2.6, K2.7-Code and their fine-tunes."""

    name = "kimi_k25"
    architecture = "KimiK25ForConditionalGeneration"

    def traits(self, config: Mapping[str, Any], stored: Mapping[str, TensorSpec]) -> Traits:
        return PLAIN_TRAITS

    def families(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> tuple[Family, ...]:
        text, sizes = super().families(text_fields(config), traits), vision(config)
        return (*prefixed(text), *((*tower(sizes), *projector(sizes)) if sizes else ()))

    def published(self, config: Mapping[str, Any], traits: Traits = PLAIN_TRAITS) -> Mapping[str, Published]:
        form = Published("int4-group-32", "compressed-tensors-packed", why="as Kimi K2.5 stores them")
        return {"routed experts": form._replace(dtypes=(("shape_dtype", "I32"),))}

    def units(self, config: Mapping[str, Any]) -> tuple[Unit, ...]:
        return super().units(text_fields(config))

    def attention(self, config: Mapping[str, Any]) -> Sizes | None:
        return super().attention(text_fields(config))

    def without_mtp(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return resized(config, without_mtp(text_fields(config)))

    def with_mtp(self, config: Mapping[str, Any], other: Mapping[str, Any], traits: Traits) -> dict[str, Any]:
        return resized(config, with_mtp(text_fields(config), text_fields(other)))

    def sliced(self, config: Mapping[str, Any], layers: Sequence[int], experts: Sequence[int]) -> dict[str, Any]:
        return resized(config, sliced(text_fields(config), layers, experts))

    def tiny(self, config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
        said = text_fields(config)
        small = shrunk(said, sizes)
        # The MLP's width stays no multiple of a group, as 4304 is none of 32.
        most = {"vt_hidden_size": 64, "vt_intermediate_size": 240, "vt_num_hidden_layers": 2, "mm_hidden_size": 64}
        most |= {"vt_num_attention_heads": 4, "init_pos_emb_height": 8, "init_pos_emb_width": 8}
        small |= shrunk_placeholder(said, sizes["vocab"]) | shrunk_vision(config, sizes["hidden"], most)
        return resized(config, small)
