"""A plan by kind, from a description alone: how much is moved, converted and written, and to which ranks.

It makes the same choices and checks as a whole plan, family by family, but names no file and no byte. A release is
planned from its built-in description this way, in a fraction of the time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod

from dsctl.checkpoint.groups import Group, Known
from dsctl.codecs import CODECS
from dsctl.codecs.codec import Codec, moves_to
from dsctl.codecs.recasts import recast
from dsctl.codecs.renumbered import Renumbered
from dsctl.core.boxes import Box
from dsctl.core.choices import choose
from dsctl.core.params import OTHER, Family, Param
from dsctl.layouts.layout import Layout, Slot
from dsctl.plan.blocks import Blocks, check_joined
from dsctl.plan.formats import Formats, known_formats
from dsctl.plan.laid import laid
from dsctl.plan.notes import copied, drafting, partial, renumbered
from dsctl.plan.plan import COUNTED, Recoded, kind
from dsctl.plan.recipes import check
from dsctl.plan.request import KEEP, ONLY, PUBLISHED, RECIPE, Request, refuse_idle
from dsctl.plan.selection import nothing_left, require_drafter, why_dropped
from dsctl.plan.spread import Subject, arrangement, check_cuts, check_names, settled
from dsctl.plan.steps import Part, Region, Step


@dataclass(slots=True)
class Overview:
    """Numbers of parameters in the words of an audit; bytes of tensors read and written, also by role and format.

    With ranks: `nbytes` and `tensors` of every rank. `recoded` are the kinds that a cut recodes, `legal` the TP sizes
    that cut no block.
    """

    source: str
    request: Request
    notes: tuple[str, ...]
    legal: tuple[int, ...]
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    roles: dict[str, dict[str, int]] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0
    nbytes: dict[int, int] = field(default_factory=dict)
    tensors: dict[int, int] = field(default_factory=dict)
    recoded: tuple[Recoded, ...] = ()

    @property
    def converted(self) -> int:
        """Parameters that are decoded or encoded, without those that are recoded because of a cut."""
        kinds = ("dequantized", "quantized", "requantized", "recast", "cast")
        return sum(self.counts[name] for name in kinds) - sum(one.parameters for one in self.recoded)


def overview(known: Known, request: Request) -> Overview:
    """Plan a checkpoint from its description.

    Raises:
        UsageError, PlanError, FormatError: as `dsctl.plan.planner.make_plan` of the checkpoint itself.
    """
    if request.to not in (KEEP, RECIPE):
        choose(request.to, (*CODECS, PUBLISHED), "format", "--to")
    refuse_idle(request)
    groups = [group for group in known.groups if group.family.role != OTHER]
    if request.mtp == ONLY:
        require_drafter(known.place, (group.family for group in groups), known.model is not None)
    request = settled(request, [group.family for group in groups])
    units = known.model.units(known.config) if known.model else ()
    subject = Subject(known.place, tuple(group.family for group in groups), units)
    layout, formats = arrangement(subject, request), known_formats(known, request)
    notes = check(formats.rules, (param for group in groups for param in group.params)) if formats.rules else []
    parts = [part for group in groups for part in _parts(group, request, formats)]
    stored = [(group, laid(layout, group.family, codec, {})) for group, codec in parts if codec is not None]
    legal = check_cuts(subject, request, layout, ((group.family, codec) for group, codec in stored))
    notes += check_names(layout, ((group.family, codec) for group, codec in stored))
    whys = (why_dropped(param, True, request) or "" for group in groups for param in _shown(group, request))
    relaid = layout.name != "published"
    notes = [
        *request.notes,
        *notes,
        *formats.notes,
        *renumbered(group.codec for group, _ in stored for _ in group.params if isinstance(group.codec, Renumbered)),
        *copied(request, ((group.codec, codec) for group, codec in stored), relaid),
        *drafting(request, known.traits.drafter, _sizes(stored)),
        *partial(request, whys),
    ]
    found = Overview(known.place, request, tuple(notes), tuple(legal))
    if layout.shares is not None:
        found.nbytes, found.tensors = (dict.fromkeys(layout.shares.present, 0) for _ in range(2))
    blocks = Blocks(layout.name, request.recode)
    found.counts["dropped"] = sum(group.count for group, codec in parts if codec is None)
    for group, codec in stored:
        _add(found, group, codec, layout, blocks)
    blocks.refuse()
    found.counts["parameters"] = sum(group.count for group in groups)
    found.recoded = tuple(blocks.recoded)
    if not any(found.roles.values()):
        raise nothing_left(request)
    return found


def _sizes(stored: Iterable[tuple[Group, Codec]]) -> Iterator[tuple[Family, int, int]]:
    """The family of each group, with numbers of stored tensors and bytes."""
    for group, codec in stored:
        specs = codec.specs(group.family.shape).values()
        yield group.family, group.count * len(specs), group.count * sum(spec.nbytes for spec in specs)


def _shown(group: Group, request: Request) -> Iterable[Param]:
    """The parameters of a group that a request may leave out, if it names any."""
    return group.params if request.only or request.skip or request.layers or request.experts else ()


def _parts(group: Group, request: Request, formats: Formats) -> Iterable[tuple[Group, Codec | None]]:
    """The parts of a group with the same codec in the target, and that codec; None for the part that is left out."""
    if not _shown(group, request) and not any(rule.match for rule in formats.rules):
        first = Param(group.family.template, group.family, None, None)
        yield group, None if why_dropped(first, True, request) else _codec(formats, first, group.codec)
        return
    found: dict[Codec | None, list[Param]] = {}
    for param in group.params:
        codec = None if why_dropped(param, True, request) else _codec(formats, param, group.codec)
        found.setdefault(codec, []).append(param)
    for codec, params in found.items():
        yield group.part(params), codec


def _codec(formats: Formats, param: Param, source: Codec) -> Codec:
    return source.written if isinstance(source, Renumbered) else formats.codec(param, source)


def _add(found: Overview, group: Group, codec: Codec, layout: Layout, blocks: Blocks) -> None:
    """Count a group's parameters by what happens to them."""
    held, slots, written = _spread(found, group, codec, layout)
    found.counts["dropped"] += group.count - held
    if not slots:
        return
    for slot in slots:
        check_joined(group.family.template, codec, slot)
    step = blocks.checked(_step(group, codec, slots), group.family.template, held)
    done = kind(step)
    found.counts[done] = found.counts.get(done, 0) + held
    found.counts["values"] += held * prod(group.family.shape)
    formats = found.roles.setdefault(group.family.group, {})
    formats[codec.name] = formats.get(codec.name, 0) + written
    found.bytes_in += held * sum(spec.nbytes for spec in group.specs.values())
    found.bytes_out += written


