"""What is refused because of faults, in which words, and what is let through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.faults import NOTES, known_faults, require_whole, single_faults, summary
from dsctl.checkpoint.pieces import Fault
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorSpec
from tests.support.headers import BF16_CONFIG, BLOCKS, FP8_CONFIG, Files, files_of, fp8, opened, write

LOST = Fault("missing-shard", "a.safetensors", "missing, but the index names it")
WRONG = Fault("wrong-shape", "w", "is [1], but [2] in the architecture")
SCALE = "model.layers.0.self_attn.o_proj.weight_scale_inv"
LAYER = "model.layers.1.mlp.experts.3."


def _without(folder: Path, *names: str, config: dict[str, Any] = FP8_CONFIG, **changed: TensorSpec) -> Checkpoint:
    """The small checkpoint without tensors whose names begin so."""
    files: Files = {
        file: {name: spec for name, spec in specs.items() if not name.startswith(names)} if names else specs
        for file, specs in files_of(FP8_CONFIG, BLOCKS).items()
    }
    files[min(files)] |= changed
    return opened(write(folder, config, files))


def _refused(checkpoint: Checkpoint, *allowed: bool) -> FormatError:
    with pytest.raises(FormatError) as found:
        require_whole(checkpoint, *allowed)
    assert found.value.exit_code == 20
    return found.value


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ([WRONG], "here: w: is [1], but [2] in the architecture"),
        ([WRONG, WRONG], "here: 2 faults (2 wrong-shape)"),
        ([WRONG, LOST], "here: 2 faults (1 wrong-shape, 1 missing-shard)"),
        ([LOST, WRONG], f"here: {LOST}; in all 2 faults (1 missing-shard, 1 wrong-shape)"),
    ],
)
def test_a_line_for_all_faults(faults: list[Fault], said: str) -> None:
    assert summary("here", faults) == said


def test_a_whole_checkpoint_is_let_through(tmp_path: Path) -> None:
    checkpoint = fp8(tmp_path)
    require_whole(checkpoint)
    assert single_faults(checkpoint) == () == known_faults(checkpoint)


@pytest.mark.parametrize("code", sorted(NOTES))
def test_notes_refuse_nothing(tmp_path: Path, code: str) -> None:
    checkpoint = fp8(tmp_path)
    checkpoint.faults.append(Fault(code, "somewhere", "something"))
    require_whole(checkpoint)
    assert [fault.code for fault in single_faults(checkpoint)] == [code]


def test_a_missing_tensor_may_be_allowed(tmp_path: Path) -> None:
    checkpoint = _without(tmp_path, "model.norm.weight")
    assert _refused(checkpoint).hint == "continue without these tensors with --allow-missing"
    assert _refused(checkpoint, False, True).message.endswith("model.norm.weight: missing")
    require_whole(checkpoint, True)


def test_a_missing_mtp_layer_is_none_if_it_is_dropped(tmp_path: Path) -> None:
    checkpoint = _without(tmp_path, "model.layers.2.")
    error = _refused(checkpoint)
    assert error.hint == "drop the drafter with --mtp drop, or continue without these tensors with --allow-missing"
    require_whole(checkpoint, without_mtp=True)


def test_more_than_an_mtp_layer_is_not_mended_by_dropping_it(tmp_path: Path) -> None:
    checkpoint = _without(tmp_path, "model.layers.2.", "model.norm.weight")
    assert _refused(checkpoint).hint == "continue without these tensors with --allow-missing"
    assert _refused(checkpoint, False, False, True).message.endswith("model.norm.weight: missing")


def test_surplus_tensors_may_be_allowed(tmp_path: Path) -> None:
    checkpoint = _without(tmp_path, more=TensorSpec("BF16", (1,)))
    assert _refused(checkpoint).hint == "copy these tensors unchanged with --allow-extra"
    require_whole(checkpoint, allow_extra=True)


def test_nothing_allows_codes_without_scales(tmp_path: Path) -> None:
    checkpoint = _without(tmp_path, SCALE)
    error = _refused(checkpoint, True, True, True)
    assert error.hint == "codes need their scales: fetch the files that should hold the scales again"
    assert error.message.endswith(f"FP8 without a scale: {SCALE} is missing")


def test_a_config_that_does_not_say_what_is_stored_can_be_mended(tmp_path: Path) -> None:
    error = _refused(_without(tmp_path, config=BF16_CONFIG))
    assert error.hint == "`dsctl verify --fix` updates config.json to match the stored tensors"
    assert error.issues == ("config.json: weights are fp8-block, but quantization_config is absent",)


def test_a_lost_file_is_the_cause(tmp_path: Path) -> None:
    folder = write(tmp_path, FP8_CONFIG, files_of(FP8_CONFIG, BLOCKS))
    lost = min(files_of(FP8_CONFIG))
    (folder / lost).unlink()
    error = _refused(opened(folder))
    assert f"{lost}: missing, but the index names it; " in error.message and len(error.issues) == 1
    assert error.hint == f"`dsctl download REPOSITORY {folder} --include {lost}` fetches only this file"


def test_faults_of_every_kind_are_told_together(tmp_path: Path) -> None:
    checkpoint = _without(tmp_path, SCALE, "model.norm.weight", more=TensorSpec("BF16", (1,)))
    error = _refused(checkpoint)
    assert (
        error.message.endswith("3 faults (1 missing-scale, 1 missing-tensor, 1 extra-tensor)") or len(error.issues) == 3
    )
    assert len(_refused(checkpoint, True).issues) == 2
    assert len(_refused(checkpoint, True, True).issues) == 1


def test_an_expert_that_is_not_there_is_told_once(tmp_path: Path) -> None:
    (fault,) = known_faults(_without(tmp_path, LAYER))
    assert (fault.code, fault.where) == ("missing-tensor", "expert 3 of layer 1")
    assert fault.what == "all 3 parameters are missing" and len(fault.details) == 3
