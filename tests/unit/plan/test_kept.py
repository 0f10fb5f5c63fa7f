"""What is kept for the way back, and which kept scales a parameter may use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from dsctl.checkpoint.checkpoint import ORIGINAL, Checkpoint
from dsctl.codecs import CODECS
from dsctl.codecs.fp8_block import CT_BLOCKS, Fp8Block
from dsctl.core.errors import PlanError
from dsctl.core.header import TensorSpec
from dsctl.plan.kept import kept_scales, scales_of
from dsctl.plan.plan import Plan, Want
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.plan.steps import Step
from dsctl.plan.target import Target, target_of
from tests.support.headers import BLOCKS, FP8_CONFIG, bf16, files_of, lay_out, opened, write

NAME = "model.layers.0.mlp.up_proj.weight"


def _step(plan: Plan) -> Step:
    return next(step for step in plan.steps if step.name == NAME)


def _want(target: Target, codec: Fp8Block) -> Want:
    checkpoint = target.checkpoint
    param = next(param for param in checkpoint.params if param.name == NAME)
    return Want(param, checkpoint.survey.pieces[NAME], codec)


@pytest.mark.parametrize(
    ("request_", "kept"),
    [
        (Request("bf16"), True),
        (Request("f32"), True),
        (Request("bf16", tp=2), True),
        (Request("bf16", only=(NAME,)), True),
        (Request("bf16", keep_scales=False), False),
        (Request("keep"), False),
        (Request("published"), False),
        (Request("fp8-block"), False),
        (Request("int8-channel"), False),
        (Request("recipe", rules=(("", "*", "bf16"),)), False),
    ],
)
def test_who_keeps_scales(source: Checkpoint, request_: Request, kept: bool) -> None:
    assert target_of(source, request_).saves is kept
    if request_.to != "recipe":
        assert (ORIGINAL in {file.name for file in make_plan(source, request_).files}) is kept


def test_nothing_is_kept_of_what_has_no_scales(tmp_path: Path) -> None:
    assert not target_of(bf16(tmp_path), Request("f32")).saves


def test_nothing_is_kept_of_ranks(source: Checkpoint, tmp_path: Path) -> None:
    ranks = opened(lay_out(make_plan(source, Request("keep", tp=2)), tmp_path / "ranks"))
    assert not target_of(ranks, Request("bf16")).saves


@pytest.mark.parametrize(
    "name", sorted(name for name, one in CODECS.items() if one.quantized and one.dialect != "modelopt")
)
def test_scales_of_every_format_are_kept_and_used(tmp_path: Path, name: str) -> None:
    """Somebody else may have quantized a release: what was decoded comes back, not the release's own form."""
    quantized = opened(lay_out(make_plan(bf16(tmp_path / "src"), Request(name)), tmp_path / "dst"))
    target = target_of(quantized, Request("bf16"))
    assert target.saves and not target_of(quantized, Request("bf16", keep_scales=False)).saves
    chosen = {ref.name for ref in quantized.survey.pieces[NAME][0].chosen.values()}
    assert chosen and chosen <= set(scales_of(target, [NAME]).begins)
    plan = make_plan(quantized, Request("bf16"))
    assert len(_step(plan).copies) == len(chosen)
    back = make_plan(opened(lay_out(plan, tmp_path / "bf16")), Request("published"))
    kept = _step(back).kept
    assert kept is not None and {part.name for part in kept.parts} <= {"scale", "global_scale"}
    assert _step(back).writes[0].codec == quantized.survey.pieces[NAME][0].codec
    assert back.texts["config.json"] == (tmp_path / "dst" / "config.json").read_bytes()
    note = "original scales are reused if they still fit"
    assert any(note in one for one in back.notes) and not any("new" in one for one in back.notes if "scales" in one)


def test_the_scales_of_all_that_is_there_are_kept(source: Checkpoint) -> None:
    target = target_of(source, Request("bf16"))
    scales = {ref.name for ref in source.tensors if ref.name.endswith("_scale_inv")}
    assert scales <= set(scales_of(target, source.survey.pieces).begins)
    assert set(scales_of(target, [NAME]).begins) & scales == {f"{NAME}_scale_inv"}
    assert not set(scales_of(target, []).begins) & scales


