"""The storage of a known release's parameters. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dsctl import models
from dsctl.codecs import of_published
from dsctl.codecs.codec import Codec
from dsctl.codecs.plain import Plain
from dsctl.core.config_fields import quantization_of
from dsctl.core.params import Family
from dsctl.models.model import Model
from dsctl.releases import Release


def quantized_roles(release: Release) -> Mapping[str, Codec]:
    """The codec of each role that a release quantizes; empty if its config declares nothing quantized.

    Raises:
        FormatError: the config declares an unknown format.
    """
    quantization = quantization_of(release.config)
    published = _model(release).published(release.config, release.storage.traits) if quantization else {}
    return {role: _with_scales(of_published(form, quantization), release) for role, form in published.items()}


def _model(release: Release) -> Model:
    return models.recognise(release.config)


def _with_scales(codec: Codec, release: Release) -> Codec:
    """The codec with the release's scales, even if its config declares different ones."""
    fmt = release.storage.scale_fmt
    return replace(codec, scale_fmt=fmt) if fmt and codec.scale_fmt else codec  # type: ignore[type-var]


def stored_codec(family: Family, quantized: Mapping[str, Codec]) -> Codec:
    """The codec of a family, given the codecs of quantized roles."""
    codec = quantized.get(family.role)
    return codec if codec is not None and family.quantizable else Plain(family.dtype)
