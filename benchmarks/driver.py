"""What the driver costs at the size of V4-Pro and V3.2, and what that leaves for many workers.

    python benchmarks/driver.py [--folder DIR] [--size 2GB]

A hollow checkpoint has the names, shapes and files of the real one and no blocks on the disk. The plan is made of it;
the driver hands out all jobs to workers that do nothing, so that what is left is its own cost: submitting, receipts,
a journal that is on the disk before the next step, renames, digests. Then the journal is replayed, also at 100,000
records. Each release has a process of its own, whose largest memory is told. Last, real jobs: the
processor time of one, and how much of it is spent under the interpreter's lock.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

from dsctl.checkpoint.opening import open_checkpoint
from dsctl.core.digests import SIZE
from dsctl.core.progress import Advance
from dsctl.plan.plan import Job, Plan
from dsctl.plan.planner import make_plan
from dsctl.plan.request import Request
from dsctl.plan.stretches import written
from dsctl.run.dispatch import Dispatch, prepare_all
from dsctl.run.journal import Journal
from dsctl.run.resuming import RunState, replay
from dsctl.run.signing import as_text
from dsctl.stores.local import LocalFolder
from dsctl.tiny import make
from dsctl.tiny.blueprint import TinyRecipe
from dsctl.work.job import perform
from dsctl.work.tasks import Context, Receipt, Seal
from tests.support.full_size import hollow

RECORDS, ROUNDS = 100_000, 3


class Idle:
    """An executor whose tasks are done before they are begun; each is sent through a pipe's worth of pickling."""

    capacity = 64

    def __init__(self) -> None:
        self._tasks: deque[Job | Seal] = deque()
        self.nbytes = 0

    def submit(self, task: Job | Seal) -> None:
        data = pickle.dumps(task)
        self.nbytes += len(data)
        self._tasks.append(task)

    def next(self, progress: Advance) -> Receipt:
        task = self._tasks.popleft()
        assert not isinstance(task, Seal)
        return Receipt(task.number, {}, digests=made_up(task))

    def close(self) -> None:
        pass


def made_up(job: Job) -> bytes:
    """As many digests as the receipt of a job has."""
    return bytes(SIZE) * sum(1 for _ in written(job))


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """What a call gives, its wall seconds and this process's processor seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def drive(plan: Plan, folder: Path) -> float:
    """Have a plan done by nobody; prints the driver's costs and gives its processor seconds per job."""
    working, idle = folder / ".dsctl", Idle()
    working.mkdir(parents=True)
    _, wall, _ = timed(lambda: prepare_all(plan, folder, RunState(), plan.jobs))
    print(f"make {len(plan.files)} files of {plan.bytes_out / 1e9:.0f} GB, sparse: {wall:.2f} s")
    with Journal(working) as journal:
        work = Dispatch(plan, folder, journal, RunState())
        _, wall, cpu = timed(lambda: work.carry_out(idle, deque(plan.jobs), lambda event: None))
    tasks = len(plan.jobs)
    print(
        f"{len(plan.jobs):,} jobs: {tasks / wall:,.0f} a second, {1000 * cpu / tasks:.3f} ms of processor and "
        f"{1000 * wall / tasks:.3f} ms of wall time each, {idle.nbytes / tasks / 1e3:.1f} kB sent each"
    )
    shutil.copy(working / "journal.jsonl", folder / "kept")
    return cpu / tasks


def reread(plan: Plan, folder: Path) -> None:
    """Replay the journal of the run, and one of `RECORDS` jobs."""
    working = folder / ".dsctl"

    def again() -> int:
        with Journal(working) as journal:
            return len(replay(plan, folder, journal).done)

    jobs, wall, _ = timed(again)
    print(f"replay of {jobs:,} jobs: {wall:.3f} s")
    counts = {"blocks_restored": 123_456, "blocks_computed": 789}
    some = plan.jobs[0]._replace(steps=plan.jobs[0].steps[:4])
    plan.jobs = [some._replace(number=number) for number in range(RECORDS)]
    record = {"counts": counts, "digests": as_text(made_up(some))}
    lines = [json.dumps({"job": n, **record}, separators=(",", ":")) for n in range(RECORDS)]
    (working / "journal.jsonl").write_text("\n".join(lines) + "\n")
    jobs, wall, _ = timed(again)
    print(f"replay of {jobs:,} jobs: {wall:.3f} s")


