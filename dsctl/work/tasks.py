"""The tasks of workers and their receipts: plain data, for any process or machine. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, ldexp
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

# By role, how a merged adapter arrives: elements that it asks to change, those of them whose stored value stays the
# same, and sums of squares: of what is asked, of what is asked of elements that stay the same, and of the difference
# between what is asked and what arrives.
CHANGED, UNCHANGED, ASKED, LOST, ERROR = "values", "values_unchanged", "asked", "lost", "error"
_MERGE = "lora/"
# A sum of squares is a whole number of 2**-ENERGY_BITS, in digits of LIMB_BITS, so that totals are exact.
ENERGY_BITS, LIMB_BITS, LIMBS = 128, 40, 8


def merge_count(role: str, name: str) -> str:
    """The name of a count of a merged adapter."""
    return f"{_MERGE}{role}/{name}"


def energy(role: str, name: str, amount: float) -> dict[str, int]:
    """A sum of squares as counts."""
    most = (1 << LIMB_BITS * LIMBS) - 1
    whole = min(most, int(ldexp(amount, ENERGY_BITS))) if isfinite(amount) else most
    digits = ((whole >> LIMB_BITS * place) & ((1 << LIMB_BITS) - 1) for place in range(LIMBS))
    return {merge_count(role, f"{name}.{place}"): digit for place, digit in enumerate(digits) if digit}


def merge_counts(counts: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """The counts of a merged adapter by role, with sums of squares put together again."""
    found: dict[str, dict[str, int]] = {}
    for name, count in counts.items():
        if name.startswith(_MERGE):
            _, role, what = name.split("/")
            kind, _, place = what.partition(".")
            held = found.setdefault(role, {})
            held[kind] = held.get(kind, 0) + (count << LIMB_BITS * int(place) if place else count)
    sums = (ASKED, LOST, ERROR)
    return {
        role: {kind: ldexp(float(held.get(kind, 0)), -ENERGY_BITS) for kind in sums}
        | {kind: held.get(kind, 0) for kind in (CHANGED, UNCHANGED)}
        for role, held in found.items()
    }


def without_merge(counts: Mapping[str, int]) -> dict[str, int]:
    """All other counts."""
    return {name: count for name, count in counts.items() if not name.startswith(_MERGE)}


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