def _spread(found: Overview, group: Group, codec: Codec, layout: Layout) -> tuple[int, list[Slot], int]:
    """The number of a group's parameters with a place, a slot for each of their regions, and their bytes.

    With ranks, bytes and tensors are added to those of each rank.
    """
    shares = layout.shares
    if shares is None:
        slots = list(layout.slots(group.params[0]))
        each = sum(spec.nbytes for spec in codec.specs(group.family.shape).values())
        return (group.count if slots else 0), slots, group.count * each
    patterns: dict[object, list[Param]] = {}
    for param in group.params:
        patterns.setdefault(shares.pattern(param), []).append(param)
    regions: dict[Box, Slot] = {}
    held = written = 0
    for params in patterns.values():
        slots = list(layout.slots(params[0]))
        held += len(params) if slots else 0
        for (rank, _), slot in zip(shares.boxes(params[0]), slots, strict=False):
            regions.setdefault(slot.region, slot)
            nbytes = len(params) * sum(spec.nbytes for spec in codec.specs(slot.region.shape).values())
            found.nbytes[rank] += nbytes
            written += nbytes
            # A joined tensor is counted once, with its first matrix.
            if not any(slot.at) and not (slot.stack and slot.stack[0]):
                found.tensors[rank] += len(params) * len(codec.parts)
    return held, list(regions.values()), written


def _step(group: Group, codec: Codec, slots: Iterable[Slot]) -> Step:
    """The step of a family's parameters, with the fields that checks use."""
    shape = group.family.shape
    read = _region(group.codec, Box.whole(shape), shape, (0,) * len(shape))
    writes = tuple(_region(codec, slot.region, slot.container, slot.at) for slot in slots)
    whole = all(write.box == read.box for write in writes)
    recasts = whole and recast(group.codec, codec) is not None
    how = "move" if moves_to(group.codec, codec) else "recast" if recasts else "recode"
    return Step(group.family.template, shape, how, (read,), writes)


def _region(codec: Codec, box: Box, container: tuple[int, ...], at: tuple[int, ...]) -> Region:
    stated = codec.stated(container)
    parts = (Part(part, "", 0, spec) for part, spec in codec.specs(container).items() if part not in stated)
    return Region(box, codec, tuple(parts), container, at)
