"""The machine's resources and a run's share of them: memory, workers. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from dsctl.core.errors import PlanError
from dsctl.core.processors import cores
from dsctl.plan.plan import BAND_BYTES, Plan

# Resident size of a Python process after importing torch and running its first kernels (measured, torch 2.13 on
# Linux). The system may map some 60 MB more of the libraries' files, and drops them when memory is short.
WORKER_BYTES = 238 << 20
# The part of it that several workers share, as forks of one process that has imported torch.
SHARED_BYTES = 192 << 20
# The driver without torch: interpreter, libraries, and per step of the plan.
DRIVER_BYTES = 50 << 20
STEP_BYTES = 6 << 10
# Below this much output, one process finishes before others have started.
SMALL_BYTES = 512 << 20
# Jobs that a worker does at once: one is read or written while another is computed.
THREADS = 2
# Of a worker with a GPU there is one per GPU: its jobs read, digest and write while others compute.
GPU_THREADS = 8
LEAST_BAND = 1 << 20
# A thread that patches: the pieces of both sides and of the frame, and numpy with a share of its library.
BYTE_THREAD_BYTES = 12 << 20


@dataclass(frozen=True, slots=True)
class Resources:
    """The layout of a run on this machine: workers and the threads of each, bytes of float32 per band, and memory in
    bytes."""

    workers: int
    threads: int
    band_bytes: int
    worker_bytes: int
    driver_bytes: int

    @property
    def memory(self) -> int:
        """Peak memory of all processes together, in bytes."""
        if self.workers == 1:
            return self.driver_bytes + self.worker_bytes - DRIVER_BYTES
        return self.driver_bytes + SHARED_BYTES + self.workers * (self.worker_bytes - SHARED_BYTES)


def allot(
    plan: Plan,
    workers: int | None = None,
    budget: int | None = None,
    ahead: int = 0,
    usual: int = 0,
    threads: int = THREADS,
) -> Resources:
    """Choose workers and band size: as many workers as cores and jobs (or `usual`), within the budget in bytes.

    `ahead` are the bytes that each of a worker's jobs reads ahead, `threads` the most jobs of a worker at once.

    Raises:
        PlanError: the budget is too small for one worker.
    """
    driver = DRIVER_BYTES + STEP_BYTES * len(plan.steps)
    small = plan.bytes_out < SMALL_BYTES
    wanted = workers or usual or (1 if small else max(1, min(cores(), len(plan.jobs))))
    # Merging computes more than it reads and writes: a second job at once would only take memory.
    most = 1 if plan.merge else min(threads, max(1, -(-len(plan.jobs) // wanted)))
    for at_once, band in product(range(most, 0, -1), _bands()):
        each = WORKER_BYTES + at_once * (ahead + plan.peak_bytes(band))
        for count in (wanted,) if workers else range(wanted, 0, -1):
            found = Resources(count, at_once, band, each, driver)
            if budget is None or found.memory <= budget:
                return found
    least = Resources(workers or 1, 1, LEAST_BAND, WORKER_BYTES + ahead + plan.peak_bytes(LEAST_BAND), driver).memory
    raise PlanError(
        f"--max-memory {budget:,} bytes is too small: {workers or 1} worker(s) need {least:,}",
        hint="use a larger budget" + (", or fewer --workers" if workers and workers > 1 else ""),
    )


def _bands() -> list[int]:
    bands = [BAND_BYTES]
    while bands[-1] > LEAST_BAND:
        bands.append(bands[-1] // 2)
    return bands


def allot_bytes(plan: Plan, workers: int | None = None, ahead: int = 0) -> Resources:
    """Threads of this process, for jobs that move and patch bytes; each reads `ahead` bytes ahead."""
    threads = workers or min(cores(), max(1, len(plan.jobs)))
    driver = DRIVER_BYTES + STEP_BYTES * len(plan.steps)
    return Resources(1, threads, LEAST_BAND, DRIVER_BYTES + threads * (BYTE_THREAD_BYTES + ahead), driver)
