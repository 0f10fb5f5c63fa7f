"""`dsctl verify`: planted faults are found by name, clean checkpoints are clean, `--fix` mends metadata only."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file

from dsctl.stores.local import LocalFolder
from dsctl.verify import verify
from dsctl.verify.against import other
from dsctl.verify.findings import CODES, Report
from tests.flows.planted import (
    EXPERT,
    FIRST,
    INDEX,
    NORM,
    PLANTED,
    SCALE,
    Folder,
    Planted,
    drop,
    misplaced,
    no_quantization,
)
from tests.flows.planted_v4 import PLANTED_V4
from tests.flows.planted_v41 import PLANTED_V41
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl, reports

SMALL = {
    "layers": 2, "experts": 4, "hidden": 256, "heads": 2, "vocab": 256, "intermediate": 384, "moe_intermediate": 128,
}  # fmt: skip
# What clean small checkpoints give besides: twins are equal, and some configs name code that tiny does not write.
USUAL = {"twin-equal", "missing-code"}
# What small checkpoints have of their releases' oddities.
ODD = {"v3": {"total-size"}, "v3.1": {"scales-apart"}}


def check(folder: Path, deep: bool = False, against: Path | str | None = None) -> Report:
    return verify(LocalFolder.at(folder), other(str(against)) if against else None, deep)


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings} - USUAL


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small checkpoints by release, and one that dsctl converted and signed."""
    folders = {release: tiny(tmp_path_factory, release, **SMALL) for release in ("v3", "v3.1", "v3.2", "v2")}
    folders["signed"] = tmp_path_factory.mktemp("signed") / "bf16"
    dsctl("convert", folders["v3.2"], folders["signed"], "--bf16", "-q")
    return folders


@pytest.fixture
def spoiled(tmp_path: Path, clean: dict[str, Path]):
    def copy(release: str) -> Folder:
        return Folder(Path(shutil.copytree(clean[release], tmp_path / "spoiled")))

    return copy


@pytest.mark.parametrize("release", ["v3", "v3.1", "v3.2", "v2", "signed"])
def test_nothing_is_found_on_a_clean_checkpoint(release: str, clean: dict[str, Path]) -> None:
    report = check(clean[release], deep=True, against=clean[release])
    assert codes(report) == ODD.get(release, set()) and report.worst == "note"
    assert call("verify", clean[release], "--strict").returncode == 0
    assert report.checked.parameters >= 40
    weights = sum(path.stat().st_size for path in clean[release].glob("*.safetensors"))
    assert weights <= report.checked.contents <= sum(path.stat().st_size for path in clean[release].iterdir())


