"""What spreading a release over ranks would write, from its description alone: no headers, no weights, no network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dsctl.codecs import CODECS, Codec
from dsctl.core.boxes import Box
from dsctl.core.params import Param
from dsctl.layouts import Layout, Slot
from dsctl.look.capacity import base_dtype, codec_of
from dsctl.look.description import Description, Group
from dsctl.plan.blocks import Blocks, Recoded, check_joined
from dsctl.plan.formats import refuse_idle
from dsctl.plan.request import KEEP, Request
from dsctl.plan.spread import Subject, arrangement, check_cuts
from dsctl.plan.steps import Part, Region, Step


@dataclass(frozen=True, slots=True)
class Outline:
    """Bytes and tensors of every rank; how many parameters are moved and converted; which kinds are, because of a cut,
    recoded; the sizes that TP could be without a cut through blocks."""

    source: str
    moved: int
    converted: int
    recoded: tuple[Recoded, ...]
    nbytes: dict[int, int]
    tensors: dict[int, int]
    legal: tuple[int, ...]


def outline(description: Description, request: Request) -> Outline:
    """Plan a release's parts family by family, with the checks of `dsctl.plan.planner.make_plan`.

    Raises:
        UsageError, PlanError, FormatError: as `make_plan` of the release's checkpoint.
    """
    refuse_idle(request)
    base, to = base_dtype(description), None if request.to == KEEP else CODECS[request.to]
    groups = [group for group in description.known if not (request.mtp == "drop" and group.family.mtp)]
    subject = Subject.of(description.name, (group.family for group in description.known), description.config)
    layout = arrangement(subject, request)
    stored = [(group, codec_of(group, to, base)) for group in groups]
    legal = check_cuts(subject, request, layout, ((group.family, codec) for group, codec in stored))
    blocks = Blocks(layout.name, request.recode)
    assert layout.shares is not None
    nbytes, tensors = (dict.fromkeys(layout.shares.present, 0) for _ in range(2))
    counts = {"move": 0, "recode": 0}
    for group, codec in stored:
        held, slots = _spread(group, codec, layout, nbytes, tensors)
        if not slots:
            continue
        for slot in slots:
            check_joined(group.family.template, codec, slot)
        step = blocks.checked(_step(group, codec, slots), group.family.template, held)
        counts[step.how] += 0 if step.measured else held
    blocks.refuse()
    recoded = tuple(blocks.recoded)
    return Outline(description.name, counts["move"], counts["recode"], recoded, nbytes, tensors, tuple(legal))


def _spread(
    group: Group, codec: Codec, layout: Layout, nbytes: dict[int, int], tensors: dict[int, int]
) -> tuple[int, list[Slot]]:
    """Add a family's bytes and tensors to those of the ranks.

    Gives how many of its parameters these hold, and a slot for each region of them.
    """
    assert layout.shares is not None
    patterns: dict[object, list[Param]] = {}
    for param in group.family.params():
        patterns.setdefault(layout.shares.pattern(param), []).append(param)
    found: dict[Box, Slot] = {}
    held = 0
    for params in patterns.values():
        slots = layout.slots(params[0])
        held += len(params) if slots else 0
        for (rank, _), slot in zip(layout.shares.boxes(params[0]), slots, strict=False):
            found.setdefault(slot.region, slot)
            nbytes[rank] += len(params) * sum(spec.nbytes for spec in codec.specs(slot.region.shape).values())
            # A joined tensor is counted with what is at its beginning.
            if not any(slot.at) and not (slot.stack and slot.stack[0]):
                tensors[rank] += len(params) * len(codec.suffixes)
    return held, list(found.values())


def _step(group: Group, codec: Codec, slots: Iterable[Slot]) -> Step:
    """The step of a family's parameters, as far as checks look at it."""
    shape = group.family.shape
    read = _region(group.codec, Box.whole(shape), shape, (0,) * len(shape))
    writes = tuple(_region(codec, slot.region, slot.container, slot.at) for slot in slots)
    how = "move" if group.codec.moves_to(codec) else "recode"
    return Step(group.family.template, shape, how, (read,), writes)


def _region(codec: Codec, box: Box, container: tuple[int, ...], at: tuple[int, ...]) -> Region:
    stated = codec.stated(container)
    parts = (Part(suffix, "", 0, spec) for suffix, spec in codec.specs(container).items() if suffix not in stated)
    return Region(box, codec, tuple(parts), container, at)
