"""`dsctl inspect`: totals that add up to the files, releases told by name, and a view of what has no config."""

from __future__ import annotations

import json
import os
import shutil
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from safetensors import safe_open

from dsctl.checkpoint.faults import known_faults
from dsctl.checkpoint.opening import open_checkpoint
from dsctl.core.header import TensorSpec, build
from dsctl.look.inspection import fold, inspect
from dsctl.models import MODELS
from dsctl.releases import releases
from dsctl.stores.local import LocalFolder
from tests.support.checkpoints import smaller
from tests.support.command import call, dsctl

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module", params=["v2", "v3", "v3.2", "glm-5", "kimi-k2"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smaller(tmp_path_factory, request.param)


@pytest.fixture
def copy(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    return Path(shutil.copytree(smaller(tmp_path_factory, "v3.2"), tmp_path / "copy"))


def told(*words: Any) -> dict[str, Any]:
    return dict(json.loads(dsctl("inspect", *words, "--json")))


def stored(folder: Path) -> dict[str, tuple[str, list[int], str]]:
    """Every tensor as safetensors reads it: dtype, shape, file."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - the file is no mapping
                part = file.get_slice(name)
                found[name] = (part.get_dtype(), list(part.get_shape()), path.name)
    return found


def summed(totals: list[dict[str, Any]], key: str) -> int:
    return sum(total[key] for total in totals)


def test_totals_are_those_of_the_files(source: Path) -> None:
    facts, found = told(source), stored(source)
    raws = [path.read_bytes() for path in source.glob("*.safetensors")]
    taken = sum(len(raw) - 8 - int.from_bytes(raw[:8], "little") for raw in raws)
    assert facts["tensors"] == summed(facts["dtypes"], "tensors") == summed(facts["files"], "tensors") == len(found)
    for key in ("roles", "dtypes", "files"):
        assert summed(facts[key], "bytes") == facts["bytes"] == taken, key
    by_dtype = {total["dtype"]: (total["tensors"], total["values"]) for total in facts["dtypes"]}
    dtypes = {dtype for dtype, _, _ in found.values()}
    assert by_dtype == {
        dtype: (
            sum(one == dtype for one, _, _ in found.values()),
            sum(prod(shape) for one, shape, _ in found.values() if one == dtype),
        )
        for dtype in dtypes
    }
    scales = sum(prod(shape) for name, (_, shape, _) in found.items() if name.endswith("_scale_inv"))
    assert facts["values"] == summed(facts["roles"], "values") == summed(facts["dtypes"], "values") - scales
    assert facts["parameters"] == summed(facts["roles"], "parameters")
    assert not facts["faults"] and not facts["missing"]


def test_tensors_are_listed_as_they_are_stored(source: Path) -> None:
    listed = told(source, "--tensors")["tensor_list"]
    assert {t["name"]: (t["dtype"], t["shape"], t["file"]) for t in listed} == stored(source)
    glob = "*.mlp.experts.[01].*"
    some = told(source, "--tensors", glob)["tensor_list"]
    assert some and some == [tensor for tensor in listed if fnmatchcase(tensor["name"], glob)]


def test_a_fold_holds_what_the_list_holds(source: Path) -> None:
    seen = inspect(str(source))
    folds = fold(seen.tensors())
    assert sum(one.number for one in folds) == len(list(seen.tensors()))
    assert sum(one.nbytes for one in folds) == sum(tensor.spec.nbytes for tensor in seen.tensors())
    assert len(folds) < 80 and len({(one.template, one.spec) for one in folds}) == len(folds)


def test_the_quick_way_says_what_the_thorough_one_says(source: Path) -> None:
    checkpoint = open_checkpoint(LocalFolder.at(source))
    assert checkpoint.regular is not None
    pieces = checkpoint.survey.pieces
    for family, codec in checkpoint.regular.items():
        assert {piece.codec for name in family.names() for piece in pieces[name]} == {codec}
        assert family.names() == [param.name for param in family.params()]
    held = [ref.name for one in pieces.values() for piece in one for ref in piece.refs]
    assert sorted(held) == sorted(ref.name for ref in checkpoint.tensors)
    assert not checkpoint.survey.faults and not known_faults(checkpoint)


@pytest.mark.parametrize("release", releases(), ids=lambda release: release.alias[0])
def test_a_release_is_told_from_its_description(release: Any) -> None:
    facts = told(release.alias[0])
    assert facts["release"] == release.name and facts["architecture"] in MODELS
    assert release.name in facts["parameters_as_in"]
    assert not facts["files"] and not facts["faults"]
    if release.storage.stored_tensors:
        assert facts["tensors"] == release.storage.stored_tensors
    if release.storage.total_size:
        assert facts["bytes"] == release.storage.total_size
    listed = told(release.alias[0], "--tensors", "*layers.1.*", "--fold")["tensor_list"]
    assert listed and all(one["numbers"][0] == [1] for one in listed)


@pytest.mark.parametrize(
    ("alias", "values", "active"),
    # Total and activated parameters of the model cards, in billions.
    [
        *(("v3", 671, 37), ("v3.1", 671, 37), ("v2", 236, 21), ("v2-lite", 15.7, 2.4)),
        *(("kimi-k2", 1000, 32), ("kimi-k2.5", 1000, 32), ("kimi-k3", 2800, 104)),
    ],
)
def test_parameters_are_those_of_the_model_cards(alias: str, values: float, active: float) -> None:
    facts = told(alias)
    assert facts["main_values"] / 1e9 == pytest.approx(values, rel=0.03)
    assert facts["active_values"] / 1e9 == pytest.approx(active, rel=0.03)


def test_a_file_without_config_is_told_by_dtype_and_file(copy: Path) -> None:
    file = copy / "model-00001-of-00004.safetensors"
    file = file if file.exists() else next(iter(sorted(copy.glob("*.safetensors"))))
    facts, found = told(file), stored(copy)
    names = [name for name, (_, _, where) in found.items() if where == file.name]
    assert facts["architecture"] is None and facts["values"] is None and facts["tensors"] == len(names)
    assert [one["file"] for one in facts["files"]] == [file.name]
    bare = copy.parent / "bare"
    bare.mkdir()
    shutil.copy(file, bare / "x.safetensors")
    assert told(bare)["dtypes"] == facts["dtypes"]
    text = dsctl("inspect", bare)
    assert "unknown: no config.json" in text and "By dtype" in text and "By role" not in text


@pytest.mark.parametrize("to", [None, "int8-channel"])
def test_formats_are_told_without_a_config(to: str | None, copy: Path, tmp_path: Path) -> None:
    if to:
        dsctl("convert", copy, tmp_path / "other", "--to", to)
        copy = tmp_path / "other"
    known = told(copy)["formats"]
    for file in (*copy.glob("*.json"), *copy.glob("*.dsctl")):
        file.unlink()
    found = told(copy)
    assert found["architecture"] is None
    assert {name.removesuffix(" ue8m0") for name in known} == set(found["formats"])
    assert f"stored as     {', '.join(found['formats'])}" in dsctl("inspect", copy)


def test_faults_are_warnings(copy: Path) -> None:
    file = next(iter(sorted(copy.glob("*.safetensors"))))
    file.unlink()
    done = call("inspect", copy, "--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0 and f"warning: {file.name}: missing, but the index names it" in done.stderr
    assert [fault["code"] for fault in facts["faults"]] == ["missing-shard"] and facts["missing"]
    assert set(facts["missing"]) <= set(facts["faults"][0]["details"]) and done.stderr.count("warning: ") == 1
    assert not call("inspect", copy, "--quiet").stderr


@pytest.mark.parametrize("width", [80, 120, 200])
def test_text_fits_the_width_and_is_plain_in_a_pipe(copy: Path, width: int) -> None:
    with mock.patch.dict(os.environ, {"COLUMNS": str(width)}):
        text = dsctl("inspect", copy)
        folded = dsctl("inspect", "v3.2", "--tensors", "--fold")
    assert all(line == line.rstrip() and "\x1b" not in line for line in (text + folded).splitlines())
    # The place is a path, as long as it is, in the line that says where this is from and in the title.
    assert all(len(line) <= width for line in text.splitlines() if str(copy) not in line)
    assert "model.layers.{3-61}.mlp.experts.{0-255}.down_proj.weight" in folded
    assert ("parameters" in text.split("By role")[1].splitlines()[1]) == (width > 80)


def test_every_tensor_of_a_release_is_listed() -> None:
    lines = dsctl("inspect", "v2-lite", "--tensors").splitlines()
    assert sum(".weight" in line or ".bias" in line for line in lines) == 5291
    assert len(lines) == len(set(lines)) + lines.count("") - 1


def test_every_file_is_listed_when_asked(tmp_path_factory: pytest.TempPathFactory) -> None:
    source = smaller(tmp_path_factory, "v3", shards=12)
    short, long = dsctl("inspect", source), dsctl("inspect", source, "--files")
    assert "... and 6 more: --files lists them" in short
    assert all(path.name in long for path in source.glob("*.safetensors")) and "more:" not in long


def test_what_is_no_source_is_refused_with_the_nearest_name() -> None:
    done = call("inspect", "v3.3")
    assert done.returncode == 10 and done.stderr.count("error: ") == 1 and "v3.2" in done.stderr
    assert call("inspect", "x" * 5000).returncode == 10


def test_names_that_look_like_marks_and_sequences_are_harmless(tmp_path: Path) -> None:
    names = ["a.{layer}.1", "a.1.{layer}", "a.{layer}.x", "a.1.x", "\x1b[2J", "[bold]", "a\nb"]
    header, _ = build({name: TensorSpec("U8", (1,)) for name in names})
    (tmp_path / "x.safetensors").write_bytes(header + bytes(len(names)))
    for words in ((), ("--tensors",), ("--fold",)):
        text = dsctl("inspect", tmp_path, *words)
        assert "\x1b" not in text
        assert not words or "[bold]" in text
    assert [one["name"] for one in told(tmp_path, "--tensors")["tensor_list"]] == sorted(names)
