"""What is wrong with a checkpoint, by its causes, and what is refused because of it. No torch."""

from __future__ import annotations

from dsctl.checkpoint import causes
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.matching import undeclared
from dsctl.checkpoint.pieces import Fault
from dsctl.core.errors import FormatError

# Faults that say something, but make nothing unreadable or ambiguous.
NOTES = frozenset({
    "stray-file", "no-index", "total-size", "no-format-pt", "undeclared-format", "index-unknown", "missing-rank",
    "drafter-stages", "scale-fmt-missing",
})  # fmt: skip

# What comes first is why the others are there.
CAUSES = ("missing-shard", "wrong-config", "compress-ratios", "drafter-config", "drafter-targets")
# Of these, a config without a drafter has none.
_OF_DRAFTERS = ("compress-ratios", "drafter-config", "drafter-targets")
# Faults of how codes and scales were written.
_WRITTEN = {"wrong-scale", "wrong-scale-dtype", "other-grid", "not-packed"}


def summary(place: str, faults: list[Fault]) -> str:
    """One line for a list of faults: the only one, or how many of which kind; what others follow from comes first."""
    if len(faults) == 1:
        return f"{place}: {faults[0]}"
    first = f"{faults[0]}; in all " if faults[0].code in CAUSES or faults[0].code in _WRITTEN else ""
    kinds: dict[str, int] = {}
    for fault in faults:
        kinds[fault.code] = kinds.get(fault.code, 0) + 1
    return f"{place}: {first}{len(faults)} faults ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})"


def single_faults(checkpoint: Checkpoint) -> tuple[Fault, ...]:
    """Everything that is wrong, as far as the headers tell, each thing for itself."""
    own = *checkpoint.faults, *checkpoint.contradictions
    if checkpoint.regular is None:
        return *own, *checkpoint.survey.faults
    return *own, *undeclared(checkpoint.contents, checkpoint.regular.values())


def known_faults(checkpoint: Checkpoint) -> tuple[Fault, ...]:
    """The same by their causes: see `causes.told`."""
    return tuple(causes.told(checkpoint, single_faults(checkpoint)))


def require_whole(
    checkpoint: Checkpoint, allow_missing: bool = False, allow_extra: bool = False, without_mtp: bool = False
) -> None:
    """Refuse a checkpoint that its own files contradict; `without_mtp` where no MTP layer is wanted of it.

    Raises:
        FormatError: with every fault in `issues`, those of one cause as one.
    """
    faults = [f for f in single_faults(checkpoint) if not (allow_missing and f.code == "missing-tensor")]
    faults = [f for f in faults if not (without_mtp and _of_mtp(checkpoint, f))]
    faults = [f for f in faults if f.code not in NOTES and not (allow_extra and f.code == "extra-tensor")]
    if faults:
        told = causes.told(checkpoint, faults)
        issues = [str(fault) for fault in told]
        raise FormatError(summary(checkpoint.store.place, told), hint=_hint(checkpoint, faults, told), issues=issues)


def _of_mtp(checkpoint: Checkpoint, fault: Fault) -> bool:
    """Whether it is of an MTP layer, and would be no fault without that."""
    if fault.code in _OF_DRAFTERS:
        return True
    return fault.code == "missing-tensor" and fault in checkpoint.survey.mtp


def _hint(checkpoint: Checkpoint, faults: list[Fault], told: list[Fault]) -> str | None:
    """What to do about faults that are of one cause or all of one kind; `told` are the same by their causes."""
    kinds, remedy = {fault.code for fault in faults}, causes.remedy(checkpoint.store, told)
    lost = any(fault.code == "missing-shard" for fault in told)
    if lost or (remedy and kinds != {"missing-tensor"}):
        return remedy
    if kinds == {"missing-tensor"}:
        drop = "drop the MTP layer with --no-mtp, or " if all(_of_mtp(checkpoint, fault) for fault in faults) else ""
        return f"{drop}go on without them with --allow-missing"
    if kinds == {"extra-tensor"}:
        return "carry them over as they are with --allow-extra"
    if kinds <= {"block-size", "format-not-declared", "declared-not-stored"}:
        return "`dsctl verify --fix` makes config.json say what is stored"
    if told[0].code in CAUSES:
        return causes.BELONGS
    if kinds <= _WRITTEN:
        return "take these tensors from the files that they were made from"
    if "missing-scale" in kinds:
        return "codes mean nothing without their scales: fetch the files that should hold them again"
    return None