def test_kept_scales_are_copied_while_a_parameter_is_read(source: Checkpoint) -> None:
    plan = make_plan(source, Request("bf16"))
    (copy,) = _step(plan).copies
    side = next(file for file in plan.files if file.name == ORIGINAL)
    assert copy.read == _step(plan).reads[0].parts[1]
    assert copy.write.file == ORIGINAL and copy.write.spec == copy.read.spec
    assert len(side.header) <= copy.write.offset <= side.size - copy.write.spec.nbytes


def test_every_byte_of_the_side_file_is_written_once(source: Checkpoint) -> None:
    plan = make_plan(source, Request("bf16"))
    side = next(file for file in plan.files if file.name == ORIGINAL)
    spans = [(offset, offset + len(data)) for offset, data in side.literals]
    for step in plan.steps:
        spans += [(copy.write.offset, copy.write.offset + copy.write.spec.nbytes) for copy in step.copies]
    at = len(side.header)
    for begin, end in sorted(span for span in spans if span[0] < span[1]):
        assert begin == at
        at = end
    assert at == side.size


def test_kept_scales_are_used_on_the_way_back(decoded: Checkpoint) -> None:
    step = _step(make_plan(decoded, Request("fp8-block")))
    assert step.kept is not None and decoded.original is not None
    (part,) = step.kept.parts
    ref = decoded.original.tensors[f"{NAME}_scale_inv"]
    assert (part.file, part.offset, part.spec) == (ORIGINAL, ref.begin, ref.spec)
    assert step.kept.box.shape == step.shape


@pytest.mark.parametrize(
    "codec",
    [Fp8Block(), Fp8Block((64, 64), "ue8m0"), Fp8Block(scale_fmt="ue8m0", scale_dtype="BF16"), CT_BLOCKS],
)
def test_kept_scales_of_other_blocks_are_not_used(decoded: Checkpoint, codec: Fp8Block) -> None:
    target = target_of(decoded, Request("fp8-block"))
    assert kept_scales(target, _want(target, codec)) is None
    assert kept_scales(target, _want(target, BLOCKS)) is not None


def test_no_kept_scales_are_used_for_a_parameter_of_another_shape(decoded: Checkpoint) -> None:
    target = target_of(decoded, Request("fp8-block"))
    want = _want(target, BLOCKS)
    larger = structs.replace(want.param, family=replace(want.param.family, shape=(640, 256)))
    assert kept_scales(target, structs.replace(want, param=larger)) is None


def test_a_parameter_that_is_not_in_the_side_file_has_no_kept_scales(decoded: Checkpoint) -> None:
    target = target_of(decoded, Request("fp8-block"))
    assert target.original is not None
    target.original.scales.pop(f"{NAME}_scale_inv")
    assert kept_scales(target, _want(target, BLOCKS)) is None


def test_scales_of_another_dtype_are_those_of_the_source(tmp_path: Path) -> None:
    config = FP8_CONFIG | {"quantization_config": FP8_CONFIG["quantization_config"] | {"scale_fmt": "float32"}}
    files = files_of(config, replace(BLOCKS, scale_dtype="BF16"))
    source = opened(write(tmp_path, config, files))
    step = _step(make_plan(source, Request("fp8-block")))
    assert step.how == "recode" and step.kept is not None
    assert [part.name for part in step.kept.parts] == ["scale"]
    assert step.kept.parts[0] == step.reads[0].parts[1] and step.kept.parts[0].spec == TensorSpec("BF16", (4, 2))


def test_what_is_moved_keeps_and_copies_nothing(source: Checkpoint) -> None:
    step = _step(make_plan(source, Request("fp8-block")))
    assert (step.how, step.kept, step.copies) == ("move", None, ())


@pytest.mark.parametrize("name", [name for name, codec in CODECS.items() if codec.quantized and not codec.scale_fmt])
def test_formats_of_other_scales_get_none(decoded: Checkpoint, name: str) -> None:
    try:
        plan = make_plan(decoded, Request(name))
    except PlanError:
        pytest.fail(f"{name} is refused")
    assert all(step.kept is None and not step.copies for step in plan.steps)
