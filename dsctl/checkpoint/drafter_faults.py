"""Faults of a drafter as a whole: it is declared but not stored, stored but not declared, of a different kind, or lacks
stages. Does not load torch.
"""

from __future__ import annotations

from collections.abc import Iterator

from dsctl.checkpoint.checkpoint import Checkpoint
from dsctl.checkpoint.pieces import ABSENT, SHAPED, Fault
from dsctl.core.amounts import plural
from dsctl.core.config_fields import text_fields
from dsctl.core.errors import FormatError
from dsctl.core.params import DSPARK, Drafter

LOST, UNDECLARED, OTHER_KIND, STAGES = "drafter-missing", "drafter-undeclared", "drafter-config", "drafter-stages"
# Codes of contradictions in config.json that only a drafter has.
OF_CONFIG = ("compress-ratios", OTHER_KIND, STAGES, "drafter-targets")


def of_drafter(checkpoint: Checkpoint, faults: list[Fault]) -> tuple[list[Fault], list[Fault]]:
    """The fault of the drafter as a whole, with the faults that follow from it, and the others."""
    if checkpoint.model is None or checkpoint.config is None or checkpoint.view is not None:
        return [], faults
    try:
        declared, stored = checkpoint.model.drafter(checkpoint.config), checkpoint.drafter
    except FormatError:
        return [], faults
    if _is_in_part(checkpoint, declared, stored):
        return [], faults
    cause = next(_causes(checkpoint, declared, stored, faults), None)
    if cause is None:
        return [], faults
    reshaped = any(fault.code == "wrong-shape" and stored.has(fault.where) for fault in faults)
    follows = [fault for fault in faults if _follows(fault, cause.code, declared, stored, reshaped)]
    if not follows and cause.code != OTHER_KIND:
        return [], faults
    details = tuple(detail for fault in follows for detail in (fault.details or (str(fault),)))
    return [cause._replace(details=details)], [fault for fault in faults if fault not in follows]


def _is_in_part(checkpoint: Checkpoint, declared: Drafter, stored: Drafter) -> bool:
    """Whether something is there of a stage without the tensors by which stages are known."""
    lost = Drafter(declared.kind, declared.stages[len(stored.stages) :])
    return bool(lost.stages) and any(lost.has(name) for header in checkpoint.headers.values() for name in header.names)


def explains(checkpoint: Checkpoint, faults: list[Fault]) -> bool:
    """Whether every fault of names and shapes follows from the drafter: then config.json has no wrong size."""
    left = of_drafter(checkpoint, faults)[1]
    return len(left) < len(faults) and not any(fault.code in SHAPED for fault in left)


def _causes(checkpoint: Checkpoint, declared: Drafter, stored: Drafter, faults: list[Fault]) -> Iterator[Fault]:
    said = str(declared) if declared.stages else "DSpark"
    lost = declared.stages[len(stored.stages) :]
    if declared.kind and not stored.stages and not any(checkpoint.survey.pieces.values()):
        return
    if declared.kind and not stored.stages:
        missing = sum(fault.code == "missing-tensor" and declared.has(fault.where) for fault in faults)
        many = f": {plural(missing, 'parameter')} {'is' if missing == 1 else 'are'} missing" if missing else ""
        yield Fault(LOST, "config.json", f"declares {said}, but no tensor of this drafter is stored{many}")
    elif stored.stages and not declared.kind:
        what = f"{stored} is stored, but config.json does not declare this drafter: {_field(checkpoint)}"
        yield Fault(UNDECLARED, stored.stages[0], f"{what}; loaders ignore it")
    elif stored.stages and declared.kind != stored.kind:
        then = "load its stages as MTP layers" if stored.kind == DSPARK else "look for the stages of a DSpark"
        what = f"declares {said}, but the stored drafter is {stored}: loaders would {then}"
        yield Fault(OTHER_KIND, "config.json", what)
    elif stored.stages and lost:
        what = f"declares {said}, but only {stored} {'is' if len(stored.stages) == 1 else 'are'} stored"
        yield Fault(STAGES, "config.json", f"{what}; missing: {', '.join(lost)}")


def _field(checkpoint: Checkpoint) -> str:
    """The field that would declare a drafter, and its value."""
    said = text_fields(checkpoint.config or {})
    if "compress_ratios" in said:
        return "compress_ratios has no entry for its stages"
    return f"num_nextn_predict_layers is {said.get('num_nextn_predict_layers')!r}"


def _follows(fault: Fault, cause: str, declared: Drafter, stored: Drafter, reshaped: bool) -> bool:
    """Whether a fault follows from a fault of the drafter as a whole. Single tensors that are lost do not.

    `reshaped`: some tensors of the drafter have wrong shapes.
    """
    if fault.where == "config.json" and fault.code in OF_CONFIG:
        return cause != STAGES or fault.code == STAGES
    if cause == LOST:
        return fault.code in ABSENT and declared.has(fault.where)
    if cause == UNDECLARED:
        return fault.code == "extra-tensor" and stored.has(fault.where)
    if cause == STAGES:
        # The last stage has parameters of its own: if it is lost, the one before has too many.
        lost = Drafter(declared.kind, declared.stages[len(stored.stages) :])
        return (fault.code in ABSENT and lost.has(fault.where)) or (
            fault.code == "extra-tensor" and stored.has(fault.where)
        )
    # V4.1 takes sizes from the missing fields, so that shapes of the drafter seem wrong.
    return fault.code in SHAPED and reshaped and stored.has(fault.where)
