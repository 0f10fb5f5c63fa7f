"""What a worker is told and what it tells in return: plain data, for any process or machine. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dsctl.plan.plan import BAND_BYTES
from dsctl.stores import Store

# Of counts by this name the largest is told, of all others the sum: how far what a cut had encoded anew is from what it
# was, in millionths of the largest value of the part.
WORST = "worst_error_millionths"
# Decoded values that are not finite: of codes that mean no number, or of scales too large for the target's dtype.
NAN, INFINITE = "values_not_a_number", "values_infinite"


def add(total: dict[str, int], counts: Mapping[str, int]) -> None:
    """Add what one band, step or job counted to a total."""
    for name, count in counts.items():
        total[name] = max(total.get(name, 0), count) if name == WORST else total.get(name, 0) + count


class Seal(NamedTuple):
    """A finished file to be read back and hashed."""

    file: str


class Receipt(NamedTuple):
    """What a job did: its number and its counts; or a sealed file and its digest."""

    job: int | None
    counts: dict[str, int]
    file: str | None = None
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Context:
    """What every job of a run shares: where to read, where to write; each worker computes on one of the devices."""

    store: Store
    folder: str
    band_bytes: int = BAND_BYTES
    devices: tuple[str, ...] = ("cpu",)
