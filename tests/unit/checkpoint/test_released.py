"""How releases known by name store their parameters."""

from __future__ import annotations

import msgspec
import pytest

from dsctl import models, releases
from dsctl.checkpoint.released import quantized_roles, stored_codec
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.plain import Plain
from dsctl.core.errors import FormatError
from dsctl.core.params import Family

QUANTIZED = {"attention": Fp8Block()}


@pytest.mark.parametrize(("alias", "fmt"), [("v3", "float32"), ("r1", "float32"), ("v3.1", "ue8m0"), ("v3.2", "ue8m0")])
def test_fp8_releases_and_their_scales(alias: str, fmt: str) -> None:
    codecs = set(quantized_roles(releases.find(alias)).values())
    assert codecs == {Fp8Block(scale_fmt=fmt)}


def test_a_release_that_declares_nothing_quantizes_nothing() -> None:
    release = releases.find("v3")
    config = {name: value for name, value in release.config.items() if name != "quantization_config"}
    assert quantized_roles(msgspec.structs.replace(release, config=config)) == {}
    assert quantized_roles(releases.find("v2-lite")) == {}


def test_the_config_gives_the_blocks_and_what_is_stored_the_scales() -> None:
    release = releases.find("v3.2")
    said = release.config["quantization_config"] | {"weight_block_size": [64, 32], "scale_fmt": "float32"}
    other = msgspec.structs.replace(release, config={**release.config, "quantization_config": said})
    stored = msgspec.structs.replace(other, storage=msgspec.structs.replace(release.storage, scale_fmt="ue8m0"))
    assert set(quantized_roles(stored).values()) == {Fp8Block((64, 32), "ue8m0")}


@pytest.mark.parametrize("size", [None, [128], [128, 0], ["128", "128"], [128, True], [1 << 17, 128]])
def test_blocks_of_no_size_are_refused(size: object) -> None:
    release = releases.find("v3")
    said = release.config["quantization_config"] | {"weight_block_size": size}
    with pytest.raises(FormatError, match="is not two positive integers"):
        quantized_roles(msgspec.structs.replace(release, config={**release.config, "quantization_config": said}))


@pytest.mark.parametrize(
    ("role", "quantizable", "codec"),
    [("attention", True, Fp8Block()), ("attention", False, Plain("F32")), ("norm", True, Plain("F32"))],
)
def test_only_what_can_be_quantized_is(role: str, quantizable: bool, codec: object) -> None:
    assert stored_codec(Family("w", (2, 2), role, quantizable, dtype="F32"), QUANTIZED) == codec


@pytest.mark.parametrize("release", releases.releases(), ids=lambda release: release.alias[0])
def test_every_role_that_a_release_quantizes_is_one_of_its_model(release: releases.Release) -> None:
    roles = {family.role for family in models.recognise(release.config).families(release.config) if family.quantizable}
    assert set(quantized_roles(release)) <= roles | {"indexer", "dense mlp"}