def share_under_lock(folder: Path, size: str) -> float:
    """Do real jobs in one thread, then in two of one process; gives the processor seconds of a source gigabyte."""
    import torch

    from dsctl.cli.options import parse_size

    torch.set_num_threads(1)
    wide = {"hidden": 7168, "moe_intermediate": 2048, "heads": 16, "vocab": 8192, "layers": 2}
    make("v3.2", folder / "source", TinyRecipe(size=parse_size(size, "--size"), **wide))
    store = LocalFolder.at(folder / "source")
    plan = make_plan(open_checkpoint(store), Request("bf16"))
    (folder / "target").mkdir()
    prepare_all(plan, folder / "target", RunState(), plan.jobs)
    context = Context(store, str(folder / "target"))

    def one(jobs: list[Job]) -> None:
        for job in jobs:
            perform(job, context, lambda nbytes: None)

    def two() -> None:
        threads = [Thread(target=one, args=(plan.jobs[start::2],)) for start in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    one(plan.jobs)
    alone, beside = [], []
    for _ in range(3):
        _, wall, cpu = timed(lambda: one(plan.jobs))
        alone.append((wall, cpu))
        beside.append(timed(two)[1])
    wall, cpu = min(alone)
    steps = sum(len(job.steps) for job in plan.jobs)
    read = sum(step.read_bytes for step in plan.steps)
    share = max(0.0, 2 * min(beside) / wall - 1)
    print(
        f"{len(plan.jobs)} jobs of {steps} parameters, {read / 1e9:.2f} GB read: {wall:.2f} s in one thread, "
        f"{min(beside):.2f} s in two of one process: at most {share:.0%} of the time is under the interpreter's lock"
    )
    print(f"{cpu / len(plan.jobs) * 1000:.0f} ms of processor time per job, {cpu / read * 1e9:.2f} s per GB read")
    return cpu / len(plan.jobs)


def planned(folder: Path, release: str) -> Plan:
    """A plan of a hollow checkpoint, the quickest of several, each from its files."""
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        checkpoint, opened, _ = timed(lambda: open_checkpoint(LocalFolder.at(folder)))
        _, matched, _ = timed(lambda checkpoint=checkpoint: checkpoint.survey)
        plan, made, _ = timed(lambda checkpoint=checkpoint: make_plan(checkpoint, Request("bf16")))
        for step, wall in (("open", opened), ("match", matched), ("plan", made), ("in all", opened + matched + made)):
            best[step] = min(best.get(step, wall), wall)
    tensors = sum(len(header.names) for header in checkpoint.headers.values())
    walls = ", ".join(f"{step} {wall:.2f} s" for step, wall in best.items())
    print(f"{release}, {tensors:,} tensors in {len(checkpoint.headers)} files: {walls}")
    return plan


def whole_driver(folder: Path, release: str) -> float:
    """Plan and drive a hollow checkpoint in a process of its own; gives the driver's processor seconds per job."""
    folder.mkdir()
    plan = planned(hollow(folder / "source", release), release)
    after_plan = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    driver = drive(plan, folder / "driven")
    after_all = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    steps = len(plan.steps)
    print(
        f"memory of the driver, {steps:,} parameters: {after_plan:.0f} MiB after planning, {after_all:.0f} MiB at most"
    )
    reread(plan, folder / "driven")
    return driver


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--size", default="2GB")
    parser.add_argument("--release", nargs="+", default=["v4-pro", "v3.2"], help="planned and driven")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="dsctl-bench-") as name:
        work = Path(name)
        for release in arguments.release:
            with ProcessPoolExecutor(1) as alone:
                driver = alone.submit(whole_driver, work / release, release).result()
        job = share_under_lock(work, arguments.size)
        print(f"one driver keeps {job / driver:,.0f} workers busy")


if __name__ == "__main__":
    main()
