"""Faults of whole drafters: config without tensors, tensors without config, a different kind, lost stages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.flows.planted import Folder
from tests.support.checkpoints import smaller
from tests.support.command import call, dsctl

V3, CLASSIC, DSPARK, V41 = "v3.2", "v4-flash", "v4-flash-0731", "v4.1-flash"
RELEASES = (V3, CLASSIC, DSPARK, V41)
STAGES = {V3: ("model.layers.3",), CLASSIC: ("mtp.0",)} | dict.fromkeys((DSPARK, V41), ("mtp.0", "mtp.1", "mtp.2"))
# Findings that follow from the way a test spoils a folder.
USUAL = {"missing-code", "total-size", "private-file"}
BLOCKS = {
    "dspark_block_size": 5, "dspark_markov_rank": 256, "dspark_noise_token_id": 7, "dspark_target_layer_ids": [2, 3, 4],
}  # fmt: skip


def without(folder: Folder, *stages: str) -> None:
    """Nothing is left of these stages, as a quantizer leaves them out."""
    prefixes = tuple(f"{stage}." for stage in stages)
    weights = json.loads((folder.path / "model.safetensors.index.json").read_text())["weight_map"]
    for file in sorted({file for name, file in weights.items() if name.startswith(prefixes)}):
        held = [name for name, place in weights.items() if place == file]
        gone = [name for name in held if name.startswith(prefixes)]
        if len(gone) == len(held):
            (folder.path / file).unlink()
            folder.reindex()
        else:
            folder.tensors(held[0], lambda tensors, gone=gone: [tensors.pop(name) for name in gone])  # type: ignore[misc]


def fields(folder: Folder, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the language model's config."""
    folder.config(lambda config: change(config.get("text_config", config)))


def unsaid(said: dict[str, Any]) -> None:
    """A config without a drafter."""
    said["num_nextn_predict_layers"] = 0
    if "compress_ratios" in said:
        said["compress_ratios"] = said["compress_ratios"][: said["num_hidden_layers"]]
    unblocked(said)


def unblocked(said: dict[str, Any]) -> None:
    for field in [field for field in said if field.startswith("dspark_")]:
        del said[field]


def findings(folder: Path) -> list[dict[str, Any]]:
    report = json.loads(call("verify", folder, "--json").stdout)
    return [finding for finding in report["findings"] if finding["code"] not in USUAL]


