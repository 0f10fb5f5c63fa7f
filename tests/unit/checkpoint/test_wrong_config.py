"""Sizes that config.json has wrong are found by what the files hold, and told with what follows from each."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.faults import single_faults
from dsctl.checkpoint.pieces import SHAPED, Fault
from dsctl.checkpoint.wrong_config import of_config
from dsctl.core.header import TensorSpec
from tests.support.headers import BF16_CONFIG, BLOCKS, FP8_CONFIG, Files, files_of, fp8, opened, write


def _with(folder: Path, files: Files | None = None, **fields: int) -> Checkpoint:
    """The small checkpoint under a config of which some fields are others."""
    return opened(write(folder, FP8_CONFIG | fields, files or files_of(FP8_CONFIG, BLOCKS)))


def _found(checkpoint: Checkpoint) -> tuple[list[str], list[Fault]]:
    causes, rest = of_config(checkpoint, list(single_faults(checkpoint)))
    return [fault.what.partition(";")[0] for fault in causes], rest


def test_a_right_config_is_not_doubted(tmp_path: Path) -> None:
    checkpoint = fp8(tmp_path)
    assert of_config(checkpoint, []) == ([], [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 640), ("intermediate_size", 384), ("moe_intermediate_size", 512), ("kv_lora_rank", 64),
        ("q_lora_rank", 128), ("hidden_size", 512), ("v_head_dim", 64), ("num_hidden_layers", 1),
        ("num_hidden_layers", 3), ("n_routed_experts", 8), ("n_routed_experts", 2), ("n_shared_experts", 2),
        ("first_k_dense_replace", 0), ("first_k_dense_replace", 2), ("num_nextn_predict_layers", 0),
        ("num_nextn_predict_layers", 2), ("index_n_heads", 8), ("index_head_dim", 64),
    ],
)  # fmt: skip
def test_one_wrong_size_is_named_with_what_the_files_hold(tmp_path: Path, field: str, value: int) -> None:
    checkpoint = _with(tmp_path, **{field: value})
    faults = list(single_faults(checkpoint))
    (fault,), rest = of_config(checkpoint, faults)
    assert (fault.code, fault.where) == ("wrong-config", "config.json")
    assert (
        fault.what
        == f"{field} is {value}, but the files hold {FP8_CONFIG[field]}; {len(faults)} faults follow from this"
    )
    assert fault.details == tuple(map(str, faults)) and rest == []


def test_several_wrong_sizes_are_named_one_by_one(tmp_path: Path) -> None:
    found, rest = _found(_with(tmp_path, vocab_size=640, intermediate_size=384, n_routed_experts=3))
    assert set(found) == {
        "vocab_size is 640, but the files hold 512",
        "intermediate_size is 384, but the files hold 512",
        "n_routed_experts is 3, but the files hold 4",
    }
    assert rest == []


def test_what_does_not_follow_from_it_stays(tmp_path: Path) -> None:
    files = files_of(FP8_CONFIG, BLOCKS)
    files[min(files)]["more"] = TensorSpec("BF16", (1,))
    found, rest = _found(_with(tmp_path, files, hidden_size=512))
    assert found == ["hidden_size is 512, but the files hold 256"]
    assert [(fault.code, fault.where) for fault in rest] == [("extra-tensor", "more")]


@pytest.mark.parametrize(
    "other",
    [Fault("stray-file", "b.safetensors", "x"), Fault("index-wrong", "w", "x"), Fault("no-format-pt", "a", "x")],
)
def test_faults_of_files_follow_from_no_size(tmp_path: Path, other: Fault) -> None:
    """What opening found is not found again by a guess, and yet does not go with it."""
    checkpoint = _with(tmp_path, vocab_size=640)
    checkpoint.faults.append(other)
    faults = list(single_faults(checkpoint))
    (fault,), rest = of_config(checkpoint, faults)
    assert rest == [other] and str(other) not in fault.details
    assert fault.what.endswith(f"{len(faults) - 1} faults follow from this")


def test_a_file_ignored_makes_no_size_wrong(tmp_path: Path) -> None:
    files = files_of(FP8_CONFIG, BLOCKS)
    for name in ("model.norm.weight", "lm_head.weight"):
        files[min(files)].pop(name)
    checkpoint = _with(tmp_path, files)
    checkpoint.faults.append(Fault("stray-file", "b.safetensors", "x"))
    faults = list(single_faults(checkpoint))
    assert of_config(checkpoint, faults) == ([], faults)


def test_a_size_that_explains_too_little_is_not_blamed(tmp_path: Path) -> None:
    files = files_of(FP8_CONFIG, BLOCKS)
    files[min(files)]["more"] = TensorSpec("BF16", (1,))
    checkpoint = _with(tmp_path, files, vocab_size=640)
    faults = list(single_faults(checkpoint))
    assert of_config(checkpoint, faults) == ([], faults)


def test_a_single_fault_says_nothing_of_the_config(tmp_path: Path) -> None:
    files = files_of(FP8_CONFIG, BLOCKS)
    files[min(files)]["model.embed_tokens.weight"] = TensorSpec("BF16", (640, 256))
    checkpoint = _with(tmp_path, files)
    assert of_config(checkpoint, list(single_faults(checkpoint)))[0] == []


def test_the_config_of_another_model(tmp_path: Path) -> None:
    other = {name: value for name, value in FP8_CONFIG.items() if isinstance(value, int)}
    other = {name: 3 * value + 1 if value > 64 else value for name, value in other.items()}
    checkpoint = _with(tmp_path, **other)
    causes, rest = of_config(checkpoint, list(single_faults(checkpoint)))
    assert [fault.what.partition(":")[0] for fault in causes] == ["belongs to a different model"]
    assert not [fault for fault in rest if fault.code in SHAPED]


def test_nothing_is_guessed_for_an_unknown_architecture(tmp_path: Path) -> None:
    checkpoint = opened(write(tmp_path, {"model_type": "llama"}, files_of(BF16_CONFIG)))
    faults = [Fault("missing-tensor", str(number), "missing") for number in range(5)]
    assert of_config(checkpoint, faults) == ([], faults)
