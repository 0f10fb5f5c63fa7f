"""One cause is told once: layers, experts, a lost file, a model of other names; and what differs in numbers alone."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from dsctl.checkpoint.causes import remedy, told
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.faults import single_faults
from dsctl.checkpoint.pieces import Fault
from dsctl.core.header import TensorSpec
from dsctl.stores.local import LocalFolder
from tests.support.headers import BLOCKS, FP8_CONFIG, Files, files_of, fp8, opened, write

ANOTHER = "replace config.json with the one that belongs to these files"
HERE = LocalFolder("/here")


class Far(NamedTuple):
    place: str = "org/name"
    remote: bool = True


def _without(folder: Path, *beginnings: str) -> Checkpoint:
    files: Files = {
        file: {name: spec for name, spec in specs.items() if not name.startswith(beginnings)}
        for file, specs in files_of(FP8_CONFIG, BLOCKS).items()
    }
    return opened(write(folder, FP8_CONFIG, files))


def _told(checkpoint: Checkpoint) -> list[str]:
    return [str(fault) for fault in told(checkpoint, single_faults(checkpoint))]


def test_no_faults_have_no_cause(tmp_path: Path) -> None:
    assert told(fp8(tmp_path), []) == []


def test_a_layer_of_which_nothing_is_there(tmp_path: Path) -> None:
    (line,) = _told(_without(tmp_path, "model.layers.1."))
    assert line.startswith("model.layers.1: all ")


def test_layers_side_by_side_are_one_line(tmp_path: Path) -> None:
    checkpoint = _without(tmp_path, "model.layers.0.", "model.layers.1.")
    (fault,) = told(checkpoint, single_faults(checkpoint))
    names = {param.name for param in checkpoint.params if param.layer in (0, 1)}
    assert str(fault) == f"model.layers.0 to 1: all {len(names)} parameters are missing"
    assert set(fault.details) == names


def test_the_last_layers_are_missed_by_the_config_rather_than_by_the_files(tmp_path: Path) -> None:
    lines = _told(_without(tmp_path, "model.layers.1.", "model.layers.2."))
    assert [line.partition(",")[0] for line in lines if "the files hold" in line] == [
        "config.json: num_nextn_predict_layers is 1",
        "config.json: num_hidden_layers is 2",
    ]


def test_layers_apart_are_two_lines(tmp_path: Path) -> None:
    lines = _told(_without(tmp_path, "model.layers.0.", "model.layers.2."))
    assert [line.partition(":")[0] for line in lines] == ["config.json", "model.layers.0"]


def test_a_layer_of_which_something_is_there_is_none_of_these(tmp_path: Path) -> None:
    lines = _told(_without(tmp_path, "model.layers.0.self_attn.", "model.layers.0.mlp."))
    assert all("parameters are missing" not in line for line in lines) and len(lines) > 3


@pytest.mark.parametrize(
    ("gone", "where"),
    [
        ([(1, 3)], "expert 3 of layer 1"),
        ([(1, 1), (1, 2)], "experts 1 to 2 of layer 1"),
        ([(1, 0), (1, 2), (1, 3)], "experts 0, 2 to 3 of layer 1"),
        ([(1, 3), (2, 3)], "expert 3 of layers 1 to 2"),
    ],
)
def test_experts_of_which_nothing_is_there(tmp_path: Path, gone: list[tuple[int, int]], where: str) -> None:
    lines = _told(_without(tmp_path, *(f"model.layers.{layer}.mlp.experts.{expert}." for layer, expert in gone)))
    assert lines == [f"{where}: all {3 * len(gone)} parameters are missing"]


def test_different_experts_of_two_layers_are_two_lines(tmp_path: Path) -> None:
    lines = _told(_without(tmp_path, "model.layers.1.mlp.experts.0.", "model.layers.2.mlp.experts.1."))
    assert [line.partition(":")[0] for line in lines] == ["expert 0 of layer 1", "expert 1 of layer 2"]


def test_a_model_of_other_names(tmp_path: Path) -> None:
    files: Files = {"model.safetensors": {"other.weight": TensorSpec("BF16", (3,)), "more": TensorSpec("BF16", (3,))}}
    checkpoint = opened(write(tmp_path, FP8_CONFIG, files))
    found = told(checkpoint, single_faults(checkpoint))
    whole = [fault for fault in found if fault.where == "config.json" and fault.code == "missing-tensor"]
    what = f"all {len(checkpoint.params)} parameters that it describes are missing; tensors have names such as"
    assert [fault.what for fault in whole] == [f"{what} {checkpoint.survey.extra[0].name}"]
    assert len(whole[0].details) == len(checkpoint.params) + 2


def test_three_alike_but_for_their_numbers_are_one_line(tmp_path: Path) -> None:
    faults = [Fault("wrong-dtype", f"model.layers.{n}.w", "is odd") for n in (0, 7, 12)]
    other = Fault("wrong-dtype", "model.x", "is odd")
    found = told(fp8(tmp_path), [faults[0], other, *faults[1:]])
    assert [str(fault) for fault in found] == [
        "model.layers.*.w: 3 such tensors; the first is model.layers.0.w: is odd",
        "model.x: is odd",
    ]
    assert found[0].details == tuple(map(str, faults))


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_are_told_one_by_one(tmp_path: Path, count: int) -> None:
    faults = [Fault("wrong-dtype", f"model.layers.{n}.w", "is odd") for n in range(count)]
    assert told(fp8(tmp_path), faults) == faults


def test_other_kinds_are_not_alike(tmp_path: Path) -> None:
    faults = [Fault(code, f"layers.{n}.w", "x") for n, code in enumerate(("a", "b", "c"))]
    same = [Fault("a", "w", "x")] * 3
    assert told(fp8(tmp_path), [*faults, *same]) == [*faults, *same]


@pytest.mark.parametrize(
    ("store", "found", "said"),
    [
        (HERE, [], None),
        (HERE, [Fault("wrong-shape", "w", "")], None),
        (
            HERE, [Fault("missing-shard", "a.safetensors", "")],
            "`dsctl download REPOSITORY /here --include a.safetensors` fetches only this file",
        ),
        (
            HERE, [Fault("missing-shard", "a.safetensors", ""), Fault("wrong-size", "b.safetensors", "")],
            "`dsctl download REPOSITORY /here` fetches the 2 missing or broken files and keeps the others",
        ),
        (
            HERE, [Fault("missing-shard", "a.safetensors", ""), Fault("broken-header", "a.safetensors", "")],
            "`dsctl download REPOSITORY /here --include a.safetensors` fetches only this file",
        ),
        (HERE, [Fault("missing-shard", "config.json", "")], None),
        (Far(), [Fault("missing-shard", "a.safetensors", "")], None),
        (HERE, [Fault("wrong-config", "config.json", "")], ANOTHER),
        (Far(), [Fault("wrong-config", "config.json", "")], ANOTHER),
    ],
)  # fmt: skip
def test_what_to_do_about_a_cause(store: object, found: list[Fault], said: str | None) -> None:
    assert remedy(store, found) == said  # type: ignore[arg-type]