@pytest.fixture
def spoiled(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Callable[[str], Folder]:
    return lambda release: Folder(Path(shutil.copytree(smaller(tmp_path_factory, release), tmp_path / "spoiled")))


@pytest.mark.parametrize("release", RELEASES)
def test_declared_and_not_stored(release: str, spoiled: Callable[[str], Folder], tmp_path: Path) -> None:
    folder = spoiled(release)
    without(folder, *STAGES[release])
    (found,) = findings(folder.path)
    assert (found["code"], found["where"]) == ("drafter-missing", "config.json")
    assert "but no tensor of this drafter is stored" in found["what"]
    lost = len(found["details"])
    assert f"{lost} parameters are missing" in found["what"] or "drafter-stages" in str(found["details"]) or lost > 30
    assert all(STAGES[release][0][:3] in detail or "config.json" in detail for detail in found["details"])
    refused = call("convert", folder.path, tmp_path / "out", "--mtp", "only")
    assert refused.returncode == 20 and "no tensor of this drafter is stored" in refused.stderr
    assert "hint: fetch the files that hold the drafter" in refused.stderr
    again = call("convert", folder.path, tmp_path / "out", "--mtp", "only", "--allow-missing")
    assert again.returncode == 30 and "there is no drafter for --mtp only" in again.stderr
    dsctl("convert", folder.path, tmp_path / "out", "--mtp", "drop")
    assert findings(tmp_path / "out") == []


@pytest.mark.parametrize("release", RELEASES)
def test_stored_and_not_declared(release: str, spoiled: Callable[[str], Folder], tmp_path: Path) -> None:
    folder = spoiled(release)
    fields(folder, unsaid)
    (found,) = findings(folder.path)
    assert (found["code"], found["where"]) == ("drafter-undeclared", STAGES[release][0])
    assert "config.json does not declare this drafter" in found["what"] and found["details"]
    refused = call("convert", folder.path, tmp_path / "out", "--mtp", "only")
    assert refused.returncode == 20 and "does not declare this drafter" in refused.stderr
    dsctl("convert", folder.path, tmp_path / "out", "--mtp", "drop")
    assert findings(tmp_path / "out") == []


@pytest.mark.parametrize("release", RELEASES)
def test_one_tensor_lost_is_one_tensor(release: str, spoiled: Callable[[str], Folder]) -> None:
    folder = spoiled(release)
    name = "model.layers.3.enorm.weight" if release == V3 else "mtp.0.attn_norm.weight"
    folder.tensors(name, lambda held: held.pop(name))
    (found,) = findings(folder.path)
    assert (found["code"], found["where"]) == ("missing-tensor", name)


@pytest.mark.parametrize("release", [DSPARK, V41])
@pytest.mark.parametrize("lost", [("mtp.2",), ("mtp.1", "mtp.2")])
def test_stages_lost(release: str, lost: tuple[str, ...], spoiled: Callable[[str], Folder], tmp_path: Path) -> None:
    """sgl-project/sglang issue 36155: the config says DSpark, its tensors are lost."""
    folder = spoiled(release)
    without(folder, *lost)
    (found,) = findings(folder.path)
    assert (found["code"], found["where"]) == ("drafter-stages", "config.json")
    assert "declares DSpark, 3 stages (mtp.0 to mtp.2)" in found["what"]
    assert found["what"].endswith(f"missing: {', '.join(lost)}") and len(found["details"]) > 20
    dsctl("convert", folder.path, tmp_path / "out", "--mtp", "drop")
    assert findings(tmp_path / "out") == []


@pytest.mark.parametrize("release", [DSPARK, V41])
def test_a_block_drafter_said_to_be_a_classic_one(release: str, spoiled: Callable[[str], Folder]) -> None:
    folder = spoiled(release)
    fields(folder, unblocked)
    (found,) = findings(folder.path)
    assert (found["code"], found["where"]) == ("drafter-config", "config.json")
    assert "but the stored drafter is DSpark, 3 stages (mtp.0 to mtp.2)" in found["what"]


@pytest.mark.parametrize("more", [0, 2])
def test_a_classic_drafter_said_to_be_a_block_drafter(more: int, spoiled: Callable[[str], Folder]) -> None:
    folder = spoiled(CLASSIC)
    fields(folder, lambda said: said.update(BLOCKS, compress_ratios=said["compress_ratios"] + [0] * more))
    (found,) = findings(folder.path)
    assert (found["code"], found["where"]) == ("drafter-config", "config.json")
    assert "declares DSpark" in found["what"] and "the stored drafter is MTP, 1 layer (mtp.0)" in found["what"]


def test_a_lost_tensor_stays_beside_a_wrong_kind(spoiled: Callable[[str], Folder]) -> None:
    folder = spoiled(DSPARK)
    fields(folder, unblocked)
    folder.tensors("mtp.1.attn_norm.weight", lambda held: held.pop("mtp.1.attn_norm.weight"))
    assert [one["code"] for one in findings(folder.path)] == ["drafter-config", "missing-tensor"]


def test_dspark_fields_alone_promise_a_drafter(spoiled: Callable[[str], Folder]) -> None:
    folder = spoiled(DSPARK)
    without(folder, *STAGES[DSPARK])
    fields(folder, lambda said: said.update(compress_ratios=said["compress_ratios"][: said["num_hidden_layers"]]))
    (found,) = findings(folder.path)
    assert found["code"] == "drafter-missing" and "declares DSpark, but no tensor" in found["what"]


def test_more_mtp_layers_are_declared_than_stored(spoiled: Callable[[str], Folder]) -> None:
    folder = spoiled(V3)
    fields(folder, lambda said: said.update(num_nextn_predict_layers=2))
    (found,) = findings(folder.path)
    assert found["code"] == "drafter-stages" and found["what"].endswith("missing: model.layers.4")


def test_a_wrong_number_of_layers_is_told_first(spoiled: Callable[[str], Folder]) -> None:
    folder = spoiled(V3)
    fields(folder, lambda said: said.update(num_hidden_layers=4))
    assert [one["code"] for one in findings(folder.path)] == ["wrong-config"]


def test_a_lost_file_with_the_drafter_is_a_lost_file(spoiled: Callable[[str], Folder]) -> None:
    folder = spoiled(CLASSIC)
    folder.file("mtp.0.attn_norm.weight").unlink()
    assert {one["code"] for one in findings(folder.path)} == {"missing-shard"}


def test_a_drafter_alone_whose_config_declares_none(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    dsctl("convert", smaller(tmp_path_factory, V41), tmp_path / "draft", "--mtp", "only")
    (tmp_path / "draft" / "dsctl.json").unlink()
    fields(Folder(tmp_path / "draft"), unsaid)
    assert "drafter-undeclared" in [one["code"] for one in findings(tmp_path / "draft")]


def test_a_stage_of_a_drafter_alone_is_lost(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    dsctl("convert", smaller(tmp_path_factory, DSPARK), tmp_path / "draft", "--mtp", "only")
    (tmp_path / "draft" / "dsctl.json").unlink()
    without(Folder(tmp_path / "draft"), "mtp.2")
    assert [one["code"] for one in findings(tmp_path / "draft")] == ["drafter-stages", "drafter-alone"]


def test_a_layer_in_part_is_not_lost(spoiled: Callable[[str], Folder]) -> None:
    """Without the tensors that only an MTP layer has, the others are still there."""
    folder = spoiled(V3)
    for name in ("eh_proj", "enorm", "hnorm", "shared_head.norm"):
        full = f"model.layers.3.{name}.weight"
        folder.tensors(full, lambda held, full=full: held.pop(full))  # type: ignore[misc]
    found = findings(folder.path)
    assert {one["code"] for one in found} <= {"missing-tensor", "wrong-config"} and "drafter-missing" not in str(found)
