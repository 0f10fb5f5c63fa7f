"""The tasks of workers and their receipts: plain data, for any process or machine. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dsctl.plan.plan import BAND_BYTES
from dsctl.stores import Store

# The largest error after re-quantizing because of a cut, in millionths of the part's largest value. Totals keep the
# maximum of this count, and the sum of all others.
WORST = "worst_error_millionths"
# The parts of a job's time, in seconds: waiting for the system and working.
READ, COMPUTE, WRITE, DIGEST = "read", "compute", "write", "digest"
# The processor's part of that time.
PROCESSOR = "processor"
# Decoded values that are not finite, from codes that mean NaN or from scales too large for the target's dtype.
NAN, INFINITE = "values_not_a_number", "values_infinite"
# Restored files whose SHA-256 is, and is not, that of the release.
AS_RELEASED, UNLIKE_RELEASED = "files_as_released", "files_unlike_released"


def add(total: dict[str, int], counts: Mapping[str, int]) -> None:
    """Add the counts of one band, step or job to a total."""
    for name, count in counts.items():
        total[name] = max(total.get(name, 0), count) if name == WORST else total.get(name, 0) + count


class Seal(NamedTuple):
    """A finished file to read back for its SHA-256."""

    file: str


class Receipt(NamedTuple):
    """A finished job's number and counts, the digests of the stretches that it wrote (see `dsctl.plan.stretches`), and
    its seconds by what they were spent on; or a file that was read back, and its SHA-256."""

    job: int | None
    counts: dict[str, int]
    file: str | None = None
    sha256: str = ""
    digests: bytes = b""
    seconds: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class Context:
    """The settings that all jobs of a run share: source and target; each worker computes on one of the devices.

    A worker does `threads` jobs at once, so that one is read or written while another is computed.
    """

    store: Store
    folder: str
    band_bytes: int = BAND_BYTES
    devices: tuple[str, ...] = ("cpu",)
    threads: int = 1
