"""A checkpoint's faults, grouped by cause, and the refusal of a faulty checkpoint. Does not load torch."""

from __future__ import annotations

from dsctl.checkpoint import causes
from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.matching import undeclared
from dsctl.checkpoint.pieces import ABSENT, Fault
from dsctl.core.errors import FormatError

# Faults that make nothing unreadable or ambiguous.
NOTES = frozenset({
    "stray-file", "no-index", "total-size", "no-format-pt", "undeclared-format", "index-unknown", "missing-rank",
    "drafter-stages", "scale-fmt-missing", "unknown-architecture", "cache-sources", "engram-tables",
})  # fmt: skip

# Codes of causes, which come before the faults that follow from them.
CAUSES = (
    "missing-shard", "wrong-config", "drafter-missing", "drafter-undeclared", "compress-ratios", "drafter-config",
    "drafter-targets",
)  # fmt: skip
# Faults that only a config with a drafter has.
_OF_DRAFTERS = ("compress-ratios", "drafter-config", "drafter-targets")
# Faults in the way codes and scales were written.
_WRITTEN = {"wrong-scale", "wrong-scale-dtype", "other-grid", "not-packed"}


def summary(place: str, faults: list[Fault]) -> str:
    """One line for a list of faults: the only one, or the number of each kind, after the cause of the others."""
    if len(faults) == 1:
        return f"{place}: {faults[0]}"
    first = f"{faults[0]}; in all " if faults[0].code in CAUSES or faults[0].code in _WRITTEN else ""
    kinds: dict[str, int] = {}
    for fault in faults:
        kinds[fault.code] = kinds.get(fault.code, 0) + 1
    return f"{place}: {first}{len(faults)} faults ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})"


def single_faults(checkpoint: Checkpoint) -> tuple[Fault, ...]:
    """Every single fault that the headers show."""
    own = *checkpoint.faults, *checkpoint.contradictions
    if checkpoint.regular is None:
        return *own, *checkpoint.survey.faults
    codecs = (codec for family, codec in checkpoint.regular.items() if not family.table)
    return *own, *undeclared(checkpoint.contents, codecs)


def known_faults(checkpoint: Checkpoint) -> tuple[Fault, ...]:
    """The same faults grouped by cause: see `causes.told`."""
    return tuple(causes.told(checkpoint, single_faults(checkpoint)))


def require_whole(
    checkpoint: Checkpoint,
    allow_missing: bool = False,
    allow_extra: bool = False,
    without_mtp: bool = False,
    only_mtp: bool = False,
) -> None:
    """Refuse a checkpoint whose own files contradict it; `without_mtp` ignores its drafter, `only_mtp` what is missing
    of the model.

    Raises:
        FormatError: it has faults; `issues` lists them, those of the same cause as one.
    """
    faults = [f for f in single_faults(checkpoint) if not (allow_missing and f.code == "missing-tensor")]
    if checkpoint.generic is not None and not checkpoint.quantization:
        # Shapes showed the forms, without a contradiction.
        faults = [f for f in faults if f.code != "format-not-declared"]
    faults = [f for f in faults if not (without_mtp and _of_mtp(checkpoint, f))]
    faults = [f for f in faults if not (only_mtp and _of_model(checkpoint, f))]
    faults = [f for f in faults if f.code not in NOTES and not (allow_extra and f.code == "extra-tensor")]
    if faults:
        told = causes.told(checkpoint, faults)
        issues = [str(fault) for fault in told]
        raise FormatError(
            summary(checkpoint.store.place, told), hint=_hint(checkpoint, faults, told, only_mtp), issues=issues
        )


def _of_mtp(checkpoint: Checkpoint, fault: Fault) -> bool:
    """Whether a fault concerns an MTP layer, and goes if this layer is left out."""
    if fault.code in _OF_DRAFTERS:
        return True
    if fault.code == "extra-tensor":
        return checkpoint.drafter.has(fault.where)
    return fault.code == "missing-tensor" and fault in checkpoint.survey.mtp


def _of_model(checkpoint: Checkpoint, fault: Fault) -> bool:
    """Whether a fault is a tensor or file that is missing, and no part of the drafter is in it."""
    if fault.code == "missing-shard":
        names = (name for name, file in (checkpoint.index or {}).items() if file == fault.where)
        return not any(map(checkpoint.drafter.has, names))
    return fault.code in ABSENT and fault not in checkpoint.survey.mtp


def _hint(checkpoint: Checkpoint, faults: list[Fault], told: list[Fault], only_mtp: bool) -> str | None:
    """Advice if all faults have the same cause or the same kind; `told` are the faults grouped by cause."""
    kinds, remedy = {fault.code for fault in faults}, causes.remedy(checkpoint.store, told)
    lost = any(fault.code == "missing-shard" for fault in told)
    if lost or (remedy and kinds != {"missing-tensor"}):
        return remedy
    if kinds == {"missing-tensor"} and only_mtp and not checkpoint.drafter.stages:
        return "fetch the files that hold the drafter"
    if kinds == {"missing-tensor"}:
        drop = "drop the drafter with --mtp drop, or " if all(_of_mtp(checkpoint, fault) for fault in faults) else ""
        return f"{drop}continue without these tensors with --allow-missing"
    if kinds == {"extra-tensor"}:
        return "copy these tensors unchanged with --allow-extra"
    if kinds <= {"block-size", "format-not-declared", "declared-not-stored"}:
        return "`dsctl verify --fix` updates config.json to match the stored tensors"
    if told[0].code in CAUSES:
        return causes.BELONGS
    if kinds <= _WRITTEN:
        return "take these tensors from the checkpoint that they were made from"
    if "missing-scale" in kinds:
        return "codes need their scales: fetch the files that should hold the scales again"
    return None
