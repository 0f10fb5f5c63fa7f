"""Runs that merge an adapter: killed and resumed to the same bytes; an adapter that changed is not resumed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch

import dsctl as api
from dsctl.core.errors import UsageError
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl
from tests.support.factors import fitting
from tests.support.folders import tensors
from tests.support.forks import Launcher

KILLS = 5
MODULES = (
    "model.layers.0.self_attn.o_proj", "model.layers.1.self_attn.q_b_proj", "model.layers.1.mlp.experts.2.up_proj",
)  # fmt: skip


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file, the audit included."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3.2")


@pytest.fixture(scope="module")
def adapter(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fitting(source, tmp_path_factory.mktemp("adapter"), MODULES)


@pytest.mark.parametrize("asked", [(), ("--bf16",)], ids=["kept", "bf16"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_killed_at_random_moments_it_resumes_to_the_same_bytes(
    source: Path, adapter: Path, tmp_path: Path, asked: tuple[str, ...], workers: str, launcher: Launcher
) -> None:
    words = ("--lora", adapter, "--workers", workers, *asked)
    whole = launcher.good("convert", source, tmp_path / "whole", *words)
    chance, target = random.Random(f"{asked}{workers}"), tmp_path / "out"
    for _ in range(KILLS):
        running = launcher.start("convert", source, target, *words)
        time.sleep(chance.uniform(0.1, 1.0) * whole.seconds)
        running.kill("driver")
        running.wait()
    dsctl("convert", source, target, *words)
    assert contents(target) == contents(tmp_path / "whole")


@pytest.mark.parametrize("point", ["prepared", "first job", "first file", "before config"])
def test_stopped_at_every_moment(source: Path, adapter: Path, tmp_path: Path, point: str, launcher: Launcher) -> None:
    after = {
        "prepared": "dsctl.run.dispatch._prepare",
        "first job": "dsctl.run.journal.Journal.append",
        "first file": "dsctl.run.dispatch._rename",
        "before config": "dsctl.run.dispatch.Dispatch.carry_out",
    }[point]
    dsctl("convert", source, tmp_path / "whole", "--lora", adapter)
    done = launcher.start("convert", source, tmp_path / "out", "--lora", adapter, last=(after, 1)).wait()
    assert done.code == 9, done.told()
    dsctl("convert", source, tmp_path / "out", "--lora", adapter)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def changed(adapter: Path, place: Path, what: str) -> Path:
    """A copy of an adapter with one value, its alpha or its rank different."""
    folder = Path(shutil.copytree(adapter, place))
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if what == "value":
        raw = bytearray(weights.read_bytes())
        # The largest byte of the first tensor's first value: the first factor that the first jobs read.
        raw[8 + int.from_bytes(raw[:8], "little") + 3] ^= 1
        weights.write_bytes(raw)
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 16}))
    return folder


@pytest.mark.parametrize(("what", "finished"), [("value", True), ("alpha", True), ("alpha", False)])
def test_a_changed_adapter_is_not_resumed(
    source: Path, adapter: Path, tmp_path: Path, what: str, finished: bool, launcher: Launcher
) -> None:
    place = tmp_path / "adapter"
    begin(source, Path(shutil.copytree(adapter, place)), tmp_path / "out", finished, launcher)
    before = contents(tmp_path / "out")
    shutil.rmtree(place)
    done = call("convert", source, tmp_path / "out", "--lora", changed(adapter, place, what))
    assert done.returncode == 40 and "adapter" in done.stderr, done.stderr
    assert contents(tmp_path / "out") == before


def test_work_on_an_adapter_whose_values_have_changed_is_made_again(
    source: Path, adapter: Path, tmp_path: Path, launcher: Launcher
) -> None:
    place = tmp_path / "adapter"
    begin(source, Path(shutil.copytree(adapter, place)), tmp_path / "out", False, launcher)
    shutil.rmtree(place)
    changed(adapter, place, "value")
    for target in ("out", "whole"):
        dsctl("convert", source, tmp_path / target, "--lora", place)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    dsctl("convert", source, tmp_path / "before", "--lora", adapter)
    other = {
        name for name, one in tensors(tmp_path / "before").items() if not same(one, tensors(tmp_path / "out")[name])
    }
    assert other


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def begin(source: Path, adapter: Path, target: Path, finished: bool, launcher: Launcher) -> None:
    """Merge an adapter, or stop after three of the jobs."""
    stop = None if finished else ("dsctl.run.journal.Journal.append", 3)
    done = launcher.start("convert", source, target, "--lora", adapter, **({"last": stop} if stop else {})).wait()
    assert done.code == (0 if finished else 9), done.told()


def test_the_same_adapter_is_recognized(source: Path, adapter: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "out", "--lora", adapter)
    said = dsctl("convert", source, tmp_path / "out", "--lora", adapter)
    assert "is already complete" in said and "lora: attention: 2 matrices" in said
    assert call("convert", source, tmp_path / "out", "--bf16").returncode == 40


def test_the_audit_names_the_adapter_and_its_files(source: Path, adapter: Path, tmp_path: Path) -> None:
    dsctl("convert", source, tmp_path / "out", "--lora", adapter)
    audit = json.loads((tmp_path / "out" / "dsctl.json").read_text())
    said = audit["lora"]
    assert said["place"] == str(adapter) and (said["r"], said["alpha"], said["modules"]) == (4, 8, 3)
    assert {role: one["matrices"] for role, one in said["roles"].items()} == {"attention": 2, "routed experts": 1}
    files = [file for file in audit["source"]["files"] if file.startswith("adapter://")]
    assert sorted(files) == ["adapter://adapter_config.json", "adapter://adapter_model.safetensors"]
    assert audit["audit"]["merged"] == 3 and not any(name.startswith("lora") for name in audit["audit"])
    assert audit["request"]["lora"] == str(adapter)


def test_the_target_may_not_lie_in_the_adapters_folder(source: Path, adapter: Path) -> None:
    done = call("convert", source, adapter / "out", "--lora", adapter)
    assert done.returncode == 30 and not os.path.exists(adapter / "out")


def test_from_python(source: Path, adapter: Path, tmp_path: Path) -> None:
    result = api.open(str(source)).to("bf16", lora=adapter).run(tmp_path / "out")
    assert result.ok and result["lora"]["modules"] == 3
    with pytest.raises(UsageError):
        api.open(str(source)).to("nothing", lora=adapter)
