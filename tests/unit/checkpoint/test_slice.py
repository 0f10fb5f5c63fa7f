"""A small model is cut out of a large one: which layers and experts, and where each of its parameters lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.slice import SliceCut, cut_of, sliced
from dsctl.codecs import CODECS
from dsctl.core.boxes import Box
from dsctl.core.errors import DsctlError, FormatError, PlanError
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from tests.support.headers import (
    BF16_CONFIG,
    BLOCKS,
    FP8,
    FP8_CONFIG,
    codec_of,
    files_of,
    fp8,
    lay_out,
    opened,
    params_of,
    tensors_of,
    write,
)

EXPERT = "model.layers.{}.mlp.experts.{}.up_proj.weight"


@pytest.mark.parametrize(
    ("layers", "mtp", "experts", "cut"),
    [
        ((), False, (), SliceCut((0, 1, 2), ())),
        ((1, 0), False, (), SliceCut((0, 1), ())),
        ((0,), True, (), SliceCut((0, 2), ())),
        ((1,), True, (3, 1, 3), SliceCut((1, 2), (1, 3))),
        ((1,), False, (0, 2), SliceCut((1,), (0, 2))),
        ((1, 2), False, (), SliceCut((1, 2), ())),
    ],
)
def test_what_is_kept(
    source: Checkpoint, layers: tuple[int, ...], mtp: bool, experts: tuple[int, ...], cut: SliceCut
) -> None:
    assert cut_of(source, layers, mtp, experts) == cut


def test_an_mtp_layer_alone_is_no_model(source: Checkpoint) -> None:
    with pytest.raises(PlanError, match="only the MTP layer would be left") as found:
        cut_of(source, (), True, ())
    assert found.value.hint == "keep at least one main layer"


@pytest.mark.parametrize(
    ("layers", "mtp", "experts", "words"),
    [
        ((3,), False, (), "no such layer: there are 2, numbered from 0, and 1 MTP"),
        ((-1,), False, (), "no such layer: there are 2, numbered from 0, and 1 MTP"),
        ((2,), False, (), "only the MTP layer would be left"),
        ((0,), False, (4, 1), "no expert 4: there are 4, numbered from 0"),
        ((0,), False, (1,), "one expert is too few: routers choose among several"),
        ((0,), False, (1, 1), "one expert is too few: routers choose among several"),
    ],
)
def test_what_cannot_be_kept(
    source: Checkpoint, layers: tuple[int, ...], mtp: bool, experts: tuple[int, ...], words: str
) -> None:
    with pytest.raises(PlanError) as found:
        cut_of(source, layers, mtp, experts)
    assert found.value.message == words and found.value.exit_code == 30


def test_experts_below_zero_are_refused(source: Checkpoint) -> None:
    with pytest.raises(DsctlError):
        sliced(source, cut_of(source, (0, 1), False, (-1, 2)))


def test_an_mtp_layer_that_is_not_there(tmp_path: Path) -> None:
    config = BF16_CONFIG | {"num_nextn_predict_layers": 0}
    with pytest.raises(PlanError, match=r"there is no drafter: config\.json declares none"):
        cut_of(opened(write(tmp_path, config, files_of(config))), (0,), True, ())


def test_an_unknown_architecture_cannot_be_cut(tmp_path: Path) -> None:
    checkpoint = opened(write(tmp_path, {"model_type": "llama"}, {"model.safetensors": {}}))
    with pytest.raises(PlanError, match=r"a slice needs a config\.json of a known architecture"):
        cut_of(checkpoint, (0,), False, ())


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (SliceCut((0, 2), (1, 3)), "layers 0,2; experts 1,3"),
        (SliceCut((0,), ()), "layers 0; experts all"),
    ],
)
def test_what_a_request_says_of_a_cut(cut: SliceCut, said: str) -> None:
    assert str(cut) == said


def test_all_of_it_is_the_same_checkpoint(source: Checkpoint) -> None:
    view = sliced(source, cut_of(source, (), False, ()))
    assert view.config == source.config and view.params == source.params
    assert view.survey.pieces == source.survey.pieces and view.survey.faults == []


def test_layers_and_experts_get_new_numbers(source: Checkpoint) -> None:
    view = sliced(source, SliceCut((1, 2), (1, 3)))
    assert view.config is not None
    assert [view.config[field] for field in (
        "num_hidden_layers", "num_nextn_predict_layers", "first_k_dense_replace", "n_routed_experts",
    )] == [1, 1, 0, 2]  # fmt: skip
    for layer, old in ((0, 1), (1, 2)):
        for expert, before in ((0, 1), (1, 3)):
            (piece,) = view.survey.pieces[EXPERT.format(layer, expert)]
            assert piece.refs[0].name == EXPERT.format(old, before)
    assert view.survey.pieces["model.norm.weight"] == source.survey.pieces["model.norm.weight"]


def test_every_parameter_of_the_small_model_has_its_shape(source: Checkpoint) -> None:
    view = sliced(source, SliceCut((0, 1), (0, 2, 3)))
    for param in view.params:
        pieces = view.survey.pieces[param.name]
        assert sum(piece.slot.region.size for piece in pieces) == Box.whole(param.shape).size, param.name


def test_rows_of_the_router_are_those_of_the_kept_experts(source: Checkpoint) -> None:
    view = sliced(source, SliceCut((0, 1), (0, 2, 3)))
    pieces = view.survey.pieces["model.layers.1.mlp.gate.weight"]
    assert [(piece.slot.region, piece.slot.at, piece.slot.container) for piece in pieces] == [
        (Box((0, 0), (1, 256)), (0, 0), (4, 256)),
        (Box((1, 0), (3, 256)), (2, 0), (4, 256)),
    ]
    bias = view.survey.pieces["model.layers.1.mlp.gate.e_score_correction_bias"]
    assert [(piece.slot.region, piece.slot.at) for piece in bias] == [(Box((0,), (1,)), (0,)), (Box((1,), (3,)), (2,))]


def test_what_is_missing_of_the_large_one_is_missing_where_it_matters(tmp_path: Path) -> None:
    files = files_of(FP8_CONFIG, BLOCKS)
    for specs in files.values():
        for layer in (0, 1):
            specs.pop(f"model.layers.{layer}.input_layernorm.weight", None)
    source = opened(write(tmp_path, FP8_CONFIG, files))
    view = sliced(source, SliceCut((0,), ()))
    assert [fault.where for fault in view.survey.faults] == ["model.layers.0.input_layernorm.weight"]
    assert [param.name for param in view.survey.missing] == ["model.layers.0.input_layernorm.weight"]


def test_a_sliced_checkpoint_can_be_planned_and_is_whole(source: Checkpoint, tmp_path: Path) -> None:
    view = sliced(source, SliceCut((1, 2), (1, 3)))
    plan = make_plan(view, Request("keep", slice="layers 1,2; experts 1,3"))
    made = opened(lay_out(plan, tmp_path / "dst"))
    assert made.survey.faults == [] and made.survey.extra == [] and made.config == view.config
    assert made.stored_codecs == source.stored_codecs


def _quantized(folder: Path, said: Mapping[str, Any], spared: tuple[str, ...] = (), name: str = "") -> Checkpoint:
    """The small checkpoint with some parameters in BF16, and a config that says so."""
    config = BF16_CONFIG | {"quantization_config": dict(said)}
    codec = CODECS[name] if name else BLOCKS
    specs = {}
    for param in params_of(config):
        specs |= tensors_of(param, codec_of(param, None if param.name.startswith(spared) and spared else codec))
    return opened(write(folder, config, {"model.safetensors": specs}))


def _said(view: Checkpoint) -> dict[str, Any]:
    assert view.quantization is not None
    return view.quantization


def test_modules_left_alone_get_their_new_names(tmp_path: Path) -> None:
    spared = [
        "model.layers.0.mlp.up_proj", "model.layers.1.mlp.experts", "model.layers.1.mlp.experts.3.up_proj", "lm_head",
        "somebody.else",
    ]  # fmt: skip
    source = _quantized(tmp_path, FP8 | {"modules_to_not_convert": spared, "ignored_layers": []})
    said = _said(sliced(source, SliceCut((1,), (2, 3))))
    assert said["modules_to_not_convert"] == [
        "model.layers.0.mlp.experts", "model.layers.0.mlp.experts.1.up_proj", "lm_head", "somebody.else",
    ]  # fmt: skip
    assert said["ignored_layers"] == []


@pytest.mark.parametrize("field", ["modules_to_not_convert", "ignored_layers"])
def test_a_list_of_modules_that_holds_something_else(tmp_path: Path, field: str) -> None:
    source = _quantized(tmp_path, FP8 | {field: ["lm_head", 7]})
    with pytest.raises(FormatError, match=f"quantization_config.{field} holds something that is not a module's name"):
        sliced(source, SliceCut((1,), ()))


def test_a_slice_of_which_nothing_is_quantized_declares_nothing(tmp_path: Path) -> None:
    spared = tuple(param.name for param in params_of(BF16_CONFIG) if param.layer in (None, 0))
    source = _quantized(tmp_path, FP8, spared)
    assert sliced(source, SliceCut((0,), ())).quantization is None
    assert sliced(source, SliceCut((0, 1), ())).quantization == FP8


def test_patterns_of_compressed_tensors_are_made_anew(tmp_path: Path) -> None:
    first = make_plan(fp8(tmp_path / "src"), Request("recipe", rules=(("routed experts", "", "nvfp4"),)))
    source = opened(lay_out(first, tmp_path / "mixed"))
    assert source.quantization is not None and not source.survey.faults
    view = sliced(source, SliceCut((1,), (0, 1)))
    made = opened(lay_out(make_plan(view, Request("keep")), tmp_path / "dst"))
    assert made.survey.faults == [] and made.codecs
    dense = sliced(source, SliceCut((0,), ()))
    assert len(_said(dense)["config_groups"]) == len(source.quantization["config_groups"]) - 1


def test_ranks_are_cut_as_the_whole_is(source: Checkpoint, tmp_path: Path) -> None:
    ranks = opened(lay_out(make_plan(source, Request("keep", tp=2)), tmp_path / "ranks"))
    view = sliced(ranks, SliceCut((1,), (0, 1)))
    assert view.survey.faults == [] and view.manifests == {}
    made = opened(lay_out(make_plan(view, Request("keep")), tmp_path / "dst"))
    assert made.survey.faults == [] and made.survey.extra == []


def test_a_router_in_several_pieces_cannot_be_cut(source: Checkpoint) -> None:
    name = "model.layers.1.mlp.gate.weight"
    (piece,) = source.survey.pieces[name]
    halves = [Box((row, 0), (row + 2, 256)) for row in (0, 2)]
    source.survey.pieces[name] = tuple(
        structs.replace(piece, slot=structs.replace(piece.slot, region=half)) for half in halves
    )
    with pytest.raises(PlanError, match=r"gate\.weight: \[4, 256\] cannot be cut to \[2, 256\]$"):
        sliced(source, SliceCut((1,), (0, 1)))
