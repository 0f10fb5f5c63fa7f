"""What a checkpoint says of itself once it is open: families, catalogue, codecs, sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dsctl.checkpoint.checkpoint import ORIGINAL
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.codecs.plain import Plain
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorSpec
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from tests.support.headers import (
    BF16_CONFIG,
    BLOCKS,
    FP8_CONFIG,
    bf16,
    files_of,
    fp8,
    lay_out,
    opened,
    params_of,
    write,
)


def test_every_parameter_has_a_piece_and_no_tensor_is_left(tmp_path: Path) -> None:
    checkpoint = fp8(tmp_path)
    assert list(checkpoint.survey.pieces) == [param.name for param in params_of(FP8_CONFIG)]
    assert not checkpoint.survey.extra and not checkpoint.survey.missing and not checkpoint.survey.faults
    assert sum(len(pieces[0].refs) for pieces in checkpoint.survey.pieces.values()) == len(list(checkpoint.tensors))


def test_the_quick_look_says_what_the_long_one_does(tmp_path: Path) -> None:
    checkpoint = fp8(tmp_path)
    assert checkpoint.regular is not None
    for family, codec in checkpoint.regular.items():
        assert {checkpoint.survey.pieces[param.name][0].codec for param in family.params()} == {codec}


def test_codecs_stored_are_told_once_each(tmp_path: Path) -> None:
    assert set(fp8(tmp_path).stored_codecs) == {Plain("BF16"), Plain("F32"), BLOCKS}


def test_values_are_counted_by_the_first_part(tmp_path: Path) -> None:
    checkpoint = fp8(tmp_path)
    assert sum(count for _, count in checkpoint.values_stored) == sum(
        param.family.values for param in checkpoint.params
    )


def test_the_scales_of_another_dtype_make_another_codec(tmp_path: Path) -> None:
    files = files_of(FP8_CONFIG, replace(BLOCKS, scale_dtype="BF16"))
    codecs = opened(write(tmp_path, FP8_CONFIG, files)).stored_codecs
    assert [codec.scale_dtype for codec in codecs if isinstance(codec, Fp8Block)] == ["BF16"]


def test_the_config_s_blocks_are_tried_first(tmp_path: Path) -> None:
    assert fp8(tmp_path / "a").codecs[0] == BLOCKS
    assert fp8(tmp_path / "a").quantization == FP8_CONFIG["quantization_config"]
    assert bf16(tmp_path / "b").quantization is None


@pytest.mark.parametrize("value", [None, 7, [], "fp8"])
def test_a_quantization_that_is_no_object_is_none(tmp_path: Path, value: object) -> None:
    config = BF16_CONFIG | {"quantization_config": value}
    assert opened(write(tmp_path, config, files_of(config))).quantization is None


def test_a_config_that_describes_absurdly_much_is_refused(tmp_path: Path) -> None:
    config = BF16_CONFIG | {"num_hidden_layers": 4000, "n_routed_experts": 60_000}
    checkpoint = opened(write(tmp_path, config, files_of(BF16_CONFIG)))
    with pytest.raises(FormatError, match="describes more than 4,000,000 parameters"):
        _ = checkpoint.families


def test_a_config_that_describes_far_more_than_is_there_is_refused(tmp_path: Path) -> None:
    config = BF16_CONFIG | {"num_hidden_layers": 400, "n_routed_experts": 600}
    checkpoint = opened(write(tmp_path, config, files_of(BF16_CONFIG)))
    with pytest.raises(FormatError, match=r"describes [\d,]+ parameters, but the files hold only"):
        _ = checkpoint.families


def test_a_config_without_a_size_is_refused_when_it_is_asked(tmp_path: Path) -> None:
    config = {name: value for name, value in BF16_CONFIG.items() if name != "vocab_size"}
    checkpoint = opened(write(tmp_path, config, files_of(BF16_CONFIG)))
    with pytest.raises(FormatError, match="vocab_size"):
        _ = checkpoint.families


def test_an_index_that_counts_values_at_two_bytes_each(tmp_path: Path) -> None:
    checkpoint = fp8(tmp_path)
    values = sum(ref.spec.values for ref in checkpoint.tensors)
    assert not checkpoint.counts_values
    assert replace(checkpoint, total_size=2 * values).counts_values
    assert not replace(checkpoint, total_size=2 * values + 2).counts_values


def test_bytes_are_those_of_all_tensors(tmp_path: Path) -> None:
    checkpoint = fp8(tmp_path)
    assert checkpoint.nbytes == sum(ref.nbytes for ref in checkpoint.tensors)
    files = sum(size for file, size in checkpoint.files.items() if file.endswith(".safetensors"))
    assert checkpoint.nbytes + sum(header.size for header in checkpoint.headers.values()) == files


def test_tensors_of_an_unknown_architecture_are_its_parameters_and_no_fault(tmp_path: Path) -> None:
    checkpoint = opened(write(tmp_path, {"model_type": "llama"}, {"model.safetensors": {"w": TensorSpec("I64", (3,))}}))
    assert [param.name for param in checkpoint.params] == ["w"] and checkpoint.survey.extra == []
    assert checkpoint.survey.faults == [] and checkpoint.regular is None


def test_a_name_in_two_files_is_never_looked_at_quickly(tmp_path: Path) -> None:
    files = files_of(BF16_CONFIG)
    one, other = files
    name, spec = next(iter(files[one].items()))
    index = {tensor: file for file, specs in files.items() for tensor in specs}
    files[other][name] = spec
    checkpoint = opened(write(tmp_path, BF16_CONFIG, files, index))
    assert checkpoint.regular is None and not checkpoint.survey.missing


def test_the_side_file_of_a_conversion(tmp_path: Path) -> None:
    source = fp8(tmp_path / "src")
    decoded = opened(lay_out(make_plan(source, Request("bf16")), tmp_path / "dst"))
    assert source.original is None and decoded.original is not None
    assert f"header:{next(iter(source.headers))}" in decoded.original.names
    bare = opened(lay_out(make_plan(source, Request("bf16", keep_scales=False)), tmp_path / "bare"))
    assert bare.original is None and ORIGINAL not in bare.files


@pytest.mark.parametrize("tp", [1, 2])
def test_what_ranks_hold_is_the_whole(tmp_path: Path, tp: int) -> None:
    ranks = opened(lay_out(make_plan(fp8(tmp_path / "src"), Request("keep", tp=tp)), tmp_path / "dst"))
    assert not ranks.survey.faults and not ranks.survey.extra
    assert set(ranks.catalogue) == {f"rank-{rank:05d}" for rank in range(tp)}
