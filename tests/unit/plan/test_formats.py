"""Which codec stores a parameter: by what is asked for, on what its source stores, its role and its dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl.checkpoint.checkpoint import ORIGINAL
from dsctl.codecs import CODECS
from dsctl.codecs.codec import Codec
from dsctl.codecs.fp8_block import CT_BLOCKS, Fp8Block
from dsctl.codecs.plain import Plain
from dsctl.core.params import Family, Param, Published
from dsctl.plan.formats import Formats, base_dtype, formats_of
from dsctl.plan.recipes import FOR_EXPERTS
from dsctl.plan.request import Request

BF16, F16, F32, BLOCKS = Plain("BF16"), Plain("F16"), Plain("F32"), Fp8Block(scale_fmt="ue8m0")
OURS = dict.fromkeys(("dense mlp", "attention"), Published("fp8-block", "deepseek", "ue8m0", "as releases do"))
KEPT = "scales: ue8m0; original scales are reused if they still fit"
USUAL = "scales: float32 (as V3 and R1 store them; --scale-fmt ue8m0 for V3.1 and later)"


def _param(role: str = "dense mlp", quantizable: bool = True, dtype: str = "BF16") -> Param:
    return next(Family("w", (2, 2), role, quantizable, dtype=dtype).params())


def _formats(
    request: Request,
    *stored: Codec,
    published: Mapping[str, Published] = OURS,
    kept: Codec | None = None,
) -> Formats:
    return formats_of(request, [(codec, 10) for codec in stored], published, None, kept)


UP, NORM = _param(), _param("norm", False)
F32_NORM, ROUTER = _param("norm", False, "F32"), _param("router", False)
INDEXER = _param("indexer")


@pytest.mark.parametrize(
    ("to", "param", "source", "found"),
    [
        ("keep", UP, BLOCKS, BLOCKS),
        ("keep", UP, Plain("I64"), Plain("I64")),
        ("bf16", UP, BLOCKS, BF16),
        ("f32", UP, BLOCKS, F32),
        ("f16", UP, BF16, F16),
        ("f16", NORM, BF16, F16),
        # What a release keeps in float32 stays.
        ("f16", F32_NORM, BF16, BF16),
        ("bf16", F32_NORM, F32, F32),
        # So does what is of another dtype than most.
        ("f16", UP, F32, F32),
        ("f16", UP, Plain("I64"), Plain("I64")),
        ("fp8-block", UP, BF16, BLOCKS),
        ("fp8-block", UP, F32, BLOCKS),
        ("fp8-block", NORM, BF16, BF16),
        ("fp8-block", F32_NORM, F32, F32),
        ("fp8-block", ROUTER, BLOCKS, BF16),
        ("fp8-block", INDEXER, BF16, BLOCKS),
        ("int8-channel", INDEXER, BF16, BF16),
        ("int8-channel", INDEXER, BLOCKS, BF16),
        ("int8-channel", UP, BLOCKS, CODECS["int8-channel"]),
        ("nvfp4", UP, BF16, CODECS["nvfp4"]),
        ("published", UP, BF16, BLOCKS),
        ("published", _param("shared experts"), BF16, BF16),
        ("published", _param("shared experts"), BLOCKS, BF16),
        ("published", NORM, BF16, BF16),
        ("published", _param("dense mlp", False), BF16, BF16),
    ],
)
def test_the_codec_of_a_parameter(to: str, param: Param, source: Codec, found: Codec) -> None:
    assert _formats(Request(to), BF16, BLOCKS).codec(param, source) == found


@pytest.mark.parametrize("to", [name for name, codec in CODECS.items() if codec.quantized])
def test_what_is_never_quantized_is_never_quantized(to: str) -> None:
    for param in (NORM, F32_NORM, ROUTER):
        for source in (BF16, F32, BLOCKS):
            found = _formats(Request(to), BF16).codec(param, source)
            # What is for routed experts alone leaves all else as it is.
            assert found == source if to in FOR_EXPERTS else not found.quantized


def test_what_is_not_quantized_follows_the_release_s_dtype() -> None:
    formats = _formats(Request("fp8-block"), F32)
    assert formats.base_dtype == "F32"
    assert formats.codec(NORM, F32) == BF16 and formats.codec(F32_NORM, F32) == F32
    assert _formats(Request("fp8-block"), F16).codec(NORM, F16) == F16


RULES = (("routed experts", "", "int4-group"), ("", "*.norm", "f32"), ("dense mlp", "", "keep"), ("", "*", "fp8-block"))


@pytest.mark.parametrize(
    ("param", "source", "found"),
    [
        (_param("routed experts"), BF16, CODECS["int4-group"]),
        (_param("dense mlp"), BLOCKS, CT_BLOCKS),
        (_param("attention"), BF16, BLOCKS),
        (_param("indexer"), BF16, BLOCKS),
        (NORM, BF16, BF16),
    ],
)
def test_the_first_rule_that_fits_decides(param: Param, source: Codec, found: Codec) -> None:
    formats = _formats(Request("recipe", rules=RULES), BF16, BLOCKS)
    codec = formats.codec(param, source)
    assert codec.form.codes == found.form.codes and codec.dialect == found.dialect


def test_the_source_s_scales_are_those_of_the_target() -> None:
    small = Fp8Block((64, 64), "ue8m0", "BF16")
    assert _formats(Request("fp8-block"), small, published={}).format == Fp8Block((64, 64), "ue8m0")


@pytest.mark.parametrize(
    ("request_", "stored", "published", "kept", "fmt", "note"),
    [
        (Request("fp8-block"), BF16, {}, None, "float32", USUAL),
        (Request("fp8-block"), BF16, OURS, None, "ue8m0", "scales: ue8m0 (as releases do)"),
        (Request("fp8-block"), BLOCKS, {}, None, "ue8m0", "scales: ue8m0 (as the source declares)"),
        (Request("fp8-block"), Fp8Block(), OURS, None, "float32", "scales: float32 (as the source declares)"),
        (Request("fp8-block", scale_fmt="float32"), BLOCKS, OURS, None, "float32", "scales: float32 (as requested)"),
        (Request("fp8-block"), BF16, {}, BLOCKS, "ue8m0", KEPT),
        (Request("fp8-block", scale_fmt="ue8m0"), BF16, {}, BLOCKS, "ue8m0", KEPT),
        (Request("fp8-block", scale_fmt="float32"), BF16, {}, BLOCKS, "float32", "scales: float32 (as requested)"),
    ],
)  # fmt: skip
def test_the_format_of_scales_and_why(
    request_: Request, stored: Codec, published: Mapping[str, Published], kept: Codec | None, fmt: str, note: str
) -> None:
    formats = _formats(request_, stored, published=published, kept=kept)
    assert formats.format.scale_fmt == fmt and formats.notes[-1] == note


def test_kept_scales_of_another_format_are_told_to_be_unused() -> None:
    notes = _formats(Request("fp8-block", scale_fmt="float32"), BF16, kept=BLOCKS).notes
    assert notes[0] == "scales: the original scales are ue8m0 and are not used: every block gets a new scale"


@pytest.mark.parametrize("to", ["fp8-block", "published"])
def test_what_comes_of_no_kept_scales_is_told(to: str) -> None:
    notes = _formats(Request(to), BF16).notes
    assert notes[0].startswith(f"scales: the source has no {ORIGINAL}, so every block gets a new scale; ")
    assert len(_formats(Request(to), BLOCKS).notes) == 1


@pytest.mark.parametrize("to", ["bf16", "keep", "int8-channel", "fp8-block-ct"])
def test_nothing_is_said_of_scales_that_nobody_asks_for(to: str) -> None:
    assert _formats(Request(to), BLOCKS).notes == []


def test_nothing_is_said_of_scales_that_releases_do_not_have() -> None:
    published = {"routed experts": Published("int4-group-32", "compressed-tensors-packed")}
    assert _formats(Request("published"), BF16, published=published).notes == []
    assert _formats(Request("published"), BF16, published=published).codec(
        _param("routed experts"), BF16
    ) == CODECS["int4-group-32"]  # fmt: skip


def test_a_recipe_that_asks_for_blocks_says_of_scales_what_the_format_does() -> None:
    rules = (("dense mlp", "", "fp8-block"),)
    assert _formats(Request("recipe", rules=rules), BLOCKS).notes == ["scales: ue8m0 (as the source declares)"]


@pytest.mark.parametrize("name", ["int4-group", "nvfp4", "mxfp4"])
def test_a_search_is_part_of_the_codec(name: str) -> None:
    found = _formats(Request(name, search=True), BF16).codec(UP, BF16)
    assert found == replace(CODECS[name], search=True) and found.form == CODECS[name].form  # type: ignore[type-var]


def test_blocks_in_the_dialect_of_the_releases() -> None:
    published = {"dense mlp": Published("fp8-block", "v4", "ue8m0", "as V4 does")}
    assert _formats(Request("fp8-block"), BF16, published=published).format.dialect == "v4"


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([], "BF16"),
        ([(BLOCKS, 100)], "BF16"),
        ([(F32, 1), (BF16, 2)], "BF16"),
        ([(F32, 2), (BF16, 1), (BF16, 2)], "BF16"),
        ([(F32, 3), (BF16, 2), (BLOCKS, 100)], "F32"),
        ([(BF16, 2), (F32, 2)], "BF16"),
        ([(Plain("I64"), 2)], "I64"),
    ],
)
def test_the_dtype_of_most_values(values: list[tuple[Codec, int]], dtype: str) -> None:
    assert base_dtype(values) == dtype


@given(st.lists(st.tuples(st.sampled_from([BF16, F16, F32, BLOCKS]), st.integers(1, 9)), min_size=1))
def test_the_dtype_of_most_values_is_one_of_theirs(values: list[tuple[Codec, int]]) -> None:
    found = base_dtype(values)
    plain = [codec.plain for codec, _ in values if codec.plain]
    assert found in plain if plain else found == "BF16"
    assert found == base_dtype([(codec, 2 * count) for codec, count in values])
