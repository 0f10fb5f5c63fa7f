"""Tensors are matched with parameters: what is missing, surplus or wrong, in which dialect, and what config says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from dsctl.checkpoint.matching import (
    Contents,
    disagreement,
    misfits,
    missing_ranks,
    regular,
    stored_shape,
    survey,
    undeclared,
    unstacked,
)
from dsctl.codecs import CODECS, readable
from dsctl.codecs.codec import Codec
from dsctl.codecs.fp8_block import CT_BLOCKS, Fp8Block
from dsctl.codecs.plain import Plain
from dsctl.core.header import TensorRef, TensorSpec
from dsctl.core.params import Family
from dsctl.layouts import LAYOUTS
from dsctl.layouts.manifests import MANIFEST
from dsctl.layouts.ranks import Ranks, Shares
from dsctl.plan.recipes import ready
from tests.support.headers import FP8, tensors_of

MATRIX = Family("layers.{layer}.up.weight", (256, 200), "dense mlp", True, 0, layers=(0, 1))
NORM = Family("norm.weight", (256,), "norm", dtype="F32")
AHEAD = Family("layers.{layer}.ahead.weight", (8,), "norm", layers=(2,), mtp=True)
BLOCKS = Fp8Block(scale_fmt="ue8m0")
FORMATS = [codec for codec in CODECS.values() if codec.quantized]


def _refs(specs: Mapping[str, TensorSpec], file: str = "a.safetensors") -> dict[str, TensorRef]:
    return {name: TensorRef(name, spec, file, 64, 64 + spec.nbytes) for name, spec in specs.items()}


def _stored(families: Iterable[Family], codec: Codec | None) -> dict[str, TensorSpec]:
    found: dict[str, TensorSpec] = {}
    for family in families:
        for param in family.params():
            found |= tensors_of(param, codec if codec and family.quantizable else Plain(family.dtype))
    return found


def _contents(
    specs: Mapping[str, TensorSpec],
    families: tuple[Family, ...] = (MATRIX, NORM),
    quantization: Mapping[str, Any] | None = FP8,
) -> Contents:
    layout = LAYOUTS["published"]
    return Contents("here", True, families, layout, readable(quantization), {"": _refs(specs)}, quantization, ())


def _faults(contents: Contents) -> list[tuple[str, str]]:
    return [(fault.code, fault.where) for fault in survey(contents).faults]


def test_all_is_found() -> None:
    specs = _stored((MATRIX, NORM), BLOCKS)
    found = survey(_contents(specs))
    assert found.faults == [] and found.extra == [] and found.missing == []
    assert {piece.codec for pieces in found.pieces.values() for piece in pieces} == {BLOCKS, Plain("F32")}
    assert regular(_contents(specs), specs) == {MATRIX: BLOCKS, NORM: Plain("F32")}


@pytest.mark.parametrize("codec", FORMATS, ids=lambda codec: codec.name)
def test_every_format_is_read_under_its_own_names(codec: Codec) -> None:
    family = replace(MATRIX, shape=(256, 256))
    specs = _stored((family, NORM), codec)
    said = codec.config()
    found = survey(_contents(specs, (family, NORM), said))
    assert {piece.codec.form for pieces in found.pieces.values() for piece in pieces} == {codec.form, Plain("F32").form}
    assert [fault.code for fault in found.faults] == [] and not found.extra


def test_formats_of_several_dialects_side_by_side() -> None:
    one, other = (replace(MATRIX, template=f"{{layer}}.{name}.weight") for name in ("one", "other"))
    specs = _stored((one,), BLOCKS) | _stored((other,), CODECS["int8-channel"])
    found = survey(_contents(specs, (one, other), None))
    assert {piece.codec.name for pieces in found.pieces.values() for piece in pieces} == {"fp8-block", "int8-channel"}
    assert not found.extra


def test_the_names_of_v4_are_read_if_they_are_declared() -> None:
    codec = replace(BLOCKS, dialect="v4")
    specs = _stored((MATRIX,), codec)
    assert "layers.0.up.scale" in specs
    contents = replace(_contents(specs, (MATRIX,)), codecs=(codec, *readable(None)))
    found = survey(contents)
    assert not found.extra and {piece.codec for pieces in found.pieces.values() for piece in pieces} == {codec}
    assert regular(contents, specs) == {MATRIX: codec}


def test_scales_may_lie_in_another_file() -> None:
    specs = _stored((MATRIX, NORM), BLOCKS)
    scales = {name: spec for name, spec in specs.items() if name.endswith("_scale_inv")}
    catalogue = {"": _refs(specs) | _refs(scales, "b.safetensors")}
    found = survey(replace(_contents(specs), catalogue=catalogue))
    piece = found.pieces["layers.0.up.weight"][0]
    assert not found.faults and [ref.file for ref in piece.refs] == ["a.safetensors", "b.safetensors"]


def test_a_missing_parameter() -> None:
    specs = _stored((MATRIX, NORM), BLOCKS)
    del specs["norm.weight"]
    found = survey(_contents(specs))
    assert [str(fault) for fault in found.faults] == ["norm.weight: missing"]
    assert [param.name for param in found.missing] == ["norm.weight"] and found.pieces["norm.weight"] == ()
    assert not found.mtp and regular(_contents(specs), specs) is None


def test_a_missing_parameter_of_an_mtp_layer_is_told_apart() -> None:
    found = survey(_contents(_stored((NORM,), None), (NORM, AHEAD), None))
    assert [str(fault) for fault in found.faults] == ["layers.2.ahead.weight: missing (MTP layer)"]
    assert found.mtp == set(found.faults)


def test_surplus_tensors() -> None:
    specs = _stored((MATRIX, NORM), BLOCKS) | {"more": TensorSpec("I64", (1,))}
    found = survey(_contents(specs))
    assert [str(fault) for fault in found.faults] == ["more: in a.safetensors, but the architecture has no such tensor"]
    assert [ref.name for ref in found.extra] == ["more"] and regular(_contents(specs), specs) is None
    unknown = survey(replace(_contents(specs), known=False, families=()))
    assert unknown.faults == [] and len(unknown.extra) == len(specs)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"norm.weight": TensorSpec("F32", (255,))}, "wrong-shape", "is [255], but [256] in the architecture"),
        ({"norm.weight": TensorSpec("F32", (256, 1))}, "wrong-shape", "is [256, 1], but [256] in the architecture"),
        ({"norm.weight": TensorSpec("I64", (256,))}, "wrong-dtype", "dtype I64 is not a format of its role, norm"),
        (
            {"layers.1.up.weight": TensorSpec("F8_E4M3", (256, 199))},
            "wrong-shape",
            "is [256, 199], but [256, 200] in the architecture",
        ),
        (
            {"layers.1.up.weight_scale_inv": TensorSpec("F32", (2, 3))},
            "wrong-scale",
            "F8_E4M3 [256, 200] does not match layers.1.up.weight_scale_inv F32 [2, 3]: [2, 2] would",
        ),
        (
            {"layers.1.up.weight_scale_inv": TensorSpec("I32", (2, 2))},
            "wrong-scale",
            "F8_E4M3 [256, 200] does not match layers.1.up.weight_scale_inv I32 [2, 2]",
        ),
        (
            {"layers.1.up.weight_scale_inv": None},
            "missing-scale",
            "FP8 without a scale: layers.1.up.weight_scale_inv is missing",
        ),
        ({"layers.1.up.weight": None}, "missing-weight", "missing, although its scale is there"),
    ],
)
def test_what_is_wrong_is_told_once(change: dict[str, TensorSpec | None], code: str, words: str) -> None:
    changed = _stored((MATRIX, NORM), BLOCKS) | change
    specs = {name: spec for name, spec in changed.items() if spec is not None}
    found = survey(_contents(specs))
    assert [(fault.code, fault.what) for fault in found.faults] == [(code, words)]
    assert not found.extra and not found.missing
    assert regular(_contents(specs), specs) is None


def test_a_scale_of_another_dialect_does_not_go_with_the_codes() -> None:
    specs = _stored((MATRIX,), BLOCKS)
    specs["layers.0.up.weight_scale"] = specs.pop("layers.0.up.weight_scale_inv")
    found = survey(_contents(specs, (MATRIX,)))
    assert found.pieces["layers.0.up.weight"][0].codec.name == "fp8-block-ct"


def test_tensors_that_two_dialects_claim_are_one_or_the_other() -> None:
    """Values as they are beside a scale of the same name: the scale is surplus, not forgotten."""
    specs = _stored((MATRIX, NORM), None) | {"layers.0.up.weight_scale_inv": TensorSpec("F32", (2, 2))}
    assert _faults(_contents(specs, quantization=None)) == [("extra-tensor", "layers.0.up.weight_scale_inv")]


def test_one_parameter_stored_otherwise_is_no_fault_but_not_regular() -> None:
    specs = _stored((MATRIX, NORM), BLOCKS)
    specs |= {"layers.1.up.weight": TensorSpec("BF16", (256, 200))}
    del specs["layers.1.up.weight_scale_inv"]
    assert regular(_contents(specs), specs) is None
    assert not survey(_contents(specs)).faults


def test_a_family_of_nothing_is_regular() -> None:
    assert regular(_contents({}, ()), {}) == {}
    assert regular(replace(_contents({}, ()), layout=LAYOUTS["fused"]), {}) is None


def test_stacked_experts_are_read_out_of_their_tensor() -> None:
    experts = Family(
        "model.layers.{layer}.mlp.experts.{expert}.down_proj.weight", (256, 128), "routed experts", True, 1,
        layers=(0,), experts=3,
    )  # fmt: skip
    layout = LAYOUTS["stacked"].arranged((experts,), None)
    slots = [layout.slots(param)[0] for param in experts.params()]
    assert {slot.stack for slot in slots} == {(0, 3), (1, 3), (2, 3)}
    specs = {slots[0].tensor: TensorSpec("BF16", (3, 256, 128))}
    contents = replace(_contents(specs, (experts,), None), layout=layout)
    found = survey(contents)
    pieces = [found.pieces[param.name][0] for param in experts.params()]
    assert not found.faults and not found.extra
    assert [piece.refs[0].begin for piece in pieces] == [64, 64 + 65536, 64 + 2 * 65536]
    assert {piece.refs[0].spec for piece in pieces} == {TensorSpec("BF16", (256, 128))}
    fewer = replace(contents, catalogue={"": _refs({slots[0].tensor: TensorSpec("BF16", (2, 256, 128))})})
    assert {fault.code for fault in survey(fewer).faults} == {"wrong-shape"}


def test_one_of_stacked_tensors() -> None:
    ref = TensorRef("w", TensorSpec("F32", (4, 2)), "f", 100, 132)
    assert unstacked(ref, 3, 4) == TensorRef("w", TensorSpec("F32", (2,)), "f", 124, 132)


def test_misfits_are_counted_and_shapes_told() -> None:
    specs = _stored((MATRIX, NORM), BLOCKS) | {"norm.weight": TensorSpec("F32", (9,))}
    contents = _contents(specs)
    assert misfits(contents, [*MATRIX.params(), *NORM.params()]) == 1
    assert stored_shape(contents, next(NORM.params())) == (9,)
    assert stored_shape(contents, next(AHEAD.params())) is None


def test_ranks_that_are_not_there_are_missing_unless_one_folder_is_all_that_is_read() -> None:
    layout = LAYOUTS["published"].arranged((MATRIX,), Shares.of((MATRIX,), Ranks(2), (0,)))
    contents = replace(_contents({}, (MATRIX,)), layout=layout)
    assert [str(fault) for fault in missing_ranks(contents)] == ["here: rank 1 of 2 is missing"]
    assert missing_ranks(replace(contents, manifests=(MANIFEST,))) == []
    assert missing_ranks(_contents({})) == []


@pytest.mark.parametrize(
    ("says", "codecs", "words"),
    [
        (FP8, [BLOCKS, Plain()], []),
        (None, [Plain()], []),
        ({}, [Plain()], []),
        (None, [BLOCKS], ["weights are fp8-block, but quantization_config is absent"]),
        (FP8, [Plain()], ["quantization_config is there, but no weight is quantized"]),
        (FP8, [], []),
        (FP8, [replace(BLOCKS, block=(64, 64))], ["weight_block_size is [128, 128], scales are stored for [64, 64]"]),
        (FP8, [CT_BLOCKS], ["quant_method is 'fp8', weights are stored for 'compressed-tensors'"]),
        ({"quant_method": "awq"}, [BLOCKS], ["quant_method is 'awq', weights are stored for 'fp8'"]),
    ],
)
def test_what_config_says_of_what_is_stored(
    says: Mapping[str, Any] | None, codecs: list[Codec], words: list[str]
) -> None:
    contents = _contents({}, quantization=says)
    assert [fault.what for fault in undeclared(contents, codecs)] == words


def test_nothing_is_said_of_declared_formats_if_nobody_can_read_the_weights() -> None:
    """Codes without scales may be what is declared."""
    specs = _stored((MATRIX, NORM), BLOCKS)
    for layer in (0, 1):
        del specs[f"layers.{layer}.up.weight_scale_inv"]
    assert {code for code, _ in _faults(_contents(specs))} == {"missing-scale"}


def test_fields_in_which_a_config_disagrees() -> None:
    assert not list(disagreement({}, [{"fmt": "e4m3"}], "fmt"))
    assert not list(disagreement({"fmt": "e4m3"}, [{}], "fmt"))
    assert not list(disagreement({"fmt": "e4m3"}, [{"fmt": "e5m2"}, {"fmt": "e4m3"}], "fmt"))
    (fault,) = disagreement({"other": 1}, [{"fmt": "e4m3"}], "fmt")
    assert fault.what == "fmt is None, weights are stored for 'e4m3'"


def test_recipes_name_formats_that_can_be_read_again() -> None:
    formats = {rule.format for recipe in ready().values() for rule in recipe.rules} - {"keep"}
    assert formats <= set(CODECS)