@pytest.mark.parametrize(
    "release", ["r1", "v3-0324", "v2-lite", "kimi-k2", "kimi-k2.5", "kimi-k3", "mistral-large-3", "glm-5", "glm-5-fp8"]
)
def test_nothing_is_found_on_other_families(release: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert codes(check(tiny(tmp_path_factory, release, **SMALL), deep=True)) == set()


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_by_its_name(name: str, spoiled, clean: dict[str, Path]) -> None:
    fault: Planted = PLANTED[name]
    release = "signed" if fault.signed else fault.release
    folder = spoiled(release)
    fault.plant(folder)
    against = clean[release] if fault.against else None
    report = check(folder.path, fault.deep, against)
    found = [f for f in report.findings if f.code == fault.code and fault.where in f.where]
    assert found, [(f.code, str(f)) for f in report.findings]
    extra = codes(report) - {fault.code, *fault.also} - ODD.get(release, set())
    assert extra == set(), [str(f) for f in report.findings if f.code in extra]
    assert (report.checked.library_refused > 0) == fault.refused, report.checked
    if fault.deep:
        assert fault.code not in codes(check(folder.path))


def test_every_code_is_planted_or_seen_on_clean_checkpoints() -> None:
    planted = {fault.code for fault in (*PLANTED.values(), *PLANTED_V4.values(), *PLANTED_V41.values())}
    assert CODES.keys() - planted == {
        "twin-equal",
        "other-storage",
        "missing-rank",
        "one-rank",
        "copies-differ",
        "scales-apart",
        "mixed-names",
        # tests/flows/test_drafter_faults.py
        "drafter-missing",
        "drafter-alone",
        "drafter-apart",
        # Of values against a source: tests/flows/test_against.py plants them.
        "other-values",
        "lost-parameter",
        "added-parameter",
        "unread-values",
        "odd-rounding",
    }
    assert planted <= CODES.keys()
    assert len(PLANTED) > 60


def test_the_library_s_opinion_of_a_broken_file_is_a_part_of_its_finding(spoiled) -> None:
    version = f"safetensors {safetensors.__version__}"
    folder = spoiled("v3.2")
    PLANTED["a truncated shard"].plant(folder)
    (found,) = [finding for finding in check(folder.path).findings if finding.code not in USUAL]
    assert found.details[0].startswith(f"{version} refuses it too: ") and "not fully covered" in found.details[0]
    assert f"library     {version} opened 3 of 4 files\n" in call("verify", folder.path).stdout


def test_a_disagreement_with_the_library_is_said(spoiled) -> None:
    version = f"safetensors {safetensors.__version__}"
    folder = spoiled("v3.2")
    PLANTED["a tensor twice in a header"].plant(folder)
    (found,) = [finding for finding in check(folder.path).findings if finding.code not in USUAL]
    assert found.code == "broken-header" and f"{version} opens it nevertheless" in found.what
    shutil.rmtree(folder.path)
    folder = spoiled("v3.2")
    PLANTED["a header nested too deep for the library"].plant(folder)
    (found,) = [finding for finding in check(folder.path).findings if finding.code not in USUAL]
    assert found.what.startswith(f"{version} refuses it, but dsctl's own checks accept it: ")
    assert "recursion limit" in found.what
    assert call("verify", folder.path).returncode == 50
    assert call("verify", folder.path, "--ignore", "library-refuses").returncode == 0


def test_files_that_the_index_does_not_name_are_opened_with_the_library_too(spoiled) -> None:
    folder = spoiled("v3.2")
    (folder.path / "stray.safetensors").write_bytes(b"\xff" * 100)
    found = {finding.code: finding.what for finding in check(folder.path).findings if finding.code not in USUAL}
    assert found.keys() == {"stray-file", "library-refuses"} and "dsctl" not in found["library-refuses"]


def test_side_files_are_opened_with_the_library_too(clean: dict[str, Path]) -> None:
    weights = len(list(clean["signed"].glob("*.safetensors")))
    assert (clean["signed"] / "original.dsctl").is_file()
    assert check(clean["signed"]).checked.library_opened == weights + 1
    assert f"opened {weights + 1} of {weights + 1} files, side files included\n" in dsctl("verify", clean["signed"])
    assert "side files" not in dsctl("verify", clean["v3.2"]).partition("scales")[0]


def test_hostile_messages_of_the_library_are_cut(spoiled) -> None:
    folder = spoiled("v3.2")
    name = "x" * 1_000_000
    folder.reheader(folder.first(), lambda header: header.update({name: {**header[NORM], "data_offsets": [3, 2]}}))
    (found,) = [finding for finding in check(folder.path).findings if finding.code not in USUAL]
    assert found.code == "broken-header" and len(found.details[0]) < 400


def test_a_missing_library_is_said(clean: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    said = call("verify", clean["v3.2"])
    assert said.returncode == 0
    assert "library     not opened with the safetensors library: it is not installed\n" in said.stdout


def test_files_that_the_system_cannot_map_are_said(clean: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, framework: str) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    said = call("verify", clean["v3.2"])
    assert said.returncode == 0 and "opened 0 of 4 files; the system could not map 4 of them\n" in said.stdout


def test_a_release_is_held_against_by_name(clean: dict[str, Path]) -> None:
    found = codes(check(clean["v3.2"], against="v3.2"))
    assert found == {"other-architecture", "other-storage", "config-differs"}


def test_exit_codes_and_json(clean: dict[str, Path], spoiled) -> None:
    done = call("verify", clean["v3.2"], "--json")
    assert done.returncode == 0
    said = json.loads(done.stdout)
    assert said["ok"] and said["findings"] == [] and said["checked"]["scales"] > 0 and said["checked"]["contents"] == 0
    folder = spoiled("v3.2")
    folder.scale(0.0)
    done = call("verify", folder.path, "--json")
    assert done.returncode == 50 and len(reports(done.stderr)) == 1
    said = json.loads(done.stdout)
    assert [(f["severity"], f["code"], f["mendable"]) for f in said["findings"]] == [("error", "bad-scale", False)]
    done = call("verify", folder.path, "--ignore", "bad-scale,no-config")
    assert done.returncode == 0 and "\n  ignored     bad-scale, no-config\n" in done.stdout
    done = call("verify", folder.path, "--json", "--ignore", "no-config", "--ignore", "bad-scale,no-config")
    assert json.loads(done.stdout)["ignored"] == ["no-config", "bad-scale"]


def test_scales_that_a_release_has_apart_are_a_note(spoiled) -> None:
    folder = spoiled("v3.1")
    scales = [f"model.layers.{layer}.self_attn.o_proj.weight{SCALE}" for layer in range(3)]
    found = [finding for finding in check(folder.path).findings if finding.code not in USUAL]
    assert [finding.code for finding in found] == ["scales-apart"] and "DeepSeek-V3.1" in found[0].what
    assert call("verify", folder.path, "--strict").returncode == 0
    folder.poke(scales[2], 0, np.full(np.prod(folder.shape(scales[2])), 2.0**-12, np.float32).tobytes())
    found = [finding for finding in check(folder.path).findings if finding.code not in USUAL]
    assert [(finding.code, finding.where) for finding in found] == [("not-power-of-two", name) for name in scales[:2]]


def test_warnings_fail_only_where_asked(spoiled) -> None:
    folder = spoiled("v3.2")
    shutil.copyfile(folder.first(), folder.path / "stray.safetensors")
    assert call("verify", folder.path).returncode == 0
    assert call("verify", folder.path, "--strict").returncode == 50
    assert call("verify", folder.path, "--ignore", "nonsense").returncode == 2


def test_it_says_whether_contents_were_checked(clean: dict[str, Path]) -> None:
    assert "contents    not checked" in dsctl("verify", clean["v3.2"])
    assert "MB read\n" in dsctl("verify", clean["v3.2"], "--deep")


def test_the_tensors_of_a_lost_shard_are_told_by_the_shard(spoiled) -> None:
    folder = spoiled("v3.2")
    folder.first().unlink()
    os.truncate(folder.first(), 99)
    report = check(folder.path)
    assert [finding.code for finding in report.findings] == ["wrong-size", "missing-shard"]


def test_what_cannot_be_reached_hides_no_other_finding(spoiled) -> None:
    folder = spoiled("v3.2")
    folder.index(lambda index: index["metadata"].update(total_size="many"))
    for path in folder.path.glob("model-*.safetensors"):
        path.unlink()
        path.symlink_to("nowhere")
    done = call("verify", folder.path, "--deep", "--json")
    found = [finding["code"] for finding in json.loads(done.stdout)["findings"]]
    assert done.returncode == 50
    assert found.count("unreadable-file") == 4 and "total-size" in found


@pytest.mark.parametrize("layout", ["published", "deepseek"])
def test_a_missing_rank_is_told_by_its_number(layout: str, clean: dict[str, Path], tmp_path: Path) -> None:
    ranks = tmp_path / "ranks"
    dsctl("shard", clean["signed"], ranks, "--layout", layout, "--tp", 2, "--quiet")
    assert codes(check(ranks)) == set()
    whole = shutil.copytree(ranks, tmp_path / "whole")
    (ranks / "dsctl.json").unlink()
    if layout == "published":
        shutil.rmtree(ranks / "rank-00001")
        assert codes(check(ranks / "rank-00000")) == {"one-rank"}
    else:
        (ranks / "model1-mp2.safetensors").unlink()
    report = check(ranks, deep=True)
    assert [(f.code, f.what) for f in report.findings if f.code not in USUAL] == [
        ("missing-rank", "rank 1 of 2 is missing")
    ]
    found = json.loads(dsctl("diff", whole, ranks, "--json"))
    assert (found["differs"], found["verdict"]) == (True, "parts")
    assert "rank 1 of 2 is missing" in dsctl("diff", whole, ranks)
    assert call("merge", ranks, tmp_path / "merged").returncode == 30


def test_copies_that_ranks_hold_are_compared(clean: dict[str, Path], tmp_path: Path) -> None:
    ranks = tmp_path / "ranks"
    dsctl("shard", clean["v3.2"], ranks, "--ep", 2, "--quiet")
    scale = f"model.layers.0.self_attn.q_a_proj.weight{SCALE}"
    rank = Folder(ranks / "rank-00001")
    rank.tensors(NORM, lambda held: held[NORM].mul_(3))
    rank.poke(scale, 0, b"\0\0\xc0\x7f")
    (ranks / "dsctl.json").unlink()
    assert codes(check(ranks)) == {"bad-scale"}
    found = {(f.code, f.where): f.what for f in check(ranks, deep=True).findings if f.code not in USUAL}
    assert {code for code, _ in found} == {"bad-scale", "copies-differ", "not-finite"}
    assert f"rank-00001/{rank.file(NORM).name} and" in found["copies-differ", NORM]
    assert ("copies-differ", scale) in found
    assert f"in rank-00001/{rank.file(scale).name}" in found["bad-scale", scale]


def group(config: dict[str, Any]) -> dict[str, Any]:
    return config["quantization_config"]["config_groups"]["group_0"]


DRESSED = {
    "another group size": ("group_size 64", lambda c: group(c)["weights"].update(group_size=64)),
    "other bits": ("num_bits 8", lambda c: group(c)["weights"].update(num_bits=8)),
    "another format": ("format is 'nvfp4", lambda c: c["quantization_config"].update(format="nvfp4-pack-quantized")),
    "another format of the group": ("format nvfp4", lambda c: group(c).update(format="nvfp4-pack-quantized")),
    "targets that nothing fits": ("no target", lambda c: group(c).update(targets=["re:.*nothing$"])),
    "a class that nothing is of": ("no target", lambda c: group(c).update(targets=["Conv2d"])),
    "all left out": ("excludes it", lambda c: c["quantization_config"].update(ignore=["re:.*"])),
}


@pytest.fixture(scope="module")
def int4(clean: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int4") / "int4"
    dsctl("convert", clean["signed"], folder, "--to", "int4-group", "-q")
    assert codes(check(folder, deep=True)) == set()
    (folder / "dsctl.json").unlink()
    return folder


@pytest.mark.parametrize("name", DRESSED)
def test_a_config_of_groups_is_held_against_what_is_stored(name: str, int4: Path, tmp_path: Path) -> None:
    folder = Folder(Path(shutil.copytree(int4, tmp_path / "spoiled")))
    says, change = DRESSED[name]
    folder.config(change)
    found = [finding for finding in check(folder.path).findings if finding.code not in USUAL]
    assert [(finding.code, finding.where) for finding in found] == [("format-not-declared", "config.json")]
    assert says in found[0].what
    assert "--fix" not in call("verify", folder.path).stderr


def test_a_group_that_nothing_fits_is_named(int4: Path, tmp_path: Path) -> None:
    folder = Folder(Path(shutil.copytree(int4, tmp_path / "spoiled")))
    more = {"group_1": {"targets": ["re:.*nothing$"], "weights": None}}
    folder.config(lambda c: more["group_1"].update(weights=group(c)["weights"]))
    folder.config(lambda c: c["quantization_config"]["config_groups"].update(more))
    found = [str(finding) for finding in check(folder.path).findings if finding.code not in USUAL]
    assert len(found) == 1 and "group_1" in found[0]


def test_a_stated_shape_is_read(int4: Path, tmp_path: Path) -> None:
    folder = Folder(Path(shutil.copytree(int4, tmp_path / "spoiled")))
    folder.poke(f"{EXPERT}_shape", 0, (7).to_bytes(8, "little"))
    assert codes(check(folder.path)) == set()
    found = [finding for finding in check(folder.path, deep=True).findings if finding.code not in USUAL]
    assert [(finding.code, finding.where) for finding in found] == [("wrong-shape", f"{EXPERT}_shape")]
    assert "states [7, 256]" in found[0].what


def strip(folder: Folder) -> None:
    for path in folder.path.glob("model-*.safetensors"):
        folder.reheader(path, lambda header: header.pop("__metadata__"))


METADATA = {
    "index": lambda f: (f.path / INDEX).unlink(),
    "broken index": lambda f: os.truncate(f.path / INDEX, 10),
    "misplaced": misplaced,
    "total": lambda f: f.index(lambda index: index["metadata"].update(total_size=7)),
    "format pt": strip,
    "no quantization_config": no_quantization,
    "ue8m0": lambda f: f.config(lambda config: config["quantization_config"].pop("scale_fmt")),
    "block size": lambda f: f.config(lambda config: config["quantization_config"].update(weight_block_size=[64, 64])),
    "dtype": lambda f: f.config(lambda config: config.update(torch_dtype="float16")),
    "side file": lambda f: (f.path / "tokenizer.json").unlink(),
    "config": lambda f: (f.path / "config.json").unlink(),
}


@pytest.mark.parametrize("name", METADATA)
def test_metadata_is_mended_and_weights_are_not_touched(name: str, spoiled, clean: dict[str, Path]) -> None:
    folder = spoiled("v3.2")
    METADATA[name](folder)
    arguments = ("verify", folder.path, "--against", clean["v3.2"], "--fix")
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    dry = call(*arguments, "--dry-run")
    assert "would fix" in dry.stderr
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before
    assert call(*arguments).returncode == 0, call(*arguments).stdout
    assert codes(check(folder.path, deep=True, against=clean["v3.2"])) == set()
    for path in clean["v3.2"].glob("*.safetensors"):
        ours, theirs = load_file(folder.path / path.name), load_file(path)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name].view(torch.uint8), bits.view(torch.uint8)) for name, bits in theirs.items())
    assert json.loads((folder.path / "config.json").read_text()) == json.loads(
        (clean["v3.2"] / "config.json").read_text()
    )


