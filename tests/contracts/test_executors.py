"""What every executor promises, over the whole table: a new entry is tested unasked."""

from __future__ import annotations

import hashlib
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch

from dsctl.checkpoint.opening import open_checkpoint
from dsctl.core.errors import SourceError, WorkError
from dsctl.plan.plan import Plan
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.run.driver import run
from dsctl.run.events import Advanced, Event
from dsctl.stores import Store
from dsctl.stores.local import LocalFolder
from dsctl.work import job as work
from dsctl.work.executors import EXECUTORS, Executor, processes
from dsctl.work.tasks import Context
from tests.support.checkpoints import smaller

Make = Callable[[Context], Executor]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return LocalFolder.at(smaller(tmp_path_factory, "v3.2"))


@pytest.fixture(scope="module")
def plan(store: Store) -> Plan:
    return make_plan(open_checkpoint(store), Request("bf16"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    from tests.ray.cluster import Nodes

    nodes = Nodes(2)
    yield nodes.address
    nodes.close()


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.ray] * (name == "ray")) for name in EXECUTORS]
)
def make(request: pytest.FixtureRequest) -> Make:
    if request.param != "ray":
        return lambda context: EXECUTORS[request.param](context, 2)
    return partial(EXECUTORS["ray"], workers=3, address=request.getfixturevalue("cluster"))  # type: ignore[call-arg]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def expected(plan: Plan, store: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("serial") / "out"
    run(plan, store, folder, lambda: EXECUTORS["serial"](Context(store, str(folder)), 1))
    return contents(folder)


def test_it_gives_the_serial_run_s_bytes_and_tells_of_all_of_them(
    make: Make, plan: Plan, store: Store, expected: dict[str, str], tmp_path: Path
) -> None:
    told: list[Event] = []
    run(plan, store, tmp_path / "out", lambda: make(Context(store, str(tmp_path / "out"))), told.append)
    assert contents(tmp_path / "out") == expected
    assert sum(event.nbytes for event in told if isinstance(event, Advanced)) == plan.bytes_in


def test_each_task_has_one_receipt(make: Make, plan: Plan, store: Store, tmp_path: Path) -> None:
    for file in plan.files:
        (tmp_path / f"{file.name}.part").write_bytes(bytes(file.size))
    workers = make(Context(store, str(tmp_path)))
    try:
        for job in plan.jobs[: workers.capacity]:
            workers.submit(job)
        receipts = Counter(workers.next(lambda nbytes: None).job for _ in plan.jobs[: workers.capacity])
    finally:
        workers.close()
    assert receipts == Counter(job.number for job in plan.jobs[: workers.capacity])


def test_what_a_task_raises_is_raised_as_it_is(make: Make, plan: Plan, store: Store, tmp_path: Path) -> None:
    workers = make(Context(store, str(tmp_path)))
    try:
        workers.submit(plan.jobs[0])
        with pytest.raises(WorkError, match=r"\.part: No such file"):
            workers.next(lambda nbytes: None)
    finally:
        workers.close()


def test_a_source_that_is_gone_is_a_source_error(make: Make, plan: Plan, tmp_path: Path) -> None:
    workers = make(Context(LocalFolder(str(tmp_path)), str(tmp_path)))
    try:
        workers.submit(plan.jobs[0])
        with pytest.raises(SourceError, match="No such file"):
            workers.next(lambda nbytes: None)
    finally:
        workers.close()


def test_workers_take_the_devices_in_turn(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, ...]] = []

    class Server:
        """Starts nothing, and notes what a worker would be told."""

        Pipe = staticmethod(multiprocessing.Pipe)

        def Process(self, target: object, args: tuple[object, Context], daemon: bool) -> Mock:  # noqa: N802  its name
            told.append(args[1].devices)
            return Mock()

    monkeypatch.setattr(processes, "prepare", Server)
    processes.Processes(Context(store, str(tmp_path), devices=("cuda:0", "cuda:1")), 4).close()
    assert told == [("cuda:0",), ("cuda:1",)] * 2


def test_a_device_whose_memory_is_too_small_is_told(plan: Plan, store: Store, tmp_path: Path) -> None:
    full = patch.object(work, "_step", side_effect=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    with full, pytest.raises(WorkError, match="cpu: out of memory") as told:
        work.perform(plan.jobs[0], Context(store, str(tmp_path)), lambda nbytes: None)
    assert "--workers" in str(told.value.hint)


def test_a_library_that_fails_without_a_word_is_told(plan: Plan, store: Store, tmp_path: Path) -> None:
    failed = patch.object(work, "_step", side_effect=SystemError("error return without exception set"))
    with failed, pytest.raises(WorkError, match="a library failed without giving a reason"):
        work.perform(plan.jobs[0], Context(store, str(tmp_path)), lambda nbytes: None)


def test_it_closes_at_once_whatever_is_under_way(make: Make, plan: Plan, store: Store, tmp_path: Path) -> None:
    workers = make(Context(store, str(tmp_path)))
    for job in plan.jobs[: workers.capacity]:
        workers.submit(job)
    began = time.monotonic()
    workers.close()
    assert time.monotonic() - began < 5
