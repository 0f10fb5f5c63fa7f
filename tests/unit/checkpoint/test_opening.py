"""A folder is opened: config, index and headers, and what they get wrong about each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dsctl.checkpoint.opening import open_checkpoint, source_at, weights_at
from dsctl.core.errors import FormatError, SourceError
from dsctl.core.header import TensorSpec
from dsctl.layouts.manifests import MANIFEST
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.stores import INDEX, store_at
from tests.support.headers import (
    BF16_CONFIG,
    BLOCKS,
    FP8_CONFIG,
    Files,
    files_of,
    fp8,
    lay_out,
    opened,
    write,
    write_header,
)

ONE = {"w": TensorSpec("BF16", (2, 2))}


def _codes(folder: Path) -> list[tuple[str, str]]:
    return [(fault.code, fault.where) for fault in opened(folder).faults]


def test_a_whole_checkpoint_has_no_faults(tmp_path: Path) -> None:
    checkpoint = fp8(tmp_path)
    assert checkpoint.faults == []
    assert checkpoint.model is not None and checkpoint.model.name == "deepseek_v32"
    assert checkpoint.total_size == checkpoint.nbytes
    assert set(checkpoint.headers) == set((checkpoint.index or {}).values())


def test_a_folder_without_safetensors_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match=r"no \.safetensors files") as found:
        opened(tmp_path)
    assert found.value.exit_code == 10 and found.value.hint == "is this the folder of a checkpoint?"


def test_a_single_file_needs_no_config(tmp_path: Path) -> None:
    write_header(tmp_path / "a.safetensors", ONE)
    checkpoint = open_checkpoint(store_at(tmp_path / "a.safetensors"))
    assert (checkpoint.faults, checkpoint.config, checkpoint.index) == ([], None, None)
    assert [param.name for param in checkpoint.params] == ["w"]


def test_a_folder_with_more_than_weights_should_have_a_config(tmp_path: Path) -> None:
    write_header(tmp_path / "a.safetensors", ONE)
    (tmp_path / "README.md").write_text("")
    assert [code for code, _ in _codes(tmp_path)] == ["no-config"]


def test_several_files_should_have_an_index(tmp_path: Path) -> None:
    write_header(tmp_path / "a.safetensors", ONE)
    write_header(tmp_path / "b.safetensors", {"v": TensorSpec("BF16", (2, 2))})
    (fault,) = opened(tmp_path).faults
    assert (fault.code, fault.what) == ("no-index", f"2 safetensors files, but no {INDEX}")


def test_an_unknown_architecture_is_a_fault_and_no_error(tmp_path: Path) -> None:
    write(tmp_path, {"model_type": "llama"}, {"model.safetensors": ONE})
    checkpoint = opened(tmp_path)
    assert [str(fault) for fault in checkpoint.faults] == ["config.json: unknown architecture (model_type: 'llama')"]
    assert checkpoint.model is None and [family.template for family in checkpoint.families] == ["w"]


def test_architectures_that_are_not_a_list_are_a_wrong_config(tmp_path: Path) -> None:
    write(tmp_path, {"model_type": "llama", "architectures": 5}, {"model.safetensors": ONE})
    (fault,) = opened(tmp_path).faults
    assert (fault.code, fault.what) == ("bad-config", "architectures is not a list")


def test_a_file_that_the_index_names_and_that_is_not_there(tmp_path: Path) -> None:
    files = files_of(BF16_CONFIG)
    first = next(iter(files))
    write(tmp_path, BF16_CONFIG, files)
    (tmp_path / first).unlink()
    assert _codes(tmp_path) == [("missing-shard", first)]


def test_no_file_of_those_in_the_index_is_there(tmp_path: Path) -> None:
    files = files_of(BF16_CONFIG)
    write(tmp_path, BF16_CONFIG, files)
    for file in files:
        (tmp_path / file).unlink()
    checkpoint = opened(tmp_path)
    assert [fault.code for fault in checkpoint.faults] == ["missing-shard"] * 2 and not checkpoint.headers


def test_a_file_that_the_index_does_not_name_is_ignored(tmp_path: Path) -> None:
    write(tmp_path, None, {"model.safetensors": ONE})
    (tmp_path / "extra.safetensors").write_bytes(b"not even a header")
    assert ("stray-file", "extra.safetensors") in _codes(tmp_path)
    assert set(opened(tmp_path).headers) == {"model.safetensors"}


@pytest.mark.parametrize(
    ("index", "code"),
    [
        ({"w": "a.safetensors", "v": "a.safetensors"}, "index-wrong"),
        ({"w": "a.safetensors", "u": "b.safetensors"}, "index-unknown"),
        ({"w": "b.safetensors", "v": "b.safetensors"}, "index-wrong"),
    ],
)
def test_an_index_that_places_tensors_elsewhere(tmp_path: Path, index: dict[str, str], code: str) -> None:
    files: Files = {"a.safetensors": ONE, "b.safetensors": {"v": TensorSpec("BF16", (1,))}}
    for file, specs in files.items():
        write_header(tmp_path / file, specs)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {**index}, "metadata": {}}))
    assert code in [found for found, _ in _codes(tmp_path)]


def test_the_index_decides_where_two_files_hold_one_name(tmp_path: Path) -> None:
    files: Files = {"a.safetensors": ONE, "b.safetensors": {**ONE, "v": TensorSpec("BF16", (1,))}}
    write(tmp_path, None, files, {"w": "a.safetensors", "v": "b.safetensors"})
    assert opened(tmp_path).catalogue[""]["w"].file == "a.safetensors"


def test_two_files_that_hold_one_name_contradict_each_other_without_an_index(tmp_path: Path) -> None:
    for file in ("a.safetensors", "b.safetensors"):
        write_header(tmp_path / file, ONE)
    with pytest.raises(FormatError, match=r"tensor w is in b\.safetensors and in another file"):
        _ = opened(tmp_path).catalogue


@pytest.mark.parametrize(
    ("text", "total"),
    [
        ('{"weight_map": {"w": "model.safetensors"}}', None),
        ('{"weight_map": {"w": "model.safetensors"}, "metadata": null}', None),
        ('{"weight_map": {"w": "model.safetensors"}, "metadata": {"total_size": 8}}', 8),
        ('{"weight_map": {"w": "model.safetensors"}, "metadata": {"total_size": 8.0}}', 8),
        ('{"weight_map": {"w": "model.safetensors"}, "metadata": {"total_size": true}}', None),
        ('{"weight_map": {"w": "model.safetensors"}, "metadata": {"total_size": "8"}}', None),
        ('{"weight_map": {"w": "model.safetensors"}, "metadata": {"total_size": 1e300}}', None),
        ('{"weight_map": {"w": "model.safetensors"}, "metadata": {"total_size": 8, "more": 1}}', 8),
    ],
)
def test_the_total_size_of_an_index(tmp_path: Path, text: str, total: int | None) -> None:
    write_header(tmp_path / "model.safetensors", ONE)
    (tmp_path / INDEX).write_text(text)
    assert opened(tmp_path).total_size == total


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "not a valid index"),
        ('{"metadata": {}}', "not a valid index"),
        ('{"weight_map": {"w": 7}}', "not a valid index"),
        ('{"weight_map": {"w": "model.safetensors", "w": "b.safetensors"}}', "key 'w' appears twice"),
        ('{"weight_map": {"w": "../model.safetensors"}}', "is not a safetensors file inside the folder"),
        ('{"weight_map": {"w": "model.bin"}}', "is not a safetensors file inside the folder"),
        ('{"weight_map": {"w": "model.safetensors"}, "metadata": 7}', "not a valid index"),
        ('{"weight_map": {"w": "model.safetensors"}, "weight_map": {"w": "model.safetensors"}}', "appears twice"),
        ('{"weight_map": {}, "metadata": {"a": 1, "total_size": 1, "total_size": 2}}', "appears twice"),
    ],
)  # fmt: skip
def test_an_index_that_is_none(tmp_path: Path, text: str, words: str) -> None:
    write_header(tmp_path / "model.safetensors", ONE)
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(FormatError, match=words):
        opened(tmp_path)


def test_files_that_do_not_say_for_whom_they_are(tmp_path: Path) -> None:
    write_header(tmp_path / "model.safetensors", ONE, {})
    assert _codes(tmp_path) == [("no-format-pt", "model.safetensors")]


def test_the_files_of_ranks_need_not_say_it(tmp_path: Path) -> None:
    plan = make_plan(fp8(tmp_path / "src"), Request("keep", layout="deepseek", tp=2, ep=2, mtp="drop"))
    assert opened(lay_out(plan, tmp_path / "dst")).faults == []


def test_ranks_bring_their_manifests(tmp_path: Path) -> None:
    plan = make_plan(fp8(tmp_path / "src"), Request("keep", tp=2))
    checkpoint = opened(lay_out(plan, tmp_path / "dst"))
    assert list(checkpoint.manifests) == [f"rank-00000/{MANIFEST}", f"rank-00001/{MANIFEST}"]
    assert checkpoint.faults == [] and checkpoint.layout.shares is not None


def test_a_release_by_its_name_has_no_weights_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="its weights are not here") as found:
        weights_at("v3.2")
    assert found.value.hint is not None and "dsctl download v3.2 FOLDER" in found.value.hint


@pytest.mark.parametrize("at", [source_at, weights_at])
def test_a_folder_goes_before_a_release_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: Callable[[str], object]
) -> None:
    write(tmp_path / "v3.2", FP8_CONFIG, files_of(FP8_CONFIG, BLOCKS))
    monkeypatch.chdir(tmp_path)
    assert at("v3.2") == store_at(tmp_path / "v3.2")


def test_a_place_where_nothing_is(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        weights_at(str(tmp_path / "nothing"))
