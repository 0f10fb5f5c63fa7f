"""`--device`: what is chosen, and the reason that is given. GPUs are played by the processor under another name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsctl.checkpoint.opening import open_checkpoint
from dsctl.plan.plan import Plan
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.run import carry_out, device_choice
from dsctl.run.device_choice import Chosen, DeviceSpeeds, choose_device, measured
from dsctl.run.resources import GPU_THREADS, allot
from dsctl.stores.local import LocalFolder
from tests.support.checkpoints import tiny
from tests.support.command import call, dsctl

PLAYED = ("cpu:0", "cpu:1")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory, "v3.2")


@pytest.fixture(scope="module")
def plan(source: Path) -> Plan:
    return make_plan(open_checkpoint(LocalFolder.at(source)), Request("bf16"))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device_choice, "_NODES", (str(tmp_path),))
    monkeypatch.setattr(device_choice, "cuda_devices", lambda: PLAYED)
    monkeypatch.setattr(device_choice, "choose_devices", lambda asked, engine: PLAYED)


def speeds(processor: float, gpus: float) -> object:
    return lambda plan, devices: DeviceSpeeds(processor, gpus)


def test_the_processor_needs_no_reason(plan: Plan) -> None:
    assert choose_device("cpu", "processes", plan) == Chosen(("cpu",))


def test_auto_without_a_gpu_is_the_processor_and_says_why(source: Path, tmp_path: Path) -> None:
    done = call("convert", source, tmp_path / "out", "--bf16", "--device", "auto", "--dry-run")
    assert (
        done.returncode == 0 and "--device auto: the processor, because this machine has no CUDA device" in done.stderr
    )
    found = json.loads(dsctl("convert", source, tmp_path / "out", "--bf16", "--device", "auto", "--dry-run", "--json"))
    assert found["devices"] == ["cpu"] and "no CUDA device" in found["device_reason"]
    plain = json.loads(dsctl("convert", source, tmp_path / "out", "--bf16", "--dry-run", "--json"))
    assert plain["devices"] == ["cpu"] and plain["device_reason"] is None
    dsctl("convert", source, tmp_path / "out", "--bf16", "--device", "auto")


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(("processor", "others", "devices"), [(2e9, 1e9, ("cpu",)), (1e9, 2e9, PLAYED)])
def test_auto_is_what_was_faster(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, processor: float, others: float, devices: tuple[str, ...]
) -> None:
    monkeypatch.setattr(device_choice, "measured", speeds(processor, others))
    chosen = choose_device("auto", "processes", plan)
    assert chosen.devices == devices
    assert f"{processor / 1e9:.1f} billion values/s" in chosen.why and "2 GPUs" in chosen.why
    warned = choose_device("cuda", "processes", plan)
    assert warned.devices == PLAYED
    assert bool(warned.why) == (devices == ("cpu",))
    assert "the processor would be faster" in warned.why or not warned.why


@pytest.mark.usefixtures("gpus")
def test_what_is_only_moved_needs_no_gpu(source: Path) -> None:
    moving = make_plan(open_checkpoint(LocalFolder.at(source)), Request("keep"))
    assert measured(moving, PLAYED) is None
    assert choose_device("auto", "processes", moving) == Chosen(
        ("cpu",), "--device auto: the processor, because this plan only moves or recasts bytes"
    )
    assert "a GPU does not help" in choose_device("cuda", "processes", moving).why


@pytest.mark.parametrize("format_", ["bf16", "nvfp4", "int4-group", "fp8-channel"])
def test_the_plan_s_own_codecs_are_measured(source: Path, format_: str) -> None:
    plan = make_plan(open_checkpoint(LocalFolder.at(source)), Request(format_))
    found = measured(plan, PLAYED)
    assert found is not None and found.processor > 1e6 and found.gpus > 1e6


def test_a_cluster_s_gpus_are_not_measured(plan: Plan) -> None:
    assert choose_device("auto", "ray", plan).devices == ("cpu",)


def test_there_is_one_worker_for_each_gpu_with_many_jobs_at_once(plan: Plan) -> None:
    plan.jobs = plan.jobs * 16
    found = allot(plan, usual=2, threads=GPU_THREADS)
    assert (found.workers, found.threads) == (2, GPU_THREADS)
    assert allot(plan, workers=3, usual=2).workers == 3


@pytest.mark.usefixtures("gpus")
def test_the_bytes_are_those_of_the_processor(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_choice, "measured", speeds(1, 2))
    for device in ("auto", "cpu"):
        dsctl("convert", source, tmp_path / device, "--bf16", "--workers", "1", "--device", device)
    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / device).iterdir()} for device in ("auto", "cpu")
    )
    assert ours == theirs
    assert carry_out.choose_device is choose_device
