"""`dsctl verify` on DeepSeek V4: clean small checkpoints are clean, and each planted fault is found by its name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dsctl.stores.local import LocalFolder
from dsctl.verify import verify
from dsctl.verify.against import other
from dsctl.verify.findings import Report
from tests.flows.planted import Folder, Planted
from tests.flows.planted_v4 import BASE, BLOCKS, EXPERT, FLASH, PLANTED_V4, scale_of
from tests.flows.planted_v41 import PLANTED_V41, V41
from tests.support.checkpoints import smaller, tiny
from tests.support.command import call, dsctl

ALL = PLANTED_V4 | {f"V4.1: {name}": fault for name, fault in PLANTED_V41.items()}
SMALL = {"layers": 3, "experts": 4, "hidden": 256, "heads": 2, "vocab": 32, "moe_intermediate": 128, "shards": 2}
USUAL = {"twin-equal"}


def check(folder: Path, deep: bool = False, against: Path | str | None = None) -> Report:
    return verify(LocalFolder.at(folder), other(str(against)) if against else None, deep)


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings} - USUAL


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {release: tiny(tmp_path_factory, release, **sizes(release)) for release in (FLASH, BASE, BLOCKS, V41)}


def sizes(release: str) -> dict[str, int]:
    """All kinds of layers: V4.1 has more of them."""
    return {**SMALL, "layers": 8, "hidden": 128} if release == V41 else SMALL


@pytest.fixture
def spoiled(tmp_path: Path, clean: dict[str, Path]):
    return lambda release: Folder(Path(shutil.copytree(clean[release], tmp_path / "spoiled")))


@pytest.mark.parametrize("release", [FLASH, BASE, BLOCKS, "v4-pro", "v4-pro-0813", "v4-flash-vision-exp", V41])
def test_nothing_is_found_on_a_clean_checkpoint(release: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tiny(tmp_path_factory, release, **sizes(release))
    report = check(folder, deep=True, against=folder)
    assert codes(report) == set(), [str(finding) for finding in report.findings]
    assert report.checked.parameters > 100


MADE = {"bf16": ["--bf16"], "powers": ["--fp8"], "numbers": ["--fp8", "--scale-fmt", "float32"]}


@pytest.mark.parametrize(
    ("release", "kind"), [*((one, kind) for one in (FLASH, V41) for kind in MADE), (BASE, "bf16"), (BLOCKS, "powers")]
)
def test_nothing_is_found_on_what_was_made_of_one(
    release: str, kind: str, clean: dict[str, Path], tmp_path: Path
) -> None:
    made, back = tmp_path / kind, tmp_path / "back"
    dsctl("convert", clean[release], made, *MADE[kind], "--workers", 1, "-q")
    dsctl("convert", made, back, "--to", "published", "--workers", 1, "-q")
    for folder in (made, back):
        report = check(folder, deep=True, against=clean[release])
        assert codes(report) == set(), (folder.name, [str(finding) for finding in report.findings])
        assert report.checked.signed


@pytest.mark.parametrize("name", ALL)
def test_a_planted_fault_is_found_by_its_name(name: str, spoiled) -> None:
    fault: Planted = ALL[name]
    folder = spoiled(fault.release)
    fault.plant(folder)
    report = check(folder.path, fault.deep)
    found = [f for f in report.findings if f.code == fault.code and fault.where in f.where]
    assert found, [(f.code, str(f)) for f in report.findings]
    extra = codes(report) - {fault.code, *fault.also}
    assert extra == set(), [str(f) for f in report.findings if f.code in extra]
    assert set(fault.also) <= codes(report)
    if fault.deep:
        assert fault.code not in codes(check(folder.path))


def test_what_loaders_take_without_a_word_is_an_error(spoiled) -> None:
    for name in ("hyper-connections in BF16", "fp8 over four bits", "ratios for two stages too few"):
        folder = spoiled(PLANTED_V4[name].release)
        PLANTED_V4[name].plant(folder)
        done = call("verify", folder.path, "--json")
        assert done.returncode == 50 and not json.loads(done.stdout)["ok"]
        shutil.rmtree(folder.path)


@pytest.mark.parametrize(
    "name", ["fp8 over four bits", "fp4 over eight bits", "nothing said of eight bits", "no scale_fmt"]
)
def test_a_config_is_mended_and_no_weight_is_touched(name: str, spoiled, clean: dict[str, Path]) -> None:
    fault = PLANTED_V4[name]
    folder = spoiled(fault.release)
    before = {path.name: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    fault.plant(folder)
    dsctl("verify", folder.path, "--fix", "--strict")
    after = {path.name: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    assert json.loads(before.pop("config.json")) == json.loads(after.pop("config.json"))
    assert before == after


def test_a_release_is_held_against_by_name(clean: dict[str, Path]) -> None:
    report = check(clean[BLOCKS], against="v4-flash")
    said = {finding.where: finding.what for finding in report.findings if finding.code == "config-differs"}
    assert said["compress_ratios"] == "6 entries here, 44 in DeepSeek-V4-Flash"
    assert "dspark_block_size" in said and "expert_dtype" not in said
    absent = [finding.where for finding in report.findings if "not in this architecture" in finding.what]
    assert {"mtp.{layer}.e_proj.weight", "mtp.{layer}.enorm.weight"} <= {*absent}
    assert not any(finding.code == "other-storage" for finding in check(clean[BASE], against="v4-flash").findings)


def test_scales_that_are_too_many_are_left_to_a_deep_check_and_that_is_said(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(smaller(tmp_path_factory, FLASH), tmp_path / "source"))
    Folder(source).poke(scale_of(EXPERT), 7, b"\xff")
    monkeypatch.setattr("dsctl.checkpoint.scales.LOOKED_AT", 1000)
    done = call("verify", source)
    assert done.returncode == 0 and "of groups not checked: --deep reads them" in done.stdout
    checked = json.loads(call("verify", source, "--json").stdout)["checked"]
    assert checked["scales_unread"] > checked["scales"] > 0
    found = call("verify", source, "--deep", "--json")
    assert found.returncode == 50 and json.loads(found.stdout)["checked"]["scales_unread"] == 0
    assert "bad-scale" in {one["code"] for one in json.loads(found.stdout)["findings"]}
