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
# Decoded values that are not finite, from codes that mean NaN or from scales too large for the target's dtype.
NAN, INFINITE = "values_not_a_number", "values_infinite"


def add(total: dict[str, int], counts: Mapping[str, int]) -> None:
    """Add the counts of one band, step or job to a total."""
    for name, count in counts.items():
        total[name] = max(total.get(name, 0), count) if name == WORST else total.get(name, 0) + count


class Seal(NamedTuple):
    """A finished file to read back and hash."""

    file: str


class Receipt(NamedTuple):
    """A finished job's number and counts, or a sealed file and its digest."""

    job: int | None
    counts: dict[str, int]
    file: str | None = None
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """The settings that all jobs of a run share: source and target; each worker computes on one of the devices."""

    store: Store
    folder: str
    band_bytes: int = BAND_BYTES
    devices: tuple[str, ...] = ("cpu",)
