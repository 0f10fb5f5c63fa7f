"""Pairs of codes and scales by names: what is read, what is a fault, what is in a form that nobody here reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsctl.checkpoint.generic import Generic, generic
from dsctl.checkpoint.pairing import parameter_of
from dsctl.core.header import DTYPE_BITS, TensorSpec
from dsctl.layouts.naming import DIALECTS
from tests.support.headers import opened, write

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
Specs = dict[str, tuple[str, tuple[int, ...]]]
MATRIX = ("F8_E4M3", (130, 200))


def found(specs: Specs, said: dict[str, Any] | None = None) -> Generic:
    return generic({name: TensorSpec(*spec) for name, spec in specs.items()}, said)


def read(specs: Specs, said: dict[str, Any] | None = None) -> dict[str, tuple[str, tuple[int, int]]]:
    """The name of each quantized matrix, its format and its shape; nothing may be wrong."""
    one = found(specs, said)
    assert one.faults == ()
    return {name: (reading.codec.name, reading.shape) for name, reading in one.read.items()}


def faults(specs: Specs, said: dict[str, Any] | None = None) -> list[tuple[str, str]]:
    return [(fault.code, fault.where) for fault in found(specs, said).faults]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("part", ["scale", "codes", "shape", "global_scale", "input_scale"])
@pytest.mark.parametrize("name", ["a.weight", "weight", "a.b.0.weight.weight"])
def test_the_parameter_of_a_part_is_that_whose_part_has_this_name(dialect: str, part: str, name: str) -> None:
    tensor = DIALECTS[dialect].tensor(name, part)
    assert parameter_of(tensor, dialect, part) in ({name} if tensor != name else {None})


@pytest.mark.parametrize("name", ["", ".", "scale", ".scale", "_scale_inv", "weight", "_packed", "input_scale"])
def test_endings_alone_name_no_parameter_or_one_whose_part_they_are(name: str) -> None:
    for dialect, one in DIALECTS.items():
        for part in one.endings:
            parameter = parameter_of(name, dialect, part)
            assert parameter is None or one.tensor(parameter, part) == name


@pytest.mark.parametrize(
    ("specs", "said", "form", "shape"),
    [
        ({"x.weight": MATRIX, "x.weight_scale_inv": ("F32", (2, 2))}, FP8, "fp8-block", (130, 200)),
        ({"x.weight": MATRIX, "x.weight_scale_inv": ("BF16", (2, 2))}, FP8, "fp8-block", (130, 200)),
        ({"x.weight": MATRIX, "x.scale": ("F8_E8M0", (2, 2))}, FP8, "fp8-block-e8m0", (130, 200)),
        ({"x.weight": MATRIX, "x.weight_scale_inv": ("F32", (2, 2))}, None, "fp8-block", (130, 200)),
        ({"x.weight": MATRIX, "x.weight_scale": ("BF16", (130, 1))}, None, "fp8-channel", (130, 200)),
        ({"x": MATRIX, "x_scale": ("F32", (2, 2))}, None, "fp8-block-ct", (130, 200)),
        ({"x.weight": ("F8_E4M3", (3, 64)), "x.weight_scale": ("U8", (3, 2))}, None, "mxfp8", (3, 64)),
        ({"x.weight_packed": ("U8", (3, 32)), "x.weight_scale": ("U8", (3, 2))}, None, "mxfp4", (3, 64)),
        ({"x.weight": ("I8", (3, 32)), "x.scale": ("F8_E8M0", (3, 2))}, FP8, "mxfp4", (3, 64)),
        ({"x.weight": ("F4", (3, 64)), "x.scale": ("F8_E8M0", (3, 2))}, FP8, "mxfp4", (3, 64)),
        (
            {"x.weight_packed": ("U8", (3, 32)), "x.weight_scale": ("F8_E4M3", (3, 4)),
             "x.weight_global_scale": ("F32", (1,))}, None, "nvfp4", (3, 64),
        ),
        (
            {"x.weight": ("U8", (3, 32)), "x.weight_scale": ("F8_E4M3", (3, 4)), "x.weight_scale_2": ("F32", ()),
             "x.input_scale": ("F32", ())}, {"quant_method": "modelopt"}, "nvfp4-modelopt", (3, 64),
        ),
    ],
)  # fmt: skip
def test_every_form_is_read_by_its_names_and_shapes(
    specs: Specs, said: dict[str, Any] | None, form: str, shape: tuple[int, int]
) -> None:
    assert list(read(specs, said).values()) == [(form, shape)]


def packed(bits: int, size: int) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": size, "symmetric": True}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


@pytest.mark.parametrize(("bits", "size", "words"), [(4, 128, 32), (4, 32, 32), (8, 128, 64), (4, 64, 32)])
def test_packed_integers_are_read_as_the_config_says(bits: int, size: int, words: int) -> None:
    specs = {
        "x.weight_packed": ("I32", (6, words)), "x.weight_scale": ("BF16", (6, 256 // size)),
        "x.weight_shape": ("I64", (2,)),
    }  # fmt: skip
    (name, shape), *more = read(specs, packed(bits, size)).values()
    assert (name.startswith(f"int{bits}-group"), shape, more) == (True, (6, 256), [])
    assert found(specs).read == {} and found(specs).unread >= {"x.weight_packed"} and found(specs).faults == ()
    asymmetric = specs | {"x.weight_zero_point": ("I32", (1, 2))}
    one = found(asymmetric, packed(bits, size))
    assert one.read == {} and one.unread == asymmetric.keys() and one.faults == ()


def test_packed_integers_without_a_part_are_a_fault_that_names_it() -> None:
    specs: Specs = {"x.weight_packed": ("I32", (6, 32)), "x.weight_scale": ("BF16", (6, 2))}
    (fault,) = found(specs, packed(4, 128)).faults
    assert str(fault) == "x.weight: is stored without x.weight_shape"
    (fault,) = found({"x.weight_packed": ("I32", (6, 32))}, packed(4, 128)).faults
    assert str(fault) == "x.weight: I32 without a scale: x.weight_scale is missing"


def test_a_method_that_is_not_known_declares_floats_only() -> None:
    integers: Specs = {"x.weight": ("I8", (3, 64)), "x.weight_scale": ("F32", (3, 1))}
    assert read(integers, {"quant_method": "lantern"}) == {}
    assert read({"x.weight": MATRIX, "x.weight_scale": ("F32", (130, 1))}, {"quant_method": "lantern"})
    bare: Specs = {"x.weight": MATRIX}
    assert faults(bare, {"quant_method": "lantern"}) == [] and found(bare, {"quant_method": "lantern"}).unread


@pytest.mark.parametrize(
    ("specs", "code", "where"),
    [
        ({"x.weight": MATRIX}, "missing-scale", "x.weight"),
        ({"x.weight_scale_inv": ("F32", (2, 2))}, "missing-weight", "x.weight"),
        ({"x.weight": MATRIX, "x.weight_scale_inv": ("F32", (3, 2))}, "wrong-scale", "x.weight"),
        ({"x.weight": MATRIX, "x.scale": ("F32", (2, 3))}, "wrong-scale", "x.weight"),
        ({"x.weight": ("BF16", (130, 200)), "x.weight_scale_inv": ("F32", (2, 2))}, "wrong-scale", "x.weight"),
        ({"x.weight": ("I8", (3, 32)), "x.scale": ("F8_E8M0", (3, 3))}, "", ""),
    ],
)
def test_what_cannot_be_paired_is_a_fault(specs: Specs, code: str, where: str) -> None:
    assert faults(specs, FP8) == ([(code, where)] if code else [])


def test_a_scale_like_others_without_its_weight_is_a_fault_and_one_of_an_unknown_kind_is_not() -> None:
    pair: Specs = {"a.weight": MATRIX, "a.weight_scale": ("F32", (130, 1))}
    assert faults(pair | {"b.weight_scale": ("F32", (130, 1))}) == [("missing-weight", "b.weight")]
    for other in ("k_scale", "logit_scale", "norm.scale", "b.bias_scale"):
        assert faults(pair | {other: ("F32", (130, 1))}) == []
        assert faults(pair | {other: ("F32", ())}) == []


def test_a_tensor_that_would_be_codes_of_one_and_scale_of_another_is_a_fault() -> None:
    circle: Specs = {
        "x": ("F8_E4M3", (4, 64)), "x_scale": ("U8", (4, 2)),
        "x_scale_packed": ("U8", (4, 16)), "x_scale_scale": ("U8", (4, 1)),
    }  # fmt: skip
    assert faults(circle) == [("wrong-scale", "x_scale")]
    shared: Specs = {
        "y.weight": ("U8", (128, 64)), "y.weight_scale": ("F8_E4M3", (128, 8)), "y.weight_scale_2": ("F32", ()),
        "y.input_scale": ("F32", ()), "y.weight_scale_scale_inv": ("F32", (1, 1)),
    }  # fmt: skip
    assert {code for code, _ in faults(shared)} == {"wrong-scale"} and found(shared).read == {}


def test_a_matrix_that_is_stored_packed_and_plain_is_a_fault() -> None:
    twice: Specs = {
        "x.weight_packed": ("U8", (3, 32)), "x.weight_scale": ("U8", (3, 2)), "x.weight": ("BF16", (3, 64)),
    }  # fmt: skip
    assert faults(twice) == [("wrong-scale", "x.weight")]


@pytest.mark.parametrize(
    "specs",
    [
        {"x.weight": ("F8_E4M3", (2, 3, 4)), "x.weight_scale_inv": ("F32", (2, 1, 1))},
        {"x.weight": MATRIX, "x.weight_scale": ("F32", ())},
        {"x.weight": MATRIX, "x.weight_scale": ("F32", (1,))},
        {"x_blocks": ("U8", (2, 3, 4, 16)), "x_scales": ("U8", (2, 3, 4))},
        {"x.qweight": ("I32", (8, 64)), "x.scales": ("F16", (1, 64))},
        {"x.weight": MATRIX, "x.weight_scale_inv": ("F32", (2, 2)), "x.weight_scale": ("F32", (130, 1))},
    ],
)
def test_forms_that_no_codec_reads_are_said_and_not_guessed(specs: Specs) -> None:
    one = found(specs)
    assert one.unread == specs.keys() and one.read == {} and one.faults == ()
    assert [family.template for family in one.families] == [*specs]


def test_blocks_that_only_shapes_show() -> None:
    specs: Specs = {
        "a.weight": ("F8_E4M3", (256, 320)), "a.weight_scale_inv": ("F32", (4, 5)),
        "b.weight": ("F8_E4M3", (70, 640)), "b.weight_scale_inv": ("F32", (2, 10)),
    }  # fmt: skip
    one = found(specs)
    assert {reading.codec.block for reading in one.read.values()} == {(64, 64)} and len(one.read) == 2
    assert one.notes == (
        "blocks of 64x64 follow from the shapes of scales; config.json declares none",
        "config.json declares no quantization: forms follow from names and shapes",
    )
    few: Specs = {"a.weight": ("F8_E4M3", (200, 200)), "a.weight_scale_inv": ("F32", (5, 9))}
    assert faults(few) == [("wrong-scale", "a.weight")]
    other: Specs = {"a.weight": ("F8_E4M3", (3, 3)), "a.weight_scale_inv": ("F32", (4, 1))}
    assert faults(other) == [("wrong-scale", "a.weight")]
    assert faults(specs, FP8) == [("wrong-scale", "a.weight"), ("wrong-scale", "b.weight")]


def test_the_index_decides_between_two_files(tmp_path: Path) -> None:
    pair = {"x.weight": TensorSpec(*MATRIX), "x.weight_scale_inv": TensorSpec("F32", (2, 2))}
    files = {"a.safetensors": pair, "b.safetensors": {"x.weight": TensorSpec("BF16", (1, 1))}}
    folder = write(tmp_path, {"model_type": "lantern"}, files)
    index = dict.fromkeys(pair, "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index | {"y": "b.safetensors"}}))
    assert [one.name for one in opened(folder).params] == ["x.weight"]


NAMES = st.lists(
    st.sampled_from(["weight", "scale", "x", ".", "_scale", "_scale_inv", "_packed", "_shape", "{layer}", "{", "\n"]),
    max_size=4,
).map("".join)  # fmt: skip
SHAPES = st.lists(st.sampled_from([0, 1, 2, 4, 16, 32, 64, 128, 1 << 40]), max_size=3).map(tuple)


@given(st.dictionaries(NAMES, st.tuples(st.sampled_from(sorted(DTYPE_BITS)), SHAPES), max_size=8))
def test_any_headers_are_paired_and_every_tensor_is_somewhere(specs: Specs) -> None:
    """Each tensor belongs to one parameter, or a fault is about it; nothing is guessed twice."""
    for said in (None, FP8, {"quant_method": "lantern"}, packed(4, 128)):
        one = found(specs, said)
        parts = [tensor for reading in one.read.values() for tensor in reading.tensors]
        own = [family.template for family in one.families if family.template not in one.read]
        assert len({*parts, *own}) == len(parts) + len(own) and {*parts, *own} <= specs.keys()
        assert one.faults or {*parts, *own} == specs.keys()
