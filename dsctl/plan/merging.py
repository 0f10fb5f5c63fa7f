"""Merge an adapter during a conversion: the parameters of a target that it changes, and their steps. Pure, no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec import structs

from dsctl.checkpoint.adapters import Adapter
from dsctl.checkpoint.pieces import Piece
from dsctl.codecs.codec import CHOSEN, SCALE
from dsctl.codecs.plain import Plain
from dsctl.core.amounts import plural, size
from dsctl.core.boxes import Box
from dsctl.core.errors import PlanError
from dsctl.core.header import TensorSpec
from dsctl.core.params import in_order
from dsctl.layouts.layout import Slot
from dsctl.plan.blocks import Blocks
from dsctl.plan.plan import Merge, Want, is_replaced
from dsctl.plan.steps import Step


def replaced(want: Want, adapter: Adapter | None) -> Want:
    """The parameter made from the adapter's own tensor, if the adapter replaces it."""
    change = adapter.changes.get(want.param.name) if adapter else None
    if change is None or change.whole is None:
        return want
    shape, ref = want.param.shape, change.whole
    slot = Slot("", want.param.name, Box.whole(shape), shape, (0,) * len(shape))
    pieces = (Piece(slot, Plain(ref.spec.dtype), (ref,)),)
    return structs.replace(want, pieces=pieces, held=pieces)


def merged(step: Step, want: Want, adapter: Adapter | None, blocks: Blocks) -> Step:
    """The step with the change of low rank that the adapter makes, if any; such a step is always recoded."""
    change = adapter.changes.get(want.param.name) if adapter else None
    if change is None or change.low_rank is None:
        return step
    recoded = structs.replace(step, how="recode", way=None)
    if step.how != "recode":
        recoded = blocks.checked(recoded, want.param.template)
    # The codec that refuses to round is for values that only change their dtype.
    writes = tuple(
        structs.replace(one, codec=Plain(one.codec.dtype)) if isinstance(one.codec, Plain) else one
        for one in recoded.writes
    )
    return structs.replace(recoded, writes=writes, low_rank=change.low_rank, role=want.param.family.group)


def with_own_scales(step: Step) -> Step:
    """A step with a change of low rank; it encodes with the source's own scales whatever they still reproduce."""
    read, codec = step.reads[0], step.writes[0].codec
    if step.low_rank is None or not step.exact or len(step.reads) > 1 or not codec.keeps_scales:
        return step
    parts = tuple(part for part in read.parts if part.name in CHOSEN)
    if not codec.scales_follow:
        # The form is the same, so only names differ.
        return structs.replace(step, kept=structs.replace(read, codec=codec, parts=parts))
    if read.container != step.shape:
        return step
    odd = next(part for part in parts if part.name == SCALE)
    return structs.replace(step, odd=structs.replace(odd, spec=TensorSpec("F8_E8M0", odd.spec.shape)))


def merge_of(adapter: Adapter, steps: Sequence[Step], wants: Iterable[Want]) -> Merge:
    """What the adapter does to these steps.

    Raises:
        PlanError: it changes none of the parameters that the target holds.
    """
    roles = {want.param.name: want.param.family.group for want in wants}
    changed: dict[str, int] = {}
    whole: dict[str, int] = {}
    for step in steps:
        for counts, there in ((changed, step.low_rank is not None), (whole, is_replaced(step))):
            if there:
                counts[roles[step.name]] = counts.get(roles[step.name], 0) + 1
    if not changed and not whole:
        what = f"--lora: {adapter.place}: changes no parameter of the target"
        raise PlanError(what, hint="check --only and --skip")
    config, held = adapter.config, {step.name for step in steps}
    return Merge(
        adapter.place.encode(errors="backslashreplace").decode(), config.revision, config.r, config.alpha,
        config.rslora, config.dora, adapter.modules, _ordered(changed), _ordered(whole),
        len(adapter.changes.keys() - held),
    )  # fmt: skip


def _ordered(counts: dict[str, int]) -> dict[str, int]:
    return {role: counts[role] for role in in_order(counts)}


def merge_notes(merge: Merge, adapter: Adapter, steps: Sequence[Step]) -> Iterator[str]:
    """Notes on an adapter and on the parameters that it changes, by role, with their bytes."""
    kinds = ", rsLoRA" * merge.rslora + ", DoRA" * merge.dora
    varied = " and others" if adapter.config.ranks or adapter.config.alphas else ""
    modules = f"{merge.modules:,} pairs of factors" if merge.modules > 1 else "1 pair of factors"
    yield f"lora: {merge.place}: r {merge.r}, alpha {merge.alpha:g}{varied}{kinds}; {modules}"
    nbytes: dict[str, int] = {}
    for step in steps:
        if step.low_rank is not None:
            nbytes[step.role] = nbytes.get(step.role, 0) + step.written_bytes
    for role, count in merge.changed.items():
        matrices = f"{count:,} matrices" if count > 1 else "1 matrix"
        yield f"lora: {role}: changes {matrices}, {size(nbytes[role])}"
    for role, count in merge.replaced.items():
        yield f"lora: {role}: replaces {plural(count, 'parameter')}"
    if merge.left_out:
        yield f"lora: {plural(merge.left_out, 'parameter')} that the adapter changes are not in the target"
    yield from adapter.notes
