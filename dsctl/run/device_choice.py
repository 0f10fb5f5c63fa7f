"""The devices that a run computes on, and the reason: what was asked for, or what was measured to be faster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from dsctl.core.amounts import plural
from dsctl.core.extras import require_torch
from dsctl.core.processors import cores
from dsctl.plan.plan import Plan
from dsctl.run.resources import GPU_THREADS
from dsctl.work.executors import AUTO, CPU, choose_devices, cuda_devices

# Devices of the system without which there is no CUDA device: on Linux, and on Windows' Linux.
_NODES = ("/dev/nvidiactl", "/dev/dxg")


class Chosen(NamedTuple):
    """Devices by torch's names, and a line about the choice; empty if there is nothing to say."""

    devices: tuple[str, ...]
    why: str = ""


def choose_device(asked: str, engine: str, plan: Plan) -> Chosen:
    """The devices for a plan. `auto` measures the processor and the GPUs on the plan's own codecs.

    Raises:
        UsageError: the text is not a device. PlanError: this machine does not have it, or torch is not installed.
    """
    if asked == CPU:
        return Chosen((CPU,))
    if asked == AUTO:
        return _auto(engine, plan)
    require_torch("computing on a GPU")
    devices = choose_devices(asked, engine)
    if engine == "ray":
        return Chosen(devices)
    return Chosen(devices, _warning(asked, plan, devices))


def _auto(engine: str, plan: Plan) -> Chosen:
    if engine == "ray":
        return Chosen((CPU,), _on_cpu("the GPUs of a cluster are not measured; --device cuda uses them"))
    if not any(map(os.path.exists, _NODES)):
        return Chosen((CPU,), _on_cpu("this machine has no CUDA device"))
    require_torch("computing on a GPU")
    devices = cuda_devices()
    if not devices:
        return Chosen((CPU,), _on_cpu("torch finds no CUDA device"))
    speeds = measured(plan, devices)
    if speeds is None:
        return Chosen((CPU,), _on_cpu("this plan only moves or recasts bytes"))
    if speeds.gpus > speeds.processor:
        return Chosen(devices, f"--device auto: {plural(len(devices), 'GPU')}, because {speeds.words(len(devices))}")
    return Chosen((CPU,), _on_cpu(speeds.words(len(devices))))


def _on_cpu(why: str) -> str:
    return f"--device auto: the processor, because {why}"


def _warning(asked: str, plan: Plan, devices: Sequence[str]) -> str:
    """The line for GPUs that were asked for where they do not help."""
    speeds = measured(plan, devices)
    if speeds is None:
        return f"--device {asked}: a GPU does not help, because this plan only moves or recasts bytes"
    if speeds.processor > speeds.gpus:
        return f"--device {asked}: the processor would be faster, because {speeds.words(len(devices))}"
    return ""


class DeviceSpeeds(NamedTuple):
    """Values per second: of all cores together, and of all GPUs together with their copies."""

    processor: float
    gpus: float

    def words(self, count: int) -> str:
        """Both speeds in words."""
        ours = f"{plural(cores(), 'core')} compute {self.processor / 1e9:,.1f} billion values/s"
        return f"{ours}, {plural(count, 'GPU')} {self.gpus / 1e9:,.1f} billion with the copies"


def measured(plan: Plan, devices: Sequence[str]) -> DeviceSpeeds | None:
    """The speeds for a plan's largest kind of work; None if nothing in it is computed."""
    from dsctl.work.trial import computed, rates

    step = computed(plan.steps)
    if step is None:
        return None
    found = rates(step, devices, GPU_THREADS)
    return DeviceSpeeds(found[CPU] * cores(), sum(found[name] for name in devices))
