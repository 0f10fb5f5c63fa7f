"""What config.json says of formats: one table, modules left out by name, and what no loader would read."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl.checkpoint.quantization import (
    fused,
    is_named,
    linear,
    module_of,
    modules,
    patterns,
    quantization_config,
    texts,
)
from dsctl.codecs import CODECS
from dsctl.codecs.codec import Codec
from dsctl.codecs.plain import Plain
from dsctl.core.errors import PlanError
from dsctl.core.params import Family, Param

LAYERS = (0, 1)
_BOTH = "layers.{layer}.mlp.both"
UP, SIDE = (
    Family(f"layers.{{layer}}.mlp.{name}.weight", (256, 128), "dense mlp", True, 0, layers=LAYERS, fused=_BOTH)
    for name in ("up", "side")
)
DOWN = Family("layers.{layer}.mlp.down.weight", (128, 256), "dense mlp", True, 1, layers=LAYERS)
EXPERTS = Family(
    "layers.{layer}.mlp.experts.{expert}.up.weight", (256, 128), "routed experts", True, 0, layers=(1, 2), experts=2
)
ROUTER = Family("layers.{layer}.mlp.gate.weight", (2, 128), "router", layers=(1, 2))
BIAS = Family("layers.{layer}.mlp.gate.e_score_correction_bias", (2,), "router", dtype="F32", layers=(1, 2))
EMBEDDING = Family("embed.weight", (512, 128), "embedding", split=0)
HEAD = Family("head.weight", (512, 128), "head", split=0)
NORM = Family("norm.weight", (128,), "norm")
ALL = (EMBEDDING, UP, SIDE, DOWN, ROUTER, BIAS, EXPERTS, NORM, HEAD)


def _stored(codec: Codec, families: Iterable[Family] = ALL, **other: Codec) -> list[tuple[Param, Codec]]:
    """Families under a codec where they can be quantized, but for those of these roles."""
    roles = {role.replace("_", " "): one for role, one in other.items()}
    return [
        (param, roles.get(param.role, codec) if family.quantizable else Plain(family.dtype))
        for family in families
        for param in family.params()
    ]


def _named(config: dict[str, object], param: Param) -> bool:
    """Whether the exceptions of compressed-tensors name a parameter's module."""
    return any(is_named(text, module_of(param), param) for text in texts(config["ignore"]))


def test_nothing_is_said_of_what_is_not_quantized() -> None:
    assert quantization_config(_stored(Plain())) is None
    assert quantization_config([]) is None


def test_fp8_blocks_say_no_more_than_releases_do() -> None:
    said = quantization_config(_stored(CODECS["fp8-block"]))
    assert said == CODECS["fp8-block"].config()
    assert said is not None and "ignored_layers" not in said


def test_what_a_release_quantizes_and_is_not_is_named_with_all_linear_ones() -> None:
    said = quantization_config(_stored(CODECS["fp8-block"], dense_mlp=Plain()))
    assert said is not None
    assert said["ignored_layers"] == said["modules_to_not_convert"] == [
        "layers.0.mlp.up", "layers.0.mlp.both", "layers.1.mlp.up", "layers.1.mlp.both", "layers.0.mlp.side",
        "layers.1.mlp.side", "layers.0.mlp.down", "layers.1.mlp.down", "layers.1.mlp.gate", "layers.2.mlp.gate", "head",
    ]  # fmt: skip


def test_routed_experts_are_one_module_of_their_layer() -> None:
    said = quantization_config(_stored(CODECS["fp8-block"], routed_experts=Plain()))
    assert said is not None
    assert [name for name in said["ignored_layers"] if "experts" in name] == [
        "layers.1.mlp.experts",
        "layers.2.mlp.experts",
    ]


def test_sglang_s_blocks_name_what_is_quantizable_alone() -> None:
    said = quantization_config(_stored(CODECS["int8-block"], dense_mlp=Plain()))
    assert said is not None and "modules_to_not_convert" not in said
    assert "head" not in said["ignored_layers"] and "layers.0.mlp.up" in said["ignored_layers"]


def test_sglang_s_blocks_take_no_experts_of_another_format() -> None:
    with pytest.raises(PlanError, match="needs routed experts in the same format") as found:
        quantization_config(_stored(CODECS["int8-block"], routed_experts=Plain()))
    assert found.value.exit_code == 30 and found.value.hint is not None


@pytest.mark.parametrize("name", ["fp8-block-ct", "int8-channel", "int4-group", "mxfp4", "nvfp4"])
def test_compressed_tensors_names_all_that_is_left_out_and_nothing_else(name: str) -> None:
    stored = _stored(CODECS[name], routed_experts=Plain())
    said = quantization_config(stored)
    assert said is not None and len(said["config_groups"]) == 1
    for param, codec in stored:
        if linear(param):
            assert _named(said, param) == (not codec.quantized), param.name


def test_experts_left_out_are_one_pattern() -> None:
    said = quantization_config(_stored(CODECS["nvfp4"], routed_experts=Plain()))
    assert said is not None
    assert [text for text in said["ignore"] if text.startswith("re:")] == [r"re:^layers\.\d+\.mlp\.experts\.\d+\.up$"]


def test_several_formats_of_compressed_tensors_are_groups() -> None:
    stored = _stored(CODECS["int4-group-32"], dense_mlp=CODECS["fp8-block-ct"])
    said = quantization_config(stored)
    assert said is not None and said["format"] == "mixed-precision"
    assert list(said["config_groups"]) == ["group_0", "group_1"]
    for param, codec in stored:
        held = [
            any(is_named(text, module_of(param), param) for text in group["targets"])
            for group in said["config_groups"].values()
        ]
        assert sum(held) == (1 if codec.quantized else 0), param.name