def test_quantization_config_of_a_bf16_folder_is_removed_and_the_folder_signed_again(spoiled) -> None:
    folder = spoiled("signed")
    folder.config(
        lambda config: config.update(quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    )
    strip(folder)
    signed = json.loads((folder.path / "dsctl.json").read_text())
    for path in (*folder.path.glob("model-*.safetensors"), folder.path / "config.json"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        signed["files"][path.name] = {"size": path.stat().st_size, "sha256": digest}
    (folder.path / "dsctl.json").write_text(json.dumps(signed))
    dsctl("verify", folder.path, "--fix")
    assert codes(check(folder.path, deep=True)) == set()
    assert "quantization_config" not in json.loads((folder.path / "config.json").read_text())


def test_a_damaged_signed_file_is_not_signed_again(spoiled) -> None:
    folder = spoiled("signed")
    strip(folder)
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    done = call("verify", folder.path, "--fix")
    assert done.returncode == 50 and "file left unchanged" in done.stderr
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


def test_one_damaged_scale_does_not_change_what_the_config_says(spoiled) -> None:
    folder = spoiled("v3.2")
    folder.scale(3e-4)
    assert call("verify", folder.path, "--fix").returncode == 50
    assert json.loads((folder.path / "config.json").read_text())["quantization_config"]["scale_fmt"] == "ue8m0"


def test_what_is_not_metadata_stays_wrong(spoiled) -> None:
    folder = spoiled("v3.2")
    drop(folder, NORM)
    done = call("verify", folder.path, "--fix")
    assert done.returncode == 50 and "nothing to fix" in done.stderr


def test_unfinished_work_is_not_mended(spoiled) -> None:
    folder = spoiled("v3.2")
    (folder.path / ".dsctl").mkdir()
    assert call("verify", folder.path, "--fix").returncode == 30


def test_a_link_s_target_is_left_alone(spoiled, tmp_path: Path) -> None:
    folder = spoiled("v3.2")
    strip(folder)
    blobs = tmp_path / "models--x" / "blobs"
    snapshot = tmp_path / "models--x" / "snapshots" / "0"
    blobs.parent.mkdir()
    snapshot.parent.mkdir()
    shutil.move(folder.path, blobs)
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    before = (blobs / FIRST).read_bytes()
    dsctl("verify", snapshot, "--fix")
    assert (blobs / FIRST).read_bytes() == before
    assert not (snapshot / FIRST).is_symlink()
    assert stat.S_IMODE((snapshot / FIRST).stat().st_mode) & 0o044


def test_the_page_explains_every_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "verify.md").read_text()
    assert [code for code, kind in CODES.items() if f"| `{code}` | {kind.severity} |" not in page] == []
