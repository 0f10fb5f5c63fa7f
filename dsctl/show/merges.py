"""Print how the changes of a merged adapter arrive in the stored values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dsctl.show.output import Output, plural

# A change drowned if more than this share of its energy is lost, or if the noise of rounding is larger than it.
DROWNED = 0.5


def show_merge(audit: dict[str, Any], output: Output) -> None:
    """Print a line for each role that an adapter changes: see docs/guides/merge-lora.md for the figures."""
    for role, found in _roles(audit):
        output.text(f"lora: {role}: {_matrices(found['matrices'])}, {_arrived(found)}")
    for role, count in (audit.get("lora") or {}).get("replaced", {}).items():
        output.text(f"lora: {role}: {plural(count, 'parameter')} replaced")


def warn_of_merge(audit: dict[str, Any], output: Output) -> None:
    """Warn of roles in which most of the change drowned in rounding, on stderr."""
    drowned = [role for role, found in _roles(audit) if _drowned(found)]
    if drowned:
        hint = "" if audit["request"]["to"] == "bf16" else "; --bf16 keeps more of it"
        output.warn(f"most of the adapter's change drowned in rounding: {', '.join(drowned)}{hint}")


def _roles(audit: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    yield from (audit.get("lora") or {}).get("roles", {}).items()


def _drowned(found: dict[str, Any]) -> bool:
    return (found["lost_energy_share"] or 0) > DROWNED or (found["signal_to_noise_db"] or 0) < 0


def _matrices(number: int) -> str:
    return "1 matrix" if number == 1 else f"{number:,} matrices"


def _arrived(found: dict[str, Any]) -> str:
    if not found["values"]:
        return "the adapter's change is zero"
    unchanged = f"{found['unchanged_share']:.1%} of the values to change stay the same after rounding"
    lost = f"with {found['lost_energy_share']:.1%} of the change's energy" if found["lost_energy_share"] else ""
    ratio = found["signal_to_noise_db"]
    noise = "the change arrives exactly" if ratio is None else f"change to rounding noise {ratio:.1f} dB"
    return ", ".join(filter(None, (unchanged, lost, noise)))