@pytest.mark.parametrize(
    ("one", "other"), [("fp8-block", "int8-block"), ("fp8-block", "nvfp4"), ("int8-block", "mxfp4")]
)
def test_no_config_can_say_two_methods(one: str, other: str) -> None:
    with pytest.raises(PlanError, match=f"^one quantization_config cannot declare {one} and {other}$"):
        quantization_config(_stored(CODECS[one], dense_mlp=CODECS[other]))


def test_what_loaders_fuse_must_be_of_one_format() -> None:
    other = "layers.1.mlp.up.weight"
    stored = [(param, CODECS["nvfp4"] if param.name == other else codec) for param, codec in _stored(CODECS["mxfp4"])]
    with pytest.raises(PlanError) as found:
        quantization_config(stored)
    assert found.value.message == (
        "layers.1.mlp.both: loaders fuse layers.1.mlp.up.weight nvfp4, layers.1.mlp.side.weight mxfp4"
    )
    assert found.value.hint == "use one rule of the recipe for all members of a fused module"


def test_the_experts_of_a_layer_must_be_of_one_format() -> None:
    mixed = {"layers.1.mlp.experts.0.up.weight", "layers.2.mlp.experts.1.up.weight"}
    stored = [(param, Plain() if param.name in mixed else codec) for param, codec in _stored(CODECS["mxfp4"])]
    with pytest.raises(PlanError, match=r"^2 fused modules would have several formats$") as found:
        quantization_config(stored)
    assert found.value.issues == tuple(
        f"layer {layer}: loaders need its routed experts in one format, not in bf16, mxfp4" for layer in (1, 2)
    )


def test_plain_values_of_several_dtypes_may_be_mixed() -> None:
    assert quantization_config(_stored(Plain("BF16"), dense_mlp=Plain("F32"))) is None


def test_fused_parameters_stand_together_by_layer() -> None:
    params = [param for family in (UP, SIDE, DOWN) for param in family.params()]
    found = fused(params)
    assert list(found) == [("layers.{layer}.mlp.both", layer, None) for layer in LAYERS]
    assert [param.name for param in found["layers.{layer}.mlp.both", 1, None]] == [
        "layers.1.mlp.up.weight",
        "layers.1.mlp.side.weight",
    ]


@pytest.mark.parametrize(
    ("family", "known", "module"),
    [
        (UP, True, "layers.0.mlp.up"),
        (ROUTER, True, "layers.1.mlp.gate"),
        (HEAD, True, "head"),
        (EMBEDDING, False, "embed.weight"),
        (NORM, False, "norm.weight"),
        (BIAS, False, "layers.1.mlp.gate.e_score_correction_bias"),
    ],
)
def test_linear_modules(family: Family, known: bool, module: str) -> None:
    param = next(family.params())
    assert (linear(param), module_of(param)) == (known, module)


def test_sglang_s_name_of_a_joined_module_is_given_beside() -> None:
    fused_into = "layers.{layer}.fused_qkv_a_proj"
    family = Family("layers.{layer}.q_a.weight", (2, 2), "attention", True, layers=(3,), fused=fused_into)
    assert list(modules(next(family.params()))) == [
        "layers.3.q_a", "layers.3.fused_qkv_a_proj", "layers.3.fused_qkv_a_proj_with_mqa",
    ]  # fmt: skip


@given(st.sets(st.integers(0, 3)))
def test_patterns_name_the_marked_modules_and_no_other(numbers: set[int]) -> None:
    params = list(EXPERTS.params())
    told = [(param, place in numbers) for place, param in enumerate(params)]
    found = list(patterns(told))
    for param, mark in told:
        assert any(is_named(text, module_of(param), param) for text in found) == mark


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("layers.0.mlp.up", True),
        ("layers.0.mlp", True),
        ("layers.0", True),
        ("layers.0.mlp.u", False),
        ("layers.0.mlp.up.weight", False),
        ("layers.1.mlp.up", False),
        ("Linear", True),
        ("re:.*up", True),
        ("re:layers", True),
        ("re:up", False),
        ("re:(a+)+b", None),
        ("re:.*.*.*", None),
        ("re:(", None),
        ("re:" + "a" * 4097, None),
    ],
)
def test_entries_that_name_a_module(text: str, named: bool | None) -> None:
    param = next(UP.params())
    assert is_named(text, module_of(param), param) is named


def test_pattern_matching_never_takes_forever() -> None:
    param = next(UP.params())
    assert is_named("re:" + ".*a" * 2 + "$", "a" * 5000 + "b", param) is False


@pytest.mark.parametrize(
    ("value", "found"), [(None, ()), ("a", ()), (["a", 1, None, "b"], ("a", "b")), ({"a": 1}, ()), (("a",), ())]
)
def test_texts_of_a_list(value: object, found: tuple[str, ...]) -> None:
    assert texts(value) == found


def test_patterns_escape_what_names_hold() -> None:
    family = Family("a+b.{layer}.x.{expert}.up.weight", (2, 2), "routed experts", True, layers=(0,), experts=2)
    (pattern,) = patterns((param, True) for param in family.params())
    assert re.fullmatch(pattern.removeprefix("re:"), "a+b.0.x.1.up") and not re.match(pattern[3:], "aab.0.x.1.up")
